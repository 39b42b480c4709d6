"""Intervals over seeds, groups and questions, with values worked out by hand: t(0.975; 2) = 4.302653."""

from __future__ import annotations

import numpy as np
import pytest

from sbp_ray.evaluation.intervals import (
    MIN_GROUPS,
    bootstrap_ratio,
    connected_groups,
    estimate_over_groups,
    mean_interval,
    share_of_gain,
)

# Independent units


def test_equal_units_leave_no_doubt() -> None:
    assert bootstrap_ratio([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_the_interval_of_a_mean_is_two_standard_errors_wide() -> None:
    found = bootstrap_ratio([0.0, 1.0] * 200)  # standard error 0.5 / sqrt(400) = 0.025
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.005)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.005)


def test_a_ratio_weighs_units_by_their_size() -> None:
    assert bootstrap_ratio([3.0, 1.0], [1, 3]).value == 1.0  # not the mean of 3 and 1/3


def test_the_interval_is_the_same_again_and_for_many_units() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    assert bootstrap_ratio(values, seed=3) == bootstrap_ratio(values, seed=3)


@pytest.mark.parametrize(("numerator", "denominator"), [([], []), ([1.0], [1.0, 2.0])])
def test_nothing_to_draw_from_is_an_error(numerator: list[float], denominator: list[float]) -> None:
    with pytest.raises(ValueError, match="numerators"):
        bootstrap_ratio(numerator, denominator)


# Groups


def draw_grouped(rng: np.random.Generator, num_groups: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Documents of articles: what an article does to all of its documents is as large as what each does by itself.

    The true gain is 0.05 nats a token.
    """
    group_M = np.repeat(np.arange(num_groups), rng.integers(2, 20, num_groups))
    tokens_M = rng.integers(50, 400, len(group_M))
    shared_M = rng.normal(0, 0.1, num_groups)[group_M]
    return (0.05 + shared_M + rng.normal(0, 0.1, len(group_M))) * tokens_M, tokens_M, [f"{g}" for g in group_M]


@pytest.mark.parametrize("num_groups", [MIN_GROUPS, 30])
def test_groups_drawn_again_hold_what_they_promise_and_documents_do_not(num_groups: int) -> None:
    """95 % of 500 draws, give or take three standard errors: 2.9 %."""
    rng = np.random.default_rng(0)
    held_by_groups = held_by_documents = 0
    for seed in range(500):
        gain_M, tokens_M, group_M = draw_grouped(rng, num_groups)
        found = estimate_over_groups(gain_M, tokens_M, group_M, seed=seed)
        held_by_groups += found["low"] <= 0.05 <= found["high"]
        low, high = bootstrap_ratio(gain_M, tokens_M, seed=seed)[1:]
        held_by_documents += low <= 0.05 <= high
    assert held_by_groups / 500 == pytest.approx(0.95, abs=0.029)
    assert held_by_documents / 500 < 0.7


def test_too_few_groups_have_a_value_and_no_interval() -> None:
    found = estimate_over_groups([1.0, 2.0, 3.0], [1, 1, 2], ["a", "b", "a"])
    assert found == {"value": 1.5, "unit": "groups", "units": 2}
    nine = [str(group) for group in range(MIN_GROUPS - 1)]
    assert "low" not in estimate_over_groups([1.0] * 90, [1] * 90, nine * 10)


def test_a_group_is_drawn_with_all_of_its_members() -> None:
    """Members of a group that cancel leave no doubt, however far apart they are."""
    groups = [str(group) for group in range(MIN_GROUPS)] * 2
    found = estimate_over_groups([5.0] * MIN_GROUPS + [-3.0] * MIN_GROUPS, [1] * len(groups), groups)
    assert found == {"unit": "groups", "units": MIN_GROUPS, "value": 1.0, "low": 1.0, "high": 1.0}


def test_pairs_that_share_a_group_stay_together() -> None:
    """a-b and b-c are connected by b, d-d and e-d by d; f is alone."""
    labels = connected_groups(["a", "d", "b", "f", "e"], ["b", "d", "c", "f", "d"])
    assert labels[0] == labels[2] and labels[1] == labels[4]
    assert len(set(labels)) == 3


# Seeds


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


def test_there_is_no_share_of_a_loss() -> None:
    assert share_of_gain([1.0, 2.0, 3.0], [-10.0, -10.0, -10.0]) is None


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
