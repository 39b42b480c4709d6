"""Intervals over seeds, with values worked out by hand: t(0.975; 2) = 4.302653."""

import numpy as np
import pytest

from sbp_ray.experiment.statistics import mean_interval, share_of_gain


def test_the_mean_of_three_seeds_has_a_t_interval() -> None:
    """Standard deviation 1, standard error 1/sqrt(3) = 0.57735, times 4.302653 = 2.484138."""
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.484138, 4.484138), abs=1e-6)


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([1.0]) is None


def test_equal_seeds_have_an_interval_of_no_width() -> None:
    assert mean_interval([0.5, 0.5]) == pytest.approx((0.5, 0.5, 0.5))


def test_the_share_of_a_fixed_whole_is_the_t_interval_divided_by_it() -> None:
    """Gains 1, 2, 3 of 10 each: (2 +- 2.484138) / 10."""
    assert share_of_gain([1.0, 2.0, 3.0], [10.0, 10.0, 10.0]) == pytest.approx((0.2, -0.0484138, 0.4484138), abs=1e-6)


def test_a_gain_in_proportion_to_the_whole_is_a_share_without_doubt() -> None:
    """Half with each seed, however much the whole varies."""
    assert share_of_gain([4.5, 5.0, 5.5], [9.0, 10.0, 11.0]) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)


def test_there_is_no_share_of_a_gain_that_may_be_zero() -> None:
    assert share_of_gain([1.0, 2.0, 3.0], [-1.0, 0.5, 3.0]) is None
    assert share_of_gain([1.0], [5.0]) is None


def test_intervals_hold_what_they_promise() -> None:
    """True share 0.4: 95 % of 2,000 draws of four seeds, give or take 1.5 %."""
    rng = np.random.default_rng(0)
    held = num = 0
    for _ in range(2000):
        whole_S = rng.normal(10, 1, 4)
        found = share_of_gain(list(rng.normal(4, 1, 4)), list(whole_S))
        if found is not None:
            num += 1
            held += found.low <= 0.4 <= found.high
    assert num > 1900
    assert held / num == pytest.approx(0.95, abs=0.015)
