"""Documents with signatures, shards of synthetic ones that are merged, and copies among them to be dropped."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import pyarrow as pa

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Resources, SynthesizeConfig
from sbp_ray.generation.d1 import Sources
from sbp_ray.generation.merging import merge_shard, part_name
from sbp_ray.generation.parts import make_parts
from sbp_ray.generation.segments import DoneSamples
from sbp_ray.schema import DOC_ID, DOCUMENT, shard_of
from sbp_ray.shards import shard_name
from sbp_ray.text.minhash import document_signature
from sbp_ray.text.tokenizer import encode_texts

SIGNED = pa.schema([("doc_id", DOC_ID), ("signature", pa.binary(256))])


class Generation:
    """An artifact whose shards are merged, each from one document of a few samples."""

    def __init__(self, root: str, shards: list[list[str]], corpus: dict[int, list[str]]) -> None:
        self.out, self.embeddings = (Artifact(name, f"{root}/{name}") for name in ("synthetic", "embeddings"))
        self.num_shards = len(shards)
        for shard in range(self.num_shards):
            texts = [f"d1 of shard {shard}, " * 20, *corpus.get(shard, [])]
            rows = [{"doc_id": doc_id(shard, n), "signature": sign(text)} for n, text in enumerate(texts)]
            self.embeddings.write_table(shard_name("train", shard), pa.Table.from_pylist(rows, SIGNED))
        for shard, texts in enumerate(shards):
            self.merge(shard, texts)

    def merge(self, shard: int, texts: list[str]) -> dict[str, Any]:
        """A shard without texts has no document to write them from."""
        cfg = SynthesizeConfig(samples_per_document=max(1, len(texts)), min_tokens=2)
        done = DoneSamples(self.out, shard, len(texts))
        rows = [self._row(shard, number, text) for number, text in enumerate(texts)]
        for number in range(0, len(rows), 2):  # segments, and so groups of rows, of two
            done.commit(rows[number : number + 2])
        d1 = pa.table({"doc_id": pa.array([doc_id(shard, 0)], DOC_ID), "input_ids": [[7] * 20]})
        return merge_shard(cfg, shard, Sources(d1 if texts else d1.slice(0, 0)), self.out)

    def _row(self, shard: int, number: int, text: str) -> dict[str, Any]:
        return {
            "number": number, "d1_id": doc_id(shard, 0), "sample": number, "reason": None,
            "num_generated": 10 + number, "num_prompt": 10, "num_cached": 0, "signature": sign(text),
            "doc_id": doc_id(shard, number), "text": text, "input_ids": list(range(10 + number)),
            "finish_reason": "stop", "synthesizer": "v", "seed": number, "temperature": 1.0, "top_p": 1.0,
            "max_tokens": 50,
        }  # fmt: skip

    def drop_copies(self) -> None:
        cfg = SynthesizeConfig(max_jaccard=0.8)
        none = Artifact("none", self.out.path("none"))  # corpus and synthesizer, which no setting asks for
        make_parts(
            cfg, self.num_shards, corpus=none, embeddings=self.embeddings, synthesizer=none, out=self.out,
            resources=Resources(),
        )  # fmt: skip

    def kept(self) -> list[list[str]]:
        """First words of the texts, shard by shard."""
        tables = [self.out.read_table(part_name(shard)) for shard in range(self.num_shards)]
        return [[text.split("0")[0] for text in table["text"].to_pylist()] for table in tables]


def write_signed(corpus: Artifact, embeddings: Artifact, texts: list[str], num_shards: int, tokenizer: Any) -> None:
    """Train documents, each in the shard of its id and in the order of the ids, with their signatures."""
    ids = [blake2b(text.encode(), digest_size=16).digest() for text in texts]
    rows = [
        {"doc_id": doc_id, "group": "", "text": text, "input_ids": tokens}
        for doc_id, text, tokens in sorted(zip(ids, texts, encode_texts(tokenizer, texts), strict=True))
    ]
    for shard in range(num_shards):
        own = [row for row in rows if shard_of(row["doc_id"], num_shards) == shard]
        corpus.write_table(shard_name("train", shard), pa.Table.from_pylist(own, DOCUMENT))
        signed = [{"doc_id": row["doc_id"], "signature": sign(row["text"])} for row in own]
        embeddings.write_table(shard_name("train", shard), pa.Table.from_pylist(signed, SIGNED))


def doc_id(*name: int) -> bytes:
    return blake2b(str(name).encode(), digest_size=16).digest()


def sign(text: str) -> bytes:
    return document_signature(text, 13)[0].tobytes()
