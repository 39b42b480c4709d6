"""How far two implementations of one model may be apart."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from sbp_ray.config import Dtype


class Difference(NamedTuple):
    """Of tokens' log-probabilities under two implementations, in nats."""

    mean: float
    high: float
    """All tokens but one of a thousand differ by no more; of fewer tokens than that, all."""


TOLERANCE: dict[Dtype, Difference] = {"float32": Difference(1e-3, 1e-3), "bfloat16": Difference(0.02, 0.25)}
"""What two orders of sums may come to. bfloat16 keeps 8 bits: single tokens then differ by any amount, and the mean by
little. What an export can lose (a head in another's place, another base of the rotation) shows in the mean."""
_SHARE = 0.999


def summarize(differences: list[float]) -> Difference:
    """Infinite where one of them is not a number."""
    if not all(map(math.isfinite, differences)):
        return Difference(math.inf, math.inf)
    return Difference(statistics.fmean(differences), sorted(differences)[math.ceil(_SHARE * len(differences)) - 1])
