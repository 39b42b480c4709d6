from __future__ import annotations

import numpy as np
import pytest

from sbp_ray.text.shingles import containment, shingle_hashes


def test_a_document_of_t_tokens_has_t_minus_12_shingles() -> None:
    assert shingle_hashes(range(20), 13).size == 8
    assert shingle_hashes(range(13), 13).size == 1


def test_a_repeated_run_is_one_shingle() -> None:
    assert shingle_hashes([7] * 30, 13).size == 1
    assert shingle_hashes([1, 2, 1, 2, 1], 2).size == 2  # (1, 2) and (2, 1)


def test_a_short_document_is_one_shingle() -> None:
    assert shingle_hashes([1, 2, 3], 13).size == 1
    assert shingle_hashes([], 13).size == 0
    assert shingle_hashes([1, 2, 3], 13) != shingle_hashes([1, 2], 13)


def test_order_counts() -> None:
    assert shingle_hashes([1, 2], 2) != shingle_hashes([2, 1], 2)
    assert shingle_hashes([0, 0, 1], 3) != shingle_hashes([0, 1, 0], 3)


def test_shifted_by_one_of_20() -> None:
    a, b = shingle_hashes(range(20), 13), shingle_hashes(range(1, 21), 13)  # 8 each, 7 in common
    assert containment(a, b) == pytest.approx(7 / 8)


def test_containment_has_a_direction() -> None:
    short, long = shingle_hashes(range(20), 13), shingle_hashes(range(32), 13)  # 8 of 20
    assert containment(short, long) == 1
    assert containment(long, short) == pytest.approx(8 / 20)


def test_nothing_is_contained_in_nothing() -> None:
    none = shingle_hashes([])
    assert containment(none, none) == 0


def test_hashes_do_not_collide_by_the_thousand() -> None:
    rng = np.random.default_rng(0)
    assert shingle_hashes(rng.integers(0, 50_000, 100_000), 3).size == 100_000 - 2


def test_no_tokens_make_no_shingle() -> None:
    with pytest.raises(ValueError, match="num_tokens"):
        shingle_hashes([1], 0)
