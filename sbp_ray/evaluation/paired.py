"""Arms compared on the same units, which are documents or questions: values by seed, gains, and how sure they are.

A *gain* is how much better an arm is than another with the same seeds: above zero it is better. Likelihoods and
benchmarks are compared by the same code; they differ in what is better, and in whether their units have groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sbp_ray.evaluation.intervals import bootstrap_ratio, estimate_over_groups, mean_interval
from sbp_ray.evaluation.study import BASELINE

# S = seeds, N = units

Values = Mapping[str, Mapping[int, float]]
"""By name of the arm and seed."""


@dataclass(frozen=True)
class Comparison:
    """One measure of all arms: Σ sums / Σ sizes over the units."""

    sums: Mapping[str, Mapping[int, np.ndarray]]
    """By arm and seed, a number of each unit."""
    sizes_N: np.ndarray
    better: int
    """1 where higher values are better, -1 where lower ones are."""
    groups: Sequence[str] | None
    """Of each unit; without them units are questions, which are drawn by themselves."""
    seed: int
    """Of the draws."""

    @cached_property
    def values(self) -> Values:
        total = self.sizes_N.sum()
        return {arm: {s: float(sum_N.sum() / total) for s, sum_N in sorted(seeds.items())}
                for arm, seeds in self.sums.items()}  # fmt: skip

    def describe(self, arm: str) -> dict[str, Any]:
        """An arm's values, and its gain over repetition."""
        values_S, by_seed = list(self.values[arm].values()), {str(s): value for s, value in self.values[arm].items()}
        found = {"by_seed": by_seed, "mean": float(np.mean(values_S)), "interval": over_seeds(values_S)}
        return found | self.gain(arm, BASELINE)

    def gain(self, arm: str, other: str) -> dict[str, Any]:
        """What an arm gains over another, with an interval over seeds and one over units."""
        found, over = gain_beside(self.values, arm, other, better=self.better), None
        if both := paired_seeds(self.values, arm, other):
            gain_N = self.better * np.mean([self.sums[arm][s] - self.sums[other][s] for s in both], axis=0)
            if self.groups is not None:
                over = estimate_over_groups(gain_N, self.sizes_N, self.groups, seed=self.seed)
            else:
                interval = bootstrap_ratio(gain_N, self.sizes_N, seed=self.seed)
                over = {**interval._asdict(), "unit": "questions", "units": len(gain_N)}
        return {**found, "over_questions" if self.groups is None else "over_groups": over}


def over_seeds(values_S: Sequence[float]) -> dict[str, Any] | None:
    """Their mean with a 95 % t-interval; None for a single seed."""
    interval = mean_interval(values_S)
    return None if interval is None else {**interval._asdict(), "unit": "seeds", "units": len(values_S)}


def gain_beside(values: Values, arm: str, other: str, *, better: int = -1) -> dict[str, Any]:
    """What an arm gains over another, paired by seed."""
    gain_S = [better * (values[arm][seed] - values[other][seed]) for seed in paired_seeds(values, arm, other)]
    return {"gain": float(np.mean(gain_S)) if gain_S else None, "over_seeds": over_seeds(gain_S)}


def paired_seeds(values: Values, arm: str, *others: str) -> list[int]:
    """Seeds that all of them have; none beside itself."""
    return [] if arm in others else sorted(set(values[arm]).intersection(*(values[other] for other in others)))
