import random

import pytest

from sbp_ray.text.packing import pack_examples
from sbp_ray.text.pair_format import Example


def example(length: int, first_id: int = 0) -> Example:
    return Example(list(range(first_id, first_id + length)), [False] + [True] * (length - 1))


def test_each_document_goes_into_the_fullest_row_that_has_room() -> None:
    # Longest first: 6 and 5 open a row each; 4 just fills the first; 3 and 2 fill the second.
    rows, stats = pack_examples([example(n, 10 * n) for n in (2, 3, 4, 5, 6)], seq_len=10)
    assert rows["input_ids"].to_pylist() == [
        [60, 61, 62, 63, 64, 65, 40, 41, 42, 43],
        [50, 51, 52, 53, 54, 30, 31, 32, 20, 21],
    ]
    assert rows["document_ids"].to_pylist() == [[0] * 6 + [1] * 4, [0] * 5 + [1] * 3 + [2] * 2]
    assert stats == {"rows": 2, "examples": 5, "splits": 0, "tokens": 20, "graded_tokens": 15, "padding": 0}


def test_padding_is_no_document_and_is_not_graded() -> None:
    rows, stats = pack_examples([example(3, 7)], seq_len=5)
    assert rows.to_pylist() == [
        {
            "input_ids": [7, 8, 9, 0, 0],
            "loss_mask": [False, True, True, False, False],
            "document_ids": [0, 0, 0, -1, -1],
        }
    ]
    assert stats["padding"] == 2
    assert stats["tokens"] == 3


def test_a_document_longer_than_a_row_becomes_pieces_that_count_as_documents() -> None:
    rows, stats = pack_examples([example(23)], seq_len=10)
    assert [
        [t for t, d in zip(row["input_ids"], row["document_ids"], strict=True) if d >= 0] for row in rows.to_pylist()
    ] == [
        list(range(10)),
        list(range(10, 20)),
        [20, 21, 22],
    ]
    assert stats["splits"] == 1
    assert stats["graded_tokens"] == 20  # 22 of the document, less the first token of the second and third piece


def test_nothing_packs_into_nothing() -> None:
    rows, stats = pack_examples([], seq_len=8)
    assert rows.num_rows == 0
    assert stats["rows"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_every_document_is_in_exactly_one_row_whole(seed: int) -> None:
    draw = random.Random(seed)
    examples = [Example([n] * draw.randint(1, 64), []) for n in range(300)]
    examples = [Example(ids, [False] + [True] * (len(ids) - 1)) for ids, _ in examples]
    rows, stats = pack_examples(examples, seq_len=64)
    found = []
    for row in rows.to_pylist():
        for document in range(max(row["document_ids"]) + 1):
            found.append([t for t, d in zip(row["input_ids"], row["document_ids"], strict=True) if d == document])
    assert sorted(found) == sorted(ids for ids, _ in examples)
    assert stats["padding"] < 0.04 * 64 * stats["rows"]
