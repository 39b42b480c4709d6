"""Which groups of documents are searched together.

Small cells of documents that are alike are put together to groups of about equal size. A document lives in the group of
its nearest cell, and is copied into every other whose nearest cell is less than `margin` further away: two neighbours
that a border parts still meet in a group, so many of them as the margin was chosen for.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.neighbors.cells import find_cells, nearest_cells
from sbp_ray.neighbors.quantize import Quantizer, in_blocks, products

# N = documents, D = vector length, C = cells, G = groups, Q = queries, K = neighbours

CELLS_PER_GROUP = 64
"""Cells that a group is put together from, as long as all groups together have not more than `_MANY_CELLS`."""
SAMPLES_PER_CELL = 128
"""Documents of the sample for each cell."""
_MANY_CELLS = 4096
"""Cells from which on more groups get fewer cells each, down to `_LEAST_CELLS`."""
_LEAST_CELLS = 8
"""Cells of a group at least: with fewer, a group is too coarse to be as large as another."""
_BLOCK_SCORES = 2048 * 4096
"""Products that a thread holds at a time: 32 MiB."""
_BLOCK_QUERIES = 200


class Partition(NamedTuple):
    """The groups of one split."""

    max_abs: float
    """Of the quantizer."""
    center_CD: NDArray[np.int8]
    """Centroids, those of a group next to each other."""
    first_cell_G1: NDArray[np.int64]
    """[G + 1] Where the cells of each group begin."""
    margin: int = 0
    """How much further than the nearest cell another group's may be, as a difference of products."""
    query_QD: NDArray[np.float32] = np.empty((0, 0), np.float32)
    """Vectors of the documents whose neighbours are also searched exactly."""
    query_id_Q: NDArray[np.bytes_] = np.empty(0, "S16")
    """Their ids."""

    @property
    def quantizer(self) -> Quantizer:
        return Quantizer(self.max_abs)

    @property
    def num_groups(self) -> int:
        return len(self.first_cell_G1) - 1


def num_cells_of(num_groups: int) -> int:
    """Cells that the groups are put together from; one group needs none."""
    if num_groups == 1:
        return 0
    return max(min(_MANY_CELLS, CELLS_PER_GROUP * num_groups), _LEAST_CELLS * num_groups)


def one_group(quantizer: Quantizer, dim: int) -> Partition:
    """All documents are searched together."""
    return Partition(quantizer.max_abs, np.zeros((1, dim), np.int8), np.array([0, 1]))


def make_groups(
    sample_ND: NDArray[np.int8], quantizer: Quantizer, num_groups: int, seed: int, pool: ThreadPoolExecutor
) -> Partition:
    """`num_groups` groups, or fewer where the sample is less varied, with no margin yet."""
    vectors_ND = torch.from_numpy(sample_ND)
    cells = find_cells(vectors_ND, num_cells_of(num_groups), seed, pool)
    home_N = nearest_cells(cells, vectors_ND, 1, pool)[:, 0]
    living_S = np.bincount(home_N, minlength=len(cells.center_CD))
    # Of equal centroids one is enough: with several, equal documents would be as near to one group as to the other.
    center_CD, cell_C = np.unique(cells.center_CD.numpy(), axis=0, return_inverse=True)
    living_C = np.bincount(cell_C.ravel(), living_S) + 1.0  # a cell that the sample missed is not empty
    group_C = np.zeros(len(center_CD), np.int64)
    _halve(center_CD.astype(np.float32), living_C, np.arange(len(center_CD)), group_C, 0, num_groups)
    order = np.argsort(group_C, kind="stable")
    num_cells_G = np.bincount(group_C, minlength=num_groups)
    first_cell_G1 = np.append(0, np.cumsum(num_cells_G[num_cells_G > 0]))
    return Partition(quantizer.max_abs, center_CD[order], first_cell_G1)


def _halve(
    center_CD: NDArray[np.float32],
    living_C: NDArray[np.floating],
    cells: NDArray[np.int64],
    group_C: NDArray[np.int64],
    first: int,
    num_groups: int,
) -> None:
    """Cut `cells` in two where they spread furthest, and these again, until each part is a group."""
    if num_groups == 1 or len(cells) == 1:
        group_C[cells] = first
        return
    living = living_C[cells]
    offset = center_CD[cells] - np.average(center_CD[cells], axis=0, weights=living)
    _, axes = np.linalg.eigh((offset * living[:, None]).T @ offset)
    cells = cells[np.argsort(offset @ axes[:, -1], kind="stable")]
    half = num_groups // 2
    before = np.cumsum(living_C[cells]) - living_C[cells] / 2
    num_left = int(np.searchsorted(before, living.sum() * half / num_groups).clip(1, len(cells) - 1))
    _halve(center_CD, living_C, cells[:num_left], group_C, first, half)
    _halve(center_CD, living_C, cells[num_left:], group_C, first + half, num_groups - half)


def measure_gaps(made: Partition, coarse_ND: NDArray[np.int8], pool: ThreadPoolExecutor) -> NDArray[np.int32]:
    """How much further than a document's nearest cell each group is: int32[N, G], 0 for the group where it lives."""
    if made.num_groups == 1:
        return np.zeros((len(coarse_ND), 1), np.int32)
    centers = torch.from_numpy(made.center_CD)

    def gaps_of(rows: slice) -> NDArray[np.int32]:
        scores_NC = products(torch.from_numpy(coarse_ND[rows]), centers)[: rows.stop - rows.start]
        nearest_NG = np.maximum.reduceat(scores_NC, made.first_cell_G1[:-1], axis=1)
        return nearest_NG.max(axis=1, keepdims=True) - nearest_NG

    none = np.empty((0, made.num_groups), np.int32)
    block_rows = max(1, _BLOCK_SCORES // len(made.center_CD))
    return np.concatenate([none, *in_blocks(pool, len(coarse_ND), block_rows, gaps_of)])


def choose_margin(
    made: Partition,
    vectors_ND: NDArray[np.float32],
    coarse_ND: NDArray[np.int8],
    num_queries: int,
    k: int,
    share: float,
    pool: ThreadPoolExecutor,
) -> int:
    """The margin at which `share` of the true neighbours meet in a group, measured within a sample.

    A sample of a share s of the documents holds about s k of a document's k neighbours; `k` is that number.
    """
    gap_NG = measure_gaps(made, coarse_ND, pool)
    columns_DN = torch.from_numpy(vectors_ND).T

    def least_gaps(queries: slice) -> NDArray[np.int32]:
        scores_QN = torch.from_numpy(vectors_ND[queries]) @ columns_DN
        scores_QN[:, queries].fill_diagonal_(-np.inf)
        neighbor_QK = torch.topk(scores_QN, min(k, len(vectors_ND) - 1), dim=1).indices.numpy()
        return np.maximum(gap_NG[queries, None], gap_NG[neighbor_QK]).min(axis=2)

    parts = in_blocks(pool, min(num_queries, len(vectors_ND)), _BLOCK_QUERIES, least_gaps)
    return int(np.quantile(np.concatenate(parts), share, method="higher"))
