"""Which documents share a row, how a shard of rows is written, and how much another packing changes."""

import random
from itertools import combinations

import numpy as np
import pytest
from packed_rows import documents_of, read_rows, write_examples

from sbp_ray.artifacts import Artifact
from sbp_ray.schema import PACKED_DOCUMENT
from sbp_ray.text.packing import PackedRows, best_fit, repack, with_spare_rows
from sbp_ray.text.pair_format import Example

WINDOW = 64


@pytest.fixture
def out(new_artifact) -> Artifact:
    return new_artifact("lm")


def example(length: int, first_id: int = 0) -> Example:
    return Example(np.arange(first_id, first_id + length, dtype=np.int32), 1)


def test_each_document_goes_into_the_fullest_row_that_has_room(out: Artifact) -> None:
    # Longest first: 6 and 5 open a row each; 4 just fills the first; 3 and 2 fill the second.
    stats = write_examples(out, "real", [example(n, 10 * n) for n in (2, 3, 4, 5, 6)], 10)
    rows = read_rows(out, "real", 10)
    assert [row.input_ids_T.tolist() for row in rows] == [
        [60, 61, 62, 63, 64, 65, 40, 41, 42, 43],
        [50, 51, 52, 53, 54, 30, 31, 32, 20, 21],
    ]
    assert [row.document_ids_T.tolist() for row in rows] == [[0] * 6 + [1] * 4, [0] * 5 + [1] * 3 + [2] * 2]
    assert stats == {"rows": 2, "examples": 5, "splits": 0, "tokens": 20, "supervised_tokens": 15, "padding": 0}


def test_padding_is_no_document_is_not_supervised_and_is_not_on_disk(out: Artifact) -> None:
    stats = write_examples(out, "real", [example(3, 7)], 5)
    [row] = read_rows(out, "real", 5)
    assert row.input_ids_T.tolist() == [7, 8, 9, 0, 0]
    assert row.loss_mask_T.tolist() == [False, True, True, False, False]
    assert row.document_ids_T.tolist() == [0, 0, 0, -1, -1]
    assert (stats["padding"], stats["tokens"]) == (2, 3)
    assert out.read_bytes("rows/real/part-00000.bin") == bytes([7, 0, 8, 0, 9, 0])  # little-endian uint16


def test_only_what_follows_the_prompt_is_supervised(out: Artifact) -> None:
    pairs = [Example(np.full(6, 9, np.int32), 4), Example(np.full(3, 8, np.int32), 2)]
    write_examples(out, "pairs", pairs, 10)
    [row] = read_rows(out, "pairs", 10)
    assert row.loss_mask_T.tolist() == [False] * 4 + [True] * 2 + [False] * 2 + [True] + [False]


def test_a_document_longer_than_a_row_becomes_parts_that_count_as_documents(out: Artifact) -> None:
    stats = write_examples(out, "real", [example(23)], 10)
    documents = [document for row in read_rows(out, "real", 10) for document in documents_of(row)]
    assert [ids for ids, _ in documents] == [list(range(10)), list(range(10, 20)), [20, 21, 22]]
    assert [mask[0] for _, mask in documents] == [False] * 3
    assert stats["splits"] == 1
    assert stats["supervised_tokens"] == 20  # 22 of the document, less the first token of the second and third part


def test_a_part_before_the_supervised_tokens_has_none(out: Artifact) -> None:
    stats = write_examples(out, "real", [Example(np.arange(9, dtype=np.int32), 5)], 3)
    masks = [row.loss_mask_T.tolist() for row in read_rows(out, "real", 3)]
    assert masks == [[False] * 3, [False, False, True], [False, True, True]]
    assert stats["supervised_tokens"] == 3  # of four: the first of the last part has no context


def test_nothing_packs_into_nothing(out: Artifact) -> None:
    stats = write_examples(out, "real", [], 8)
    assert read_rows(out, "real", 8) == []
    assert stats["rows"] == 0


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_the_vocabulary_decides_the_bytes_of_a_token(out: Artifact, vocab_size: int, dtype: str) -> None:
    last = Example(np.array([1, vocab_size - 1], np.int32), 1)
    write_examples(out, "real", [last], 2, vocab_size=vocab_size)
    assert len(out.read_bytes("rows/real/part-00000.bin")) == 2 * np.dtype(dtype).itemsize
    [row] = read_rows(out, "real", 2)
    assert row.input_ids_T.tolist() == [1, vocab_size - 1]


def test_a_token_outside_of_the_vocabulary_is_never_written_as_another(out: Artifact) -> None:
    with pytest.raises(AssertionError, match="token 65537 of a vocabulary of 320"):
        write_examples(out, "real", [Example(np.array([1, 65_537], np.int32), 1)], 2)
    assert out.files("rows/real") == []


def random_examples(seed: int, number: int = 300) -> list[Example]:
    draw = random.Random(seed)
    return [Example(np.full(draw.randint(1, WINDOW), n, np.int32), 1) for n in range(number)]


@pytest.mark.parametrize("is_anew", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_document_is_in_exactly_one_row_whole(out: Artifact, seed: int, is_anew: bool) -> None:
    examples = random_examples(seed)
    stats = write_examples(out, "real", examples, WINDOW)
    rows = read_rows(out, "real", WINDOW, rng=np.random.default_rng(seed) if is_anew else None)
    assert len(rows) == stats["rows"]
    documents = [document for row in rows for document in documents_of(row)]
    assert sorted(documents) == sorted((e.input_ids.tolist(), e.loss_mask.tolist()) for e in examples)
    assert stats["padding"] < 0.04 * WINDOW * stats["rows"]


# Packed anew

LENGTHS = {
    "a small corpus": (500, 1024, 160, 0.4),
    "full rows of few documents": (3000, 256, 100, 0.3),
    "very many documents": (30_000, 4096, 500, 1.0),
}
"""Documents, tokens of a row, median length, spread of its logarithm."""


def drawn_lengths(name: str) -> tuple[np.ndarray, int]:
    number, seq_len, median, spread = LENGTHS[name]
    lengths = np.random.default_rng(0).lognormal(np.log(median), spread, number)
    return np.clip(lengths, 2, seq_len).astype(np.int64), seq_len


def neighbors(rows: PackedRows) -> set[tuple[int, int]]:
    """Every two documents that share a row."""
    return {pair for row in range(len(rows.ends_R)) for pair in combinations(sorted(rows.parts_of(row).tolist()), 2)}


@pytest.mark.parametrize("name", LENGTHS)
def test_another_packing_has_as_many_rows_and_few_documents_meet_again(name: str) -> None:
    length_P, seq_len = drawn_lengths(name)
    written = with_spare_rows(best_fit(length_P, seq_len))
    plans = [written, *(repack(written, length_P, seq_len, np.random.default_rng(epoch)) for epoch in (1, 2, 3))]
    for plan in plans:
        assert sorted(plan.order_P.tolist()) == list(range(len(length_P)))
        tokens_R = np.diff(np.cumsum(length_P[plan.order_P])[plan.ends_R - 1], prepend=0)
        assert len(tokens_R) == len(written.ends_R)
        assert tokens_R.max() <= seq_len
        assert (tokens_R == 0).sum() <= 0.002 * len(tokens_R)
    met = [neighbors(plan) for plan in plans]
    assert max(len(a & b) / len(a) for a, b in combinations(met, 2)) < 0.1


def test_where_only_one_packing_fits_equal_lengths_trade_places() -> None:
    """Three rows of 7 + 3 and no room left: any other order would take more rows."""
    length_P = np.array([7, 3, 7, 3, 7, 3])
    written = best_fit(length_P, 10)
    plans = [repack(written, length_P, 10, np.random.default_rng(epoch)) for epoch in range(20)]
    assert all(length_P[plan.order_P].reshape(3, 2).sum(axis=1).tolist() == [10, 10, 10] for plan in plans)
    assert len({frozenset(neighbors(plan)) for plan in plans}) == 6  # each of the ways to marry 3 and 3


def test_the_same_random_numbers_give_the_same_packing() -> None:
    length_P, seq_len = drawn_lengths("a small corpus")
    written = best_fit(length_P, seq_len)
    one, other = (repack(written, length_P, seq_len, np.random.default_rng(7)) for _ in range(2))
    assert (one.order_P == other.order_P).all()


def test_the_index_is_a_table_of_documents(out: Artifact) -> None:
    write_examples(out, "real", [example(4), Example(np.arange(3, dtype=np.int32), 2), example(2)], 5)
    index = out.read_table("rows/real/part-00000.parquet")
    assert index.schema.remove_metadata() == PACKED_DOCUMENT
    assert index.to_pylist() == [
        {"length": 4, "first_supervised": 1, "row": 0},
        {"length": 3, "first_supervised": 2, "row": 1},
        {"length": 2, "first_supervised": 1, "row": 1},
    ]
