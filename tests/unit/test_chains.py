"""Rows in which documents see one another, beside rows written down by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from packed_rows import documents_of, read_rows

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PretrainConfig
from sbp_ray.errors import SbpError
from sbp_ray.schema import DOC_ID, DOCUMENT, PAIR, SYNTHETIC
from sbp_ray.shards import shard_name
from sbp_ray.stages.pretrain import Packing, pack_documents
from sbp_ray.text.tokenizer import SpecialIds
from sbp_ray.training import in_context_rows
from sbp_ray.training.fetched_documents import fetch_tokens

pytestmark = pytest.mark.usefixtures("in_process")

BOS, EOS = 0, 1
SPECIAL = SpecialIds(bos=BOS, eos=EOS, related=2)
NUM_SHARDS = 2
A, B, C, D, E = (bytes([0, 0, 0, number]) + bytes(12) for number in range(5))
"""Shard 0 holds A, C and E; shard 1 holds B and D."""
TOKENS = {A: [10, 11], B: [20], C: [30, 31, 32], D: [40, 41], E: [50]}


def config(seq_len: int, **settings: Any) -> PretrainConfig:
    return PretrainConfig(seq_len=seq_len, batch_rows=1, total_tokens=1, peak_lr=1.0, **settings)


@pytest.fixture
def corpus(new_artifact: Callable[[str], Artifact]) -> Artifact:
    made = new_artifact("corpus")
    for shard, ids in enumerate(([A, C, E], [B, D])):
        rows = [{"doc_id": each, "group": "", "text": "", "input_ids": TOKENS[each]} for each in ids]
        made.write_table(shard_name("train", shard), pa.Table.from_pylist(rows, DOCUMENT))
    return made


def write_pairs(made: Artifact, related: dict[bytes, list[bytes]]) -> Artifact:
    for shard in range(NUM_SHARDS):
        own = {d1: others for d1, others in related.items() if d1[3] % NUM_SHARDS == shard}
        rows = [{"d1_id": d1, "d2_id": d2, "cosine": 0.9, "jaccard": 0.1} for d1 in own for d2 in own[d1]]
        made.write_table(shard_name("train", shard), pa.Table.from_pylist(rows, PAIR))
    return made


def rows_of(out: Artifact, source: str, seq_len: int) -> list[list[tuple[list[int], list[bool]]]]:
    """Of each row the texts whose tokens see one another, and which of them are targets."""
    return [documents_of(row) for n in range(NUM_SHARDS) for row in read_rows(out, source, seq_len, shard=n)]


# Related documents in one row


RELATED = {E: [A], A: [D, E, C], D: [A, C], C: [A, D]}
"""B has none; E has the fewest, and from it A, D and C follow. Two pieces: B, E, A and D, C."""


def packed_in_context(corpus: Artifact, pairs: Artifact, out: Artifact, seq_len: int = 6) -> None:
    cfg = config(seq_len, in_context=True)
    pack_documents("pretrain", Packing(cfg, False, SPECIAL, 100, {"real": (corpus, "train")}, out), pairs)


def test_related_documents_lie_behind_one_another_and_are_cut_at_the_rows_alone(corpus, new_artifact) -> None:
    """<bos> 20 <eos> <bos> 50 <eos> are six tokens, <bos> 10 11 <eos> four; D and C are nine, of which six fit."""
    out = new_artifact("lm")
    packed_in_context(corpus, write_pairs(new_artifact("pairs"), RELATED), out)
    first = [False] + [True] * 5
    assert rows_of(out, "real", 6) == [
        [([BOS, 20, EOS, BOS, 50, EOS], first)],
        [([BOS, 10, 11, EOS], first[:4])],
        [([BOS, 40, 41, EOS, BOS, 30], first)],
        [([31, 32, EOS], first[:3])],
    ]
    assert not out.exists("scratch")


def test_a_run_that_died_anywhere_goes_on_to_the_same_rows(corpus, new_artifact, monkeypatch) -> None:
    pairs = write_pairs(new_artifact("pairs"), RELATED)
    whole, died = new_artifact("whole"), new_artifact("died")
    packed_in_context(corpus, pairs, whole)
    with monkeypatch.context() as patched:
        patched.setattr(in_context_rows, "fetch_tokens", fail_at_the_second)
        with pytest.raises(RuntimeError):
            packed_in_context(corpus, pairs, died)
    assert died.exists("scratch")
    with monkeypatch.context() as patched:
        patched.setattr(in_context_rows, "order_documents", None)  # the path is there: it is not asked for again
        packed_in_context(corpus, pairs, died)
        packed_in_context(corpus, pairs, died)  # and nothing is, when all rows are
    for seq_len in (6,):
        assert rows_of(died, "real", seq_len) == rows_of(whole, "real", seq_len)


def fail_at_the_second(corpus: Artifact, out: Artifact, item: dict[str, Any]) -> Any:
    if item["shard"] == 1:
        raise RuntimeError("killed")
    return fetch_tokens(corpus, out, item)


class Drawn:
    """In the place of random numbers, a place to begin at."""

    def __init__(self, start: int) -> None:
        self._start = start

    def integers(self, high: int) -> int:
        assert self._start < high
        return self._start


def test_another_pass_cuts_the_path_elsewhere_and_goes_on_at_its_beginning(corpus, new_artifact) -> None:
    """The ten tokens of B, E and A from the eighth on: 11 <eos>, and then <bos> 20 <eos> <bos>; the other four."""
    out = new_artifact("lm")
    packed_in_context(corpus, write_pairs(new_artifact("pairs"), RELATED), out)
    rows = read_rows(out, "real", 6, rng=Drawn(8))  # type: ignore[arg-type]
    assert [documents_of(row) for row in rows] == [
        [([11, EOS, BOS, 20, EOS, BOS], [False] + [True] * 5)],
        [([50, EOS, BOS, 10], [False] + [True] * 3)],
    ]
    again = [read_rows(out, "real", 6, shard=1, rng=np.random.default_rng(n)) for n in (1, 1, 2)]
    texts = [[documents_of(row) for row in each] for each in again]
    assert texts[0] == texts[1] != texts[2]
    whole = sorted(token for row in read_rows(out, "real", 6, shard=1) for ids, _ in documents_of(row) for token in ids)
    assert all(sorted(t for row in each for ids, _ in row for t in ids) == whole for each in texts)


def test_a_pair_whose_document_the_corpus_lacks_is_one_line(corpus, new_artifact) -> None:
    unknown = b"\x09" * 16
    pairs = write_pairs(new_artifact("pairs"), {A: [unknown]})
    with pytest.raises(SbpError, match=f"corpus lacks 1 documents of the pairs, such as {unknown.hex()}: redo pair"):
        packed_in_context(corpus, pairs, new_artifact("lm"))


@pytest.mark.parametrize(("name", "lost"), [("corpus", 0), ("corpus", 1), ("pairs", 1)])
def test_a_shard_that_has_gone_is_named_instead_of_left_out(corpus, new_artifact, name: str, lost: int) -> None:
    made = {"corpus": corpus, "pairs": write_pairs(new_artifact("pairs"), RELATED)}
    for artifact in made.values():
        for shard in range(NUM_SHARDS):  # which tell how many there are
            artifact.write_table(shard_name("validation", shard), artifact.read_table(shard_name("train", shard)))
    made[name].fs.delete_file(made[name].path(shard_name("train", lost)))
    with pytest.raises(SbpError, match=f"{name}: train/part-0000{lost}.parquet is missing"):
        packed_in_context(made["corpus"], made["pairs"], new_artifact("lm"))


# Megadocs


def write_synthetic(made: Artifact, *shards: list[tuple[bytes, list[int]]]) -> Artifact:
    for shard, written in enumerate(shards):
        columns = {"d1_id": pa.array([d1 for d1, _ in written], DOC_ID), "input_ids": [ids for _, ids in written]}
        table = pa.table(columns).cast(pa.schema([SYNTHETIC.field(name) for name in columns]))
        made.write_table(f"part-{shard:05d}.parquet", table)
    return made


def packed_megadocs(corpus: Artifact, synthetic: Artifact, out: Artifact, seq_len: int) -> None:
    inputs = {"real": (corpus, "train"), "synthetic": (synthetic, "")}
    pack_documents("pretrain-sbp", Packing(config(seq_len), True, SPECIAL, 100, inputs, out))


def test_what_was_written_from_a_d1_comes_before_it_and_sees_nothing_of_other_d1(corpus, new_artifact) -> None:
    """C has two documents and takes 3 + 4 + 5 tokens, A has one and takes 4 + 4; both fill a row of 20. D is alone."""
    out = new_artifact("lm")
    synthetic = write_synthetic(
        new_artifact("synthetic"), [(C, [60]), (C, [61, 62]), (A, [63, 64])], [(D, [65, 66, 67])]
    )
    packed_megadocs(corpus, synthetic, out, 20)
    of_c = [BOS, 60, EOS, BOS, 61, 62, EOS, BOS, 30, 31, 32, EOS]
    of_a, of_d = [BOS, 63, 64, EOS, BOS, 10, 11, EOS], [BOS, 65, 66, 67, EOS, BOS, 40, 41, EOS]
    expected = [[of_c, of_a], [of_d]]
    assert rows_of(out, "synthetic", 20) == [
        [(ids, [False] + [True] * (len(ids) - 1)) for ids in row] for row in expected
    ]
    real = [text for row in rows_of(out, "real", 20) for text, _ in row]
    assert sorted(real) == sorted([BOS, *ids, EOS] for ids in TOKENS.values())  # as without megadocs


def test_a_megadoc_that_is_longer_than_a_row_is_cut_as_a_long_document_is(corpus, new_artifact) -> None:
    out = new_artifact("lm")
    packed_megadocs(corpus, write_synthetic(new_artifact("synthetic"), [(A, [60, 61])], []), out, 6)
    assert rows_of(out, "synthetic", 6) == [
        [([BOS, 60, 61, EOS, BOS, 10], [False] + [True] * 5)],
        [([11, EOS], [False, True])],
    ]


def test_a_d1_that_is_not_where_it_must_be_is_one_line(corpus, new_artifact) -> None:
    synthetic = write_synthetic(new_artifact("synthetic"), [(B, [60])], [])
    with pytest.raises(SbpError, match=f"d1 {B.hex()} of the synthetic text is not in the corpus shard"):
        packed_megadocs(corpus, synthetic, new_artifact("lm"), 20)
