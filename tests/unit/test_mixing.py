from collections import Counter
from itertools import pairwise

import pytest

from sbp_ray.mixing import Mixture, Source

REAL = Source("real", (5, 3, 4))
SYNTHETIC = Source("synthetic", (6, 4))


def mixture(total_rows: int, once_rows: int, seed: int = 0) -> Mixture:
    return Mixture(REAL, SYNTHETIC, total_rows, once_rows, seed)


def test_each_synthetic_row_comes_at_most_once() -> None:
    order = mixture(40, 10)
    addresses = [order.address(row) for row in range(40)]
    synthetic = [address for address in addresses if address.source == "synthetic"]
    assert len(synthetic) == 10
    assert len(set(synthetic)) == 10
    assert {address.epoch for address in synthetic} == {0}


def test_synthetic_rows_lie_evenly_over_the_run() -> None:
    order = mixture(80, 10)
    are_synthetic = [order.address(row).source == "synthetic" for row in range(80)]
    assert [sum(are_synthetic[start : start + 8]) for start in range(0, 80, 8)] == [1] * 10


def test_a_tail_is_real_alone_and_synthetic_rows_lie_evenly_before_it() -> None:
    """40 rows of which the last 16 are real: 6 synthetic ones among 24, every fourth of them."""
    order = Mixture(REAL, SYNTHETIC, 40, 6, 0, tail_rows=16)
    are_synthetic = [order.address(row).source == "synthetic" for row in range(40)]
    assert are_synthetic == [False, False, False, True] * 6 + [False] * 16


def test_with_all_real_text_in_the_tail_synthetic_text_comes_first_and_no_row_is_another() -> None:
    first, mixed = Mixture(REAL, SYNTHETIC, 40, 10, 0, tail_rows=30), mixture(40, 10)
    addresses = [first.address(row) for row in range(40)]
    assert [address.source for address in addresses] == ["synthetic"] * 10 + ["real"] * 30
    in_order = [mixed.address(row) for row in range(40)]
    for source in ("synthetic", "real"):
        assert [a for a in addresses if a.source == source] == [a for a in in_order if a.source == source]


def test_a_tail_without_room_for_the_synthetic_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="10 rows of 10, in a run of 40, the last 31 without"):
        Mixture(REAL, SYNTHETIC, 40, 10, 0, tail_rows=31)


def test_real_rows_come_once_in_each_pass_and_in_another_order_in_the_next() -> None:
    order = mixture(36, 0)
    passes = [[order.address(row)[2:] for row in range(start, start + 12)] for start in (0, 12, 24)]
    everything = {(shard, position) for shard, rows in enumerate(REAL.shard_rows) for position in range(rows)}
    assert all(set(one) == everything for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_pass_reads_shard_after_shard() -> None:
    order = mixture(12, 0)
    shards = [order.address(row).shard for row in range(12)]
    changes = sum(before != after for before, after in pairwise(shards))
    assert changes == 2  # 3 shards: each is opened once


def test_the_order_does_not_depend_on_who_asks_first() -> None:
    """Workers ask for every n-th row, a resumed run for the last ones."""
    in_order = [mixture(40, 10).address(row) for row in range(40)]
    order = mixture(40, 10)
    assert [order.address(row) for row in reversed(range(40))] == in_order[::-1]


def test_another_seed_gives_another_order() -> None:
    assert [mixture(12, 0, seed=1).address(row) for row in range(12)] != [
        mixture(12, 0, seed=2).address(row) for row in range(12)
    ]


def test_the_counts_are_those_of_the_addresses() -> None:
    order = mixture(40, 10)
    assert order.rows() == {"real": 30, "synthetic": 10}
    assert Counter(order.address(row).source for row in range(40)) == order.rows()


def test_more_synthetic_rows_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="11 rows of 10, in a run of 40"):
        mixture(40, 11)


def test_a_single_source_has_no_share_of_another() -> None:
    assert Mixture(REAL, None, 24, 0, 0).rows() == {"real": 24}


def test_a_row_beyond_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="row 40 of 40"):
        mixture(40, 10).address(40)


def test_no_real_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="source real has no rows"):
        Mixture(Source("real", ()), SYNTHETIC, 8, 4, 0)
