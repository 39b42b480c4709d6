"""The nearest documents in a group that is compared as a whole, by FAISS: where a GPU makes that the shorter way.

FAISS chooses candidates, some more than are wanted; which of them are the nearest is decided by 16-bit
vectors, as in every search, so that a pair's cosine is the same to the bit wherever it was found.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sbp_ray.neighbors.group import Found, num_candidates, rank_all
from sbp_ray.neighbors.nearest_lists import new_lists
from sbp_ray.neighbors.quantize import blocks, in_blocks, inverse_lengths, new_pool

# N = documents of the group, D = vector length, K = neighbours, Q = documents of a block, W = candidates

MOST_DOCUMENTS = 2_000_000
"""Of a group, up to which a GPU compares all with all sooner than by cells: half a minute at 1,024 dimensions (by
arithmetic, at 600 TFLOP/s). Not measured."""
_BLOCK = 65_536
"""Documents whose candidates are looked for at a time."""
_CHUNK = 2048
"""Vectors that a thread converts at a time."""

Nearest = Callable[[NDArray[np.floating], NDArray[np.floating], int], NDArray[np.int64]]


def search_whole_group(encoded_ND: NDArray[np.int16], k: int, *, num_threads: int = 1, device: str = "cpu") -> Found:
    """Find the `k` nearest of each document, in the order in which they are given; see `search_group`."""
    num = len(encoded_ND)
    with new_pool(num_threads) as pool:
        # Two bytes each on a GPU's side, which has them all: off by 0.0005, where the spare candidates are for more.
        unit_ND = np.empty(encoded_ND.shape, np.float32 if device == "cpu" else np.float16)

        def convert(rows: slice) -> None:
            unit_ND[rows] = encoded_ND[rows] * inverse_lengths(encoded_ND[rows])[:, None]

        in_blocks(pool, num, _CHUNK, convert)
        lists_NW = _candidates(unit_ND, min(num_candidates(k), max(1, num - 1)), _nearest_on(device, num_threads))
        return Found(np.arange(num), *rank_all(lists_NW, encoded_ND, k, pool))


def _candidates(unit_ND: NDArray[np.floating], width: int, nearest: Nearest) -> NDArray[np.int64]:
    """Lists as `rank` reads them; what a document finds of itself is left out."""
    lists_NW = new_lists(len(unit_ND), width)
    for rows in blocks(len(unit_ND), _BLOCK):
        found_QV = nearest(unit_ND[rows], unit_ND, min(width + 1, len(unit_ND)))
        is_other_QV = found_QV != np.arange(rows.start, rows.stop)[:, None]
        is_other_QV[is_other_QV.all(axis=1), -1] = False  # among many copies it may not have found itself
        others_Q = found_QV[is_other_QV].reshape(len(found_QV), -1)
        lists_NW[rows, : others_Q.shape[1]] = others_Q << 1
    return lists_NW


def _nearest_on(device: str, num_threads: int) -> Nearest:
    """The rows of the nearest, `int64[Q, k]`, by FAISS."""
    import faiss

    if device == "cpu":
        faiss.omp_set_num_threads(num_threads)
        return lambda query_QD, unit_ND, k: faiss.knn(query_QD, unit_ND, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
    resources = faiss.StandardGpuResources()
    return lambda query_QD, unit_ND, k: faiss.knn_gpu(
        resources, query_QD, unit_ND, k, metric=faiss.METRIC_INNER_PRODUCT
    )[1]
