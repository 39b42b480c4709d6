"""Bootstrap intervals: how far a number would move with another draw of the same size."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

# N = units that are drawn again: documents or questions, R = resamples

NUM_RESAMPLES = 2000
COVERAGE = 0.95
_CELLS_AT_ONCE = 2**22  # 32 MiB of indices


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float]:
        return self._asdict()


def bootstrap_ratio(numerator_N: ArrayLike, denominator_N: ArrayLike | None = None, *, seed: int = 0) -> Interval:
    """Interval of Σ numerator / Σ denominator over units drawn with replacement; a mean without a denominator.

    For a paired comparison the numerator is each unit's difference: both arms are drawn together, so what makes a
    question hard for both does not widen the interval.

    Raises:
        ValueError: no units, or the lengths differ.
    """
    top_N = np.asarray(numerator_N, np.float64)
    bottom_N = np.ones_like(top_N) if denominator_N is None else np.asarray(denominator_N, np.float64)
    if not top_N.size or top_N.shape != bottom_N.shape:
        raise ValueError(f"need as many numerators as denominators, and one at least: {top_N.shape}, {bottom_N.shape}")
    generator = np.random.default_rng(seed)
    ratio_R = np.concatenate([_ratios(top_N, bottom_N, part, generator) for part in _parts(top_N.size)])
    low, high = np.quantile(ratio_R, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Interval(float(top_N.sum() / bottom_N.sum()), float(low), float(high))


def _parts(num_units: int) -> list[int]:
    """Sizes of the groups of resamples that are made at once."""
    at_once = max(1, min(NUM_RESAMPLES, _CELLS_AT_ONCE // num_units))
    return [min(at_once, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, at_once)]


def _ratios(top_N: Any, bottom_N: Any, num_resamples: int, generator: np.random.Generator) -> Any:
    drawn_RN = generator.integers(top_N.size, size=(num_resamples, top_N.size))
    return top_N[drawn_RN].sum(axis=1) / bottom_N[drawn_RN].sum(axis=1)
