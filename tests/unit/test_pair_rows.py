"""The join of pairs to tokens, beside a plain one that has everything in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from packed_rows import read_rows, write_examples
from worked_on import WorkedOn

from sbp_ray.artifacts import Artifact
from sbp_ray.config import TuneConfig
from sbp_ray.errors import SbpError
from sbp_ray.schema import DOC_ID, DOCUMENT, PAIR, SPLITS, shard_of
from sbp_ray.shards import shard_name
from sbp_ray.text.pair_format import document_example, pair_example
from sbp_ray.text.tokenizer import SpecialIds
from sbp_ray.training import fetched_documents
from sbp_ray.training.pair_rows import SOURCES, choose_pairs, pack_pairs

pytestmark = pytest.mark.usefixtures("in_process")

SPECIAL = SpecialIds(bos=0, eos=1, related=2)
NUM_SHARDS = 3
CONFIG = TuneConfig(seq_len=40, batch_rows=1, peak_lr=1.0)
LONG_ROWS = TuneConfig(seq_len=100, max_pair_len=40, batch_rows=1, peak_lr=1.0)


class Run:
    """A corpus and its pairs on storage, and the same in plain dicts."""

    def __init__(self, new_artifact: Callable[[str], Artifact], seed: int, cfg: TuneConfig = CONFIG) -> None:
        self.cfg = cfg
        self.corpus, self.pairs = new_artifact("corpus"), new_artifact("pairs")
        draw = random.Random(seed)
        self.tokens: dict[bytes, list[int]] = {}
        self.chosen: dict[tuple[str, int], list[tuple[bytes, bytes]]] = {}
        for split in SPLITS:
            ids = [draw.randbytes(16) for _ in range(30)]
            tokens = {doc_id: [draw.randint(3, 99) for _ in range(draw.randint(0, 25))] for doc_id in ids}
            self.tokens |= tokens
            pairs = [(a, b) for a in ids for b in draw.sample(ids, draw.randint(0, 8)) if a != b]
            for shard in range(NUM_SHARDS):
                documents = [
                    {"doc_id": doc_id, "group": "", "text": "", "input_ids": tokens[doc_id]}
                    for doc_id in sorted(ids)
                    if shard_of(doc_id, NUM_SHARDS) == shard
                ]
                own = [pair for pair in pairs if shard_of(pair[0], NUM_SHARDS) == shard]
                own = [] if (split, shard) == ("validation", 1) else own
                self.chosen[split, shard] = own
                rows = [{"d1_id": a, "d2_id": b, "cosine": 0.8, "jaccard": 0.1} for a, b in own]
                self.corpus.write_table(shard_name(split, shard), pa.Table.from_pylist(documents, DOCUMENT))
                self.pairs.write_table(shard_name(split, shard), pa.Table.from_pylist(rows, PAIR))

    def pack(self, out: Artifact) -> None:
        pack_pairs(self.cfg, corpus=self.corpus, pairs=self.pairs, special=SPECIAL, vocab_size=100, out=out)

    def expect(self, out: Artifact, share: float = 1.0) -> None:
        """The rows and counts are those of the plain join."""
        plain = Artifact("plain", f"{out.url}-plain")
        longest, seq_len = self.cfg.max_pair_len or self.cfg.seq_len, self.cfg.seq_len
        for (split, shard), pairs in self.chosen.items():
            read = [pair for pair in pairs if split != "train" or is_chosen(pair, share)]
            made = [pair_example(self.tokens[a], self.tokens[b], SPECIAL) for a, b in read]
            kept = [
                example
                for example, (_, d2) in zip(made, read, strict=True)
                if len(example.input_ids) <= longest and self.tokens[d2]
            ]
            stats = write_examples(plain, SOURCES[split], kept, seq_len, shard=shard)
            found, expected = (read_rows(where, SOURCES[split], seq_len, shard=shard) for where in (out, plain))
            for ours, row in zip(found, expected, strict=True):
                np.testing.assert_equal(ours, row)
            drops = {"too_long": len(made) - len(kept), "beyond_num_epochs": len(pairs) - len(read)}
            counts = out.read_stats(shard_name(f"rows/{SOURCES[split]}", shard))
            if made:
                assert counts["shortest_pair"] == min(len(example.input_ids) for example in made)
            del counts["shortest_pair"]
            assert counts == {**stats, "pairs": len(pairs), "drops": drops}
        assert out.files("scratch/wanted-train") == []


def is_chosen(pair: tuple[bytes, bytes], share: float) -> bool:
    return bool(choose_pairs(pairs_table([pair]), share)[0])


def pairs_table(pairs: list[tuple[bytes, bytes]]) -> pa.Table:
    d1_ids, d2_ids = zip(*pairs, strict=True)
    return pa.table({"d1_id": pa.array(d1_ids, DOC_ID), "d2_id": pa.array(d2_ids, DOC_ID)})


@pytest.mark.parametrize("cfg", [CONFIG, LONG_ROWS], ids=["rows of a pair's length", "longer rows"])
@pytest.mark.parametrize("seed", range(3))
def test_the_rows_are_those_of_a_plain_join(new_artifact: Any, seed: int, cfg: TuneConfig) -> None:
    run, out = Run(new_artifact, seed, cfg), new_artifact("synthesizer")
    run.pack(out)
    run.expect(out)
    assert not out.exists("scratch")


def test_d2_by_themselves_are_those_of_the_same_pairs(new_artifact: Any) -> None:
    """Rows of 40: a pair of d1 20, d2 10 takes one, and so do two of them without their d1, of 12 tokens each."""
    with_d1, alone = (Run(new_artifact, 0, CONFIG.model_copy(update={"condition": c})) for c in ("d1", "none"))
    pairs, rows = new_artifact("synthesizer"), new_artifact("alone")
    with_d1.pack(pairs)
    alone.pack(rows)
    plain = new_artifact("plain")
    for (split, shard), chosen in alone.chosen.items():
        fits = [b for a, b in chosen if alone.tokens[b] and len(alone.tokens[a]) + len(alone.tokens[b]) + 3 <= 40]
        examples = [document_example(alone.tokens[b], SPECIAL) for b in fits]
        write_examples(plain, SOURCES[split], examples, 40, shard=shard)
        found, expected = (read_rows(where, SOURCES[split], 40, shard=shard) for where in (rows, plain))
        for ours, row in zip(found, expected, strict=True):
            np.testing.assert_equal(ours, row)
        name = shard_name(f"rows/{SOURCES[split]}", shard)
        assert rows.read_stats(name)["pair_rows"] == pairs.read_stats(name)["rows"]
        assert rows.read_stats(name)["drops"] == pairs.read_stats(name)["drops"]


def test_small_parts_change_nothing(new_artifact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = Run(new_artifact, 0), new_artifact("synthesizer")
    monkeypatch.setattr(fetched_documents, "_FETCH_TOKENS", 30)
    run.pack(out)
    run.expect(out)


def test_each_shard_of_the_corpus_is_read_twice(new_artifact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = Run(new_artifact, 0), new_artifact("synthesizer")
    reads: list[str] = []
    read_table = Artifact.read_table

    def counting(self: Artifact, name: str, columns: list[str] | None = None) -> pa.Table:
        reads.extend([name] if self.name == "corpus" else [])
        return read_table(self, name, columns)

    monkeypatch.setattr(Artifact, "read_table", counting)
    run.pack(out)
    assert sorted(reads) == sorted(2 * [shard_name(split, shard) for split in SPLITS for shard in range(NUM_SHARDS)])


@pytest.mark.parametrize("survivors", [0, 5, 9, 13, 18, 23, 27])
def test_an_interrupted_join_goes_on_and_makes_nothing_twice(
    new_artifact: Any, survivors: int, in_process: WorkedOn
) -> None:
    run, out = Run(new_artifact, 1), new_artifact("synthesizer")
    in_process.interrupt_after(survivors)
    if survivors < 27:
        with pytest.raises(KeyboardInterrupt):
            run.pack(out)
    run.pack(out)
    run.expect(out)
    assert [stage for stage, _ in in_process] == ["tune-wanted"] * 9 + ["tune-fetched"] * 9 + ["tune-rows"] * 9
    in_process.clear()
    run.pack(out)
    assert in_process == []


@pytest.mark.parametrize("name", ["corpus", "pairs"])
def test_a_shard_that_has_gone_is_named_instead_of_left_out(new_artifact: Any, name: str) -> None:
    run = Run(new_artifact, 0)
    lost = shard_name("train", NUM_SHARDS - 1)
    made = getattr(run, name)
    made.fs.delete_file(made.path(lost))
    with pytest.raises(SbpError, match=f"{name}: {lost} is missing"):
        run.pack(new_artifact("synthesizer"))


def test_no_more_pairs_are_packed_than_the_epochs_read(new_artifact: Any) -> None:
    run, out = Run(new_artifact, 3, CONFIG.model_copy(update={"num_epochs": 0.3})), new_artifact("synthesizer")
    run.pack(out)
    run.expect(out, share=0.3)


def test_a_share_of_the_pairs_is_chosen_by_their_ids_alone() -> None:
    draw = random.Random(0)
    ids = [draw.randbytes(16) for _ in range(2000)]
    pairs = [(a, b) for a in ids[:200] for b in draw.sample(ids, 50)]
    table = pairs_table(pairs)
    chosen = {share: choose_pairs(table, share) for share in (0.1, 0.3)}
    for share, chosen_N in chosen.items():
        assert chosen_N.mean() == pytest.approx(share, abs=4 * (share * (1 - share) / len(pairs)) ** 0.5)
        of_each_d1 = chosen_N.reshape(200, 50).sum(axis=1)  # binomial: no d1 is taken whole, or left out
        assert of_each_d1.var() == pytest.approx(50 * share * (1 - share), rel=0.4)
    assert not (chosen[0.1] & ~chosen[0.3]).any()  # a larger share holds the smaller one
    turned = pairs_table([(b, a) for a, b in pairs])
    both = (choose_pairs(turned, 0.3) & chosen[0.3]).mean()
    assert both == pytest.approx(0.09, abs=0.02)  # d2 given d1 and d1 given d2 are chosen independently


@pytest.mark.parametrize("side", ["d1_id", "d2_id"])
def test_a_document_that_the_corpus_lacks_is_one_line(new_artifact: Any, side: str) -> None:
    run = Run(new_artifact, 2)
    name = shard_name("train", 1)
    table = run.pairs.read_table(name)
    unknown = bytes([0, 0, 0, 1, *[0] * 12])
    ids = [unknown, *table[side].to_pylist()[1:]]
    index = table.schema.get_field_index(side)
    run.pairs.write_table(name, table.set_column(index, PAIR.field(side), pa.array(ids, PAIR.field(side).type)))
    with pytest.raises(SbpError, match=rf"corpus lacks 1 documents of the pairs, such as {unknown.hex()}: redo pair"):
        run.pack(new_artifact("synthesizer"))


def test_a_part_ends_with_the_document_that_fills_it() -> None:
    length_D = np.array([5, 5, 30, 1, 1, 1, 9, 0, 0, 12])
    assert list(fetched_documents._parts(length_D, 10)) == [(0, 2), (2, 3), (3, 7), (7, 10)]
    assert list(fetched_documents._parts(np.array([], np.int64), 10)) == []
