"""Histograms of cosine similarity, in bins of 0.05."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_BINS_PER_UNIT = 20


def cosine_histogram(cosines: NDArray[np.floating]) -> dict[str, int]:
    """Count by lower edge: 0.61 belongs to "0.60". Only bins that hold something, in rising order."""
    bins = np.floor(cosines * _BINS_PER_UNIT + 1e-4).astype(int)  # 0.65 in float32 lies a hair below its edge
    bins = np.minimum(bins, _BINS_PER_UNIT - 1)  # 1.0 belongs to the last bin
    numbers, counts = np.unique(bins, return_counts=True)
    return {f"{number / _BINS_PER_UNIT:.2f}": int(count) for number, count in zip(numbers, counts, strict=True)}


def sorted_histogram(histogram: Mapping[str, int]) -> dict[str, int]:
    """In rising order, which sums of histograms may have lost."""
    return dict(sorted(histogram.items(), key=lambda item: float(item[0])))


def threshold_for(histogram: Mapping[str, int], wanted: float) -> tuple[float, int]:
    """The highest bin edge with at least `wanted` similarities above it, else the lowest edge; and how many there are.

    Raises:
        ValueError: the histogram is empty.
    """
    if not histogram:
        raise ValueError("an empty histogram has no threshold")
    total = 0
    threshold = 1.0
    for edge, count in sorted(((float(edge), count) for edge, count in histogram.items()), reverse=True):
        threshold, total = edge, total + count
        if total >= wanted:
            break
    return threshold, total
