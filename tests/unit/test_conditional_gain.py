"""What d1 is worth, from the NLL of each held-out pair."""

import numpy as np
import pytest

from sbp_ray.stages.tune import gain_summary


def test_each_pair_counts_by_its_tokens_and_differences_are_paired() -> None:
    summary = gain_summary(
        np.array([10, 30]),
        {
            "nll_given_d1": np.array([40.0, 60.0]),
            "nll_given_random": np.array([45.0, 75.0]),  # half a nat a token more in both pairs
            "nll_alone": np.array([30.0, 90.0]),
        },
    )
    assert summary["nll_given_d1"] == pytest.approx(100 / 40)
    assert summary["nll_alone"] == pytest.approx(120 / 40)
    assert summary["saved_over_random"] == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    nothing = summary["saved_over_nothing"]
    assert nothing["value"] == pytest.approx(20 / 40)
    assert nothing["low"] == pytest.approx(-1.0)  # draws of the first pair alone: 10 nats more in 10 tokens
    assert nothing["high"] == pytest.approx(1.0)  # of the second alone: 30 nats less in 30 tokens
