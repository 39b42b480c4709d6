"""Intervals over seeds: how far a number would move with other seeds, as far as so few of them can tell.

Student's t, since seeds are few; differences are paired by seed, so that what a seed does to all arms (the order of the
rows, the initial weights) cancels. The share of a gain is a ratio of two such means: its interval is Fieller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from sbp_ray.evaluation.intervals import COVERAGE, Interval

# S = seeds


def mean_interval(values_S: Sequence[float]) -> Interval | None:
    """Mean and its 95 % t-interval; None for fewer than two seeds, which tell nothing of others."""
    if len(values_S) < 2:
        return None
    mean = float(np.mean(values_S))
    half = _t(len(values_S)) * float(np.std(values_S, ddof=1)) / math.sqrt(len(values_S))
    return Interval(mean, mean - half, mean + half)


def share_of_gain(gain_S: Sequence[float], whole_S: Sequence[float]) -> Interval | None:
    """Mean gain over mean whole gain, with Fieller's 95 % interval.

    Args:
        gain_S: what an arm gained over the baseline with each seed.
        whole_S: what the oracle gained over the baseline with the same seed.

    Returns:
        None where the oracle's gain is not distinguishable from zero: then the ratio has no bounded interval.
    """
    whole = mean_interval(whole_S)
    if whole is None or not whole.excludes_zero():
        return None
    x, y = float(np.mean(gain_S)), float(np.mean(whole_S))
    (v_xx, v_xy), (_, v_yy) = np.cov(gain_S, whole_S) / len(gain_S)
    t2 = _t(len(gain_S)) ** 2
    # The ratios r that (x - r y) does not contradict: r^2 (y^2 - t^2 v_yy) - 2 r (x y - t^2 v_xy) + x^2 - t^2 v_xx <= 0
    a, b, c = y * y - t2 * v_yy, x * y - t2 * v_xy, x * x - t2 * v_xx
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval(x / y, (b - root) / a, (b + root) / a)


def _t(num_seeds: int) -> float:
    return float(stats.t.ppf((1 + COVERAGE) / 2, num_seeds - 1))
