"""How far two implementations of one model may be apart: what an export, and each engine at its start, is checked by.

With an export lie held-out documents and what the trained model gave their tokens (`EXPORT_CHECK`), and once another
implementation has given them the same, what was compared (`CHECKED`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from sbp_ray.config import Dtype

EXPORT_CHECK, CHECKED = "export_check.json", "checked.json"


class ScoredDocument(TypedDict):
    """A held-out document as `EXPORT_CHECK` has it."""

    input_ids: list[int]
    positions: list[int]
    """Of the tokens that the trained model was taught to predict."""
    nll_nats: list[float]
    """What it gave each of them."""


class Difference(NamedTuple):
    """Of tokens' log-probabilities under two implementations, in nats."""

    mean: float
    high: float
    """All tokens but one of a thousand differ by no more; of fewer tokens than that, all."""


TOLERANCE: dict[Dtype, Difference] = {"float32": Difference(1e-3, 1e-3), "bfloat16": Difference(0.02, 0.25)}
"""What two orders of sums may come to. bfloat16 keeps 8 bits: single tokens then differ by any amount, and the mean by
little. What an export can lose (a head in another's place, another base of the rotation) shows in the mean."""
_SHARE = 0.999


def find_differences(documents: Sequence[ScoredDocument], nll_nats: Sequence[Sequence[float]]) -> list[float]:
    """Nats between what another implementation gives each of the kept tokens and what the trained model gave it.

    Args:
        nll_nats: of each document, of each of its tokens.
    """
    return [
        abs(found[position] - expected)
        for document, found in zip(documents, nll_nats, strict=True)
        for position, expected in zip(document["positions"], document["nll_nats"], strict=True)
    ]


def summarize(differences: list[float]) -> Difference:
    """Infinite where one of them is not a number."""
    if not all(map(math.isfinite, differences)):
        return Difference(math.inf, math.inf)
    return Difference(statistics.fmean(differences), sorted(differences)[math.ceil(_SHARE * len(differences)) - 1])


def is_within(found: Difference, tolerance: Difference) -> bool:
    """Whether both may be the same model."""
    return found.mean <= tolerance.mean and found.high <= tolerance.high


def describe_excess(found: Difference, tolerance: Difference, dtype: Dtype) -> str:
    """The part of a sentence that says what is too far apart."""
    return (
        f"gives held-out tokens log-probabilities {found.mean:.2g} nats from the trained model's on average and up to "
        f"{found.high:.2g}, more than {tolerance.mean} or {tolerance.high} in {dtype}"
    )
