"""Histograms of cosine similarity, in bins of 0.05."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

_BINS_PER_UNIT = 20


def cosine_histogram(cosines: NDArray[np.floating]) -> dict[str, int]:
    """Count by lower edge: 0.61 belongs to "0.60". Only bins that hold something, in rising order."""
    numbers, counts = np.unique(bin_numbers(cosines), return_counts=True)
    return {bin_edge(number): int(count) for number, count in zip(numbers, counts, strict=True)}


def bin_numbers(cosines: NDArray[np.floating]) -> NDArray[np.int64]:
    """The bin of each; 0 starts at 0.00."""
    bins = np.floor(cosines * _BINS_PER_UNIT + 1e-4).astype(int)  # 0.65 in float32 lies a hair below its edge
    return np.minimum(bins, _BINS_PER_UNIT - 1)  # 1.0 belongs to the last bin


def bin_edge(number: int) -> str:
    """The lower edge of a bin, as histograms name it."""
    return f"{number / _BINS_PER_UNIT:.2f}"


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
