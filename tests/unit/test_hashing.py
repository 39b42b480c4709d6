"""Hashes, and what is drawn by them."""

import numpy as np
import pyarrow as pa
import pytest

from sbp_ray.doc_ids import id_numbers, ids_to_numpy
from sbp_ray.evaluation.text_quality.samples import sample_rows
from sbp_ray.generation.d1 import choose_rows
from sbp_ray.schema import DOC_ID
from sbp_ray.text.hashing import hash64, hash_bytes, id_ranks, run_hashes


def random_ids(num: int) -> pa.Array:
    return pa.array([np.random.default_rng(n).bytes(16) for n in range(num)], DOC_ID)


def test_a_hash_is_the_same_in_every_process_and_another_in_every_domain() -> None:
    assert hash_bytes("a", "b", 1, num_bytes=8).hex() == "f54e8b0fcb4cfffc"
    assert hash64("a", "b", 1) == int("f54e8b0fcb4cfffc", 16)
    assert hash64("a", "b") != hash64("b", "b")


def test_parts_are_marked_off_from_one_another() -> None:
    assert len({hash64("x", *parts) for parts in [("ab",), ("a", "b"), ("", "ab"), ("ab", ""), ("a/b",)]}) == 5
    assert hash64("x", 12) == hash64("x", "12") == hash64("x", b"12")


def test_a_run_is_hashed_wherever_it_stands() -> None:
    values_T = np.array([5, 6, 7, 5, 6], np.uint64)
    assert run_hashes(values_T, 2)[0] == run_hashes(values_T, 2)[3]
    assert len({*run_hashes(values_T, 2).tolist()}) == 3
    assert run_hashes(values_T, 6).tolist() == []


def test_ids_are_chosen_evenly_and_a_larger_sample_holds_the_smaller_one() -> None:
    rank_N = id_ranks("test", 1, id_numbers(ids_to_numpy(random_ids(4000))))
    assert np.bincount(rank_N >> np.uint64(61)) == pytest.approx(np.full(8, 500), abs=85)
    other_N = id_ranks("test", 2, id_numbers(ids_to_numpy(random_ids(4000))))
    assert abs(np.corrcoef(rank_N.astype(float), other_N.astype(float))[0, 1]) < 0.05


def test_the_sample_of_real_text_and_the_d1_are_independent(new_artifact) -> None:
    """Both are drawn by id, with seed 0 by default. Of 1,000 documents, 300 of one draw hold 90 +- 8 of the other's."""
    table = pa.table({"doc_id": random_ids(1000)})
    corpus = new_artifact("corpus")
    corpus.write_table("train/part-00000.parquet", table)
    sample = sample_rows(corpus, "train", key=["doc_id"], columns=["doc_id"], limit=300, seed=0)
    d1 = table["doc_id"].take(choose_rows(table["doc_id"], 300, 0)).to_pylist()
    assert len({row["doc_id"] for row in sample} & {*d1}) == pytest.approx(90, abs=32)
