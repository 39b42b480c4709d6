"""Duplicates within a sample: documents that could go without losing a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sbp_ray.text.shingles import shingle_hashes


def duplicate_shares(
    documents: Sequence[Sequence[int]], *, min_jaccard: float, shingle_tokens: int
) -> dict[str, float]:
    """Share of the documents that repeat an earlier one of the sample, exactly or nearly.

    Every earlier document that shares a shingle is compared, without sampling: exact, for samples of thousands.

    Args:
        min_jaccard: two documents whose shingle sets overlap this much are near-duplicates.

    Returns:
        `exact` and `near`; a document that is an exact duplicate is not counted as a near one too.
    """
    if not documents:
        return {"exact": 0.0, "near": 0.0}
    distinct = {tuple(ids): None for ids in documents}
    near = _count_near([shingle_hashes(ids, shingle_tokens) for ids in distinct], min_jaccard)
    return {"exact": 1 - len(distinct) / len(documents), "near": near / len(documents)}


def _count_near(shingle_sets: list[NDArray[np.uint64]], min_jaccard: float) -> int:
    """How many sets overlap an earlier one by `min_jaccard` or more."""
    holders: dict[int, list[int]] = {}  # shingle -> numbers of the documents so far that hold it
    sizes = np.array([shingles.size for shingles in shingle_sets], np.float64)
    near = 0
    for number, shingles in enumerate(shingle_sets):
        earlier = [other for shingle in shingles.tolist() for other in holders.get(shingle, ())]
        if earlier:
            common = np.bincount(earlier, minlength=number)
            union = sizes[:number] + sizes[number] - common
            near += bool((common / union >= min_jaccard).any())
        for shingle in shingles.tolist():
            holders.setdefault(shingle, []).append(number)
    return near
