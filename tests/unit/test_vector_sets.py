"""The neighbours benchmark: its vectors are the same for everybody, and so is what counts as found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from neighbor_tuning import recall_at_k, without_self
from vector_sets import clustered, exact_neighbors


def _on_circle(degrees: list[float]) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_one_seed_gives_the_same_unit_vectors_and_another_gives_others() -> None:
    first, again, other = clustered(500, dim=32), clustered(500, dim=32), clustered(500, dim=32, seed=1)
    assert first.shape == (500, 32) and first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.isclose(first, other).all(axis=1).any()
    assert np.linalg.norm(first, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_exact_neighbours_leave_out_the_query_itself() -> None:
    vectors = _on_circle([0, 10, 30, 90])
    rows, cosines = exact_neighbors(vectors, np.array([0, 2]), 2)
    assert rows.tolist() == [[1, 2], [1, 0]]
    assert cosines[0] == pytest.approx([np.cos(np.radians(10)), np.cos(np.radians(30))])


def test_a_tie_with_the_last_neighbour_counts_and_a_repeated_one_counts_once() -> None:
    vectors = _on_circle([0, 10, -10, 90])  # rows 1 and 2 are equally far from row 0
    query, exact = np.array([0]), np.cos(np.radians([[10.0]])).astype(np.float32)
    assert recall_at_k(vectors, query, np.array([[2]]), exact) == 1
    assert recall_at_k(vectors, query, np.array([[3]]), exact) == 0
    assert recall_at_k(vectors, query, np.array([[0]]), exact) == 0
    exact = np.cos(np.radians([[10.0, 90.0]])).astype(np.float32)
    assert recall_at_k(vectors, query, np.array([[1, 1]]), exact) == 0.5
    assert recall_at_k(vectors, query, np.array([[1, -1]]), exact) == 0.5


def test_a_query_that_did_not_find_itself_loses_its_last_neighbour() -> None:
    found = np.array([[7, 1, 2], [3, 4, 5]])
    assert without_self(found, np.array([7, 9])).tolist() == [[1, 2], [3, 4]]
