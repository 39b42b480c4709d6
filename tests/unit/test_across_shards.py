"""Copies across shards, once all shards are there."""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.config import SynthesizeConfig
from sbp_ray.errors import SbpError
from sbp_ray.generation.across import ShardComparer, compared_name
from sbp_ray.generation.ledger import Ledger, part_name
from sbp_ray.generation.merging import merge_shard, signatures_name
from sbp_ray.generation.sources import Sources
from sbp_ray.schema import DOC_ID
from sbp_ray.shards import shard_name
from sbp_ray.text.minhash import document_signature

TEXTS = {name: " ".join(f"{name}{number}" for number in range(60)) for name in "abcdef"}
ALTERED = {name: f"{text} and more" for name, text in TEXTS.items()}  # 48 shingles of 13 words, of 50
SHARDS = [["a", "b"], ["c", "a", "d"], ["e", "d", "f"]]


SIGNED = pa.schema([("doc_id", DOC_ID), ("signature", pa.binary(256))])


class Generation:
    """An artifact whose shards are merged, each from one document of a few samples."""

    def __init__(self, folder: Path) -> None:
        self.out, self.embeddings = (Artifact(name, str(folder / name)) for name in ("synthetic", "embeddings"))
        d1 = [{"doc_id": bytes(16), "signature": document_signature("north wind " * 20, 13)[0].tobytes()}]
        for shard in range(len(SHARDS)):
            self.embeddings.write_table(shard_name("train", shard), pa.Table.from_pylist(d1, SIGNED))
        for shard, names in enumerate(SHARDS):
            self.merge(shard, [ALTERED[name] if shard == 2 else TEXTS[name] for name in names])

    def merge(self, shard: int, texts: list[str]) -> None:
        cfg = SynthesizeConfig(samples_per_document=len(texts), min_tokens=2)
        ledger = Ledger(self.out, shard, len(texts))
        rows = [self._row(shard, number, text) for number, text in enumerate(texts)]
        for number in range(0, len(rows), 2):  # segments, and so groups of rows, of two
            ledger.commit(rows[number : number + 2])
        sources = Sources(pa.table({"doc_id": pa.array([bytes(16)], DOC_ID), "input_ids": [[7] * 20]}))
        names = [shard_name("train", number) for number in range(len(SHARDS))]
        merge_shard(cfg, shard, sources, names=names, embeddings=self.embeddings, out=self.out)

    def _row(self, shard: int, number: int, text: str) -> dict[str, Any]:
        return {
            "number": number, "d1_id": bytes(16), "sample": number, "reason": None, "num_generated": 10 + number,
            "num_prompt": 10, "num_cached": 0, "signature": document_signature(text, 13)[0].tobytes(),
            "doc_id": blake2b(f"{shard}/{number}".encode(), digest_size=16).digest(), "text": text,
            "input_ids": list(range(10 + number)), "finish_reason": "stop", "synthesizer": "v", "seed": number,
            "temperature": 1.0, "top_p": 1.0, "max_tokens": 50,
        }  # fmt: skip

    def compare(self, *shards: int) -> list[dict[str, Any]]:
        comparer = ShardComparer(self.out, 0.8)
        return [comparer({"shard": shard}) for shard in shards]

    def kept(self) -> list[list[str]]:
        """First words of the texts, shard by shard."""
        tables = [self.out.read_table(part_name(shard)) for shard in range(len(SHARDS))]
        return [[text.split("0")[0] for text in table["text"].to_pylist()] for table in tables]


@pytest.fixture
def generation(tmp_path: Path) -> Generation:
    return Generation(tmp_path)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_each_text_is_kept_in_its_first_shard_whichever_is_compared_first(
    generation: Generation, order: tuple[int, ...]
) -> None:
    assert generation.kept() == SHARDS
    drops = dict(zip(order, generation.compare(*order), strict=True))
    assert drops == {0: {}, 1: {"drops": {"copy_of_synthetic": 1}}, 2: {"drops": {"copy_of_synthetic": 1}}}
    assert generation.kept() == [["a", "b"], ["c", "d"], ["e", "f"]]


def test_a_shards_counts_lose_what_it_loses_once_however_often_it_is_compared(generation: Generation) -> None:
    """The second shard's documents have 10, 11 and 12 tokens; the one of 11 goes."""
    before = generation.out.read_stats(part_name(1))
    assert (before["documents"], before["tokens"], before["drops"]) == (3, 33, {})
    for _ in range(2):  # the second time as after a death before the mark
        generation.compare(1)
        after = generation.out.read_stats(part_name(1))
        assert after == {**before, "documents": 2, "tokens": 22, "drops": {"copy_of_synthetic": 1}}
    assert generation.out.read_json(compared_name(1)) == {"copies": 1}


def test_a_shard_that_is_made_again_is_compared_again(generation: Generation) -> None:
    generation.compare(0, 1, 2)
    generation.out.fs.delete_file(generation.out.path(part_name(1)))
    generation.merge(1, [TEXTS[name] for name in SHARDS[1]])
    assert not generation.out.exists(compared_name(1))
    generation.compare(1)
    assert generation.kept() == [["a", "b"], ["c", "d"], ["e", "f"]]


def test_signatures_that_have_gone_are_named(generation: Generation) -> None:
    generation.out.fs.delete_file(generation.out.path(signatures_name(0)))
    with pytest.raises(SbpError, match=r"signatures/part-00000\.parquet is not there"):
        generation.compare(1)
