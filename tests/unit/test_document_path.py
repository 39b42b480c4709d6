"""The way through related documents, worked out by hand."""

from __future__ import annotations

import random

import numpy as np

from sbp_ray.training.in_context_rows import find_path


def path(num_documents: int, related: dict[int, list[int]]) -> list[int]:
    pairs = [(one, other) for one, others in related.items() for other in others]
    from_N, to_N = np.array(pairs, np.int64).reshape(-1, 2).T
    return find_path(num_documents, from_N, to_N).tolist()


def test_from_each_document_the_path_goes_to_the_nearest_related_one_that_is_left() -> None:
    """1 has the fewest related documents. From it to 3, whose nearest is 0; of 0 only 2 is left."""
    assert path(4, {1: [3], 3: [0, 1, 2], 0: [3, 1, 2], 2: [0, 3]}) == [1, 3, 0, 2]


def test_where_it_ends_it_goes_on_with_the_document_that_has_the_fewest_related_ones() -> None:
    """4 has none and 3 has one, from which 2 follows, whose 3 is behind; 0 and 1 have two each."""
    assert path(5, {0: [1, 2], 1: [0, 3], 2: [3, 0, 1], 3: [2]}) == [4, 3, 2, 0, 1]


def test_without_pairs_it_is_the_order_of_the_documents() -> None:
    assert path(3, {}) == [0, 1, 2]
    assert path(0, {}) == []


def test_it_comes_to_each_document_once_and_the_pairs_may_lie_in_any_order() -> None:
    draw = random.Random(0)
    related = {one: draw.sample(range(50), draw.randint(0, 6)) for one in range(50)}
    related = {one: [other for other in others if other != one] for one, others in related.items()}
    found = path(50, related)
    assert sorted(found) == list(range(50))
    assert path(50, dict(reversed(related.items()))) == found
