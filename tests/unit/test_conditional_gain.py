"""What d1 is worth, from the NLL of each held-out pair."""

import numpy as np
import pytest

from sbp_ray.evaluation.intervals import MIN_GROUPS
from sbp_ray.stages.tune import summarize_gain

NLL = {
    "nll_given_d1": np.array([40.0, 60.0]),
    "nll_given_random": np.array([45.0, 75.0]),  # half a nat a token more in both pairs
    "nll_alone": np.array([30.0, 90.0]),
}


def test_each_pair_counts_by_its_tokens_and_differences_are_paired() -> None:
    again = {name: np.tile(nll_N, MIN_GROUPS) for name, nll_N in NLL.items()}
    groups = [str(group) for group in range(2 * MIN_GROUPS)]
    summary = summarize_gain(np.array([10, 30] * MIN_GROUPS), again, groups)
    assert summary["nll_given_d1"] == pytest.approx(100 / 40)
    assert summary["nll_alone"] == pytest.approx(120 / 40)
    half = {name: pytest.approx(0.5) for name in ("value", "low", "high")}
    assert summary["saved_over_random"] == {**half, "unit": "groups", "units": 2 * MIN_GROUPS}
    nothing = summary["saved_over_nothing"]
    assert nothing["value"] == pytest.approx(20 / 40)
    assert -1.0 < nothing["low"] < 0.5 < nothing["high"] < 1.0  # -10 nats in 10 tokens, or 30 in 30


def test_pairs_of_few_groups_have_a_gain_and_no_interval() -> None:
    summary = summarize_gain(np.array([10, 30]), NLL, ["a", "a"])
    assert summary["saved_over_nothing"] == {"value": 0.5, "unit": "groups", "units": 1}
