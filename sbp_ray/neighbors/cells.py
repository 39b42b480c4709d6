"""Cells of documents that are alike: spherical k-means in 8 bits, and each document's nearest cells.

As long as they are few, a document is compared with all cells. More of them lie in regions, and a document looks into
the nearest few of these alone: its cost grows with the square root of their number.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.neighbors.nearest_lists import NO_ROW, new_lists, offer_columns, rows_of
from sbp_ray.neighbors.quantize import in_blocks, products

# N = documents, D = vector length, C = cells, G = regions, P = nearest cells of a document

SAMPLES_PER_CELL = 32
"""Documents of the sample for each cell of a group."""
FLAT_CELLS = 4096
"""Cells up to which each document is compared with all of them."""
_REGIONS_TRIED = 16
"""Nearest regions in whose cells a document looks."""
_ROUNDS = 4
"""Rounds of k-means."""
_LEVELS = 127
"""Highest component of a centroid."""
_BLOCK_ROWS = 2048
"""Documents that a thread compares with centroids at a time."""


class Cells(NamedTuple):
    """Where the cells are."""

    center_CD: torch.Tensor
    """int8 centroids, those of a region next to each other."""
    region_GD: torch.Tensor
    """int8 centroids of the regions."""
    first_cell_G1: NDArray[np.int64]
    """[G + 1] Where each region's cells begin."""


def find_cells(sample_ND: torch.Tensor, num_cells: int, seed: int, pool: ThreadPoolExecutor) -> Cells:
    """The centroids of `num_cells` cells, or a few less, in a sample of coarse vectors.

    Cells with neighbouring numbers are alike, so that documents in the order of their cells find in the cache what they
    are compared with.
    """
    if num_cells <= FLAT_CELLS:
        center_CD = _in_a_chain(_centroids(sample_ND, num_cells, seed, pool))
        return Cells(center_CD, center_CD[:1], np.array([0, len(center_CD)]))
    region_GD = _in_a_chain(_centroids(sample_ND, round(math.sqrt(num_cells)), seed, pool))
    region_N = _nearest(sample_ND, region_GD, pool)
    parts = []
    for region, center_D in enumerate(region_GD):
        members = np.flatnonzero(region_N == region)
        wanted = max(1, round(num_cells * len(members) / len(sample_ND)))
        parts.append(_centroids(sample_ND[members], wanted, seed, pool) if len(members) else center_D[None])
    return Cells(torch.cat(parts), region_GD, np.cumsum([0, *map(len, parts)]))


def _centroids(sample_ND: torch.Tensor, num: int, seed: int, pool: ThreadPoolExecutor) -> torch.Tensor:
    """Spherical k-means, int8 [num, D]; a document of the sample each, where there are not more of these."""
    if len(sample_ND) <= num:
        return sample_ND
    generator = torch.Generator().manual_seed(seed)
    drawn_C = torch.randperm(len(sample_ND), generator=generator)[:num].to(sample_ND.device)
    sum_CD = sample_ND[drawn_C].float()
    for _ in range(_ROUNDS):
        home_N = torch.from_numpy(_nearest(sample_ND, _coarse(sum_CD), pool)).to(sample_ND.device)
        moved_CD = torch.zeros_like(sum_CD).index_add_(0, home_N, sample_ND.float())
        is_empty_C = torch.bincount(home_N, minlength=num) == 0
        sum_CD = torch.where(is_empty_C[:, None], sum_CD, moved_CD)
    return _coarse(sum_CD)


def _coarse(sum_CD: torch.Tensor) -> torch.Tensor:
    """Scaled to the same length, as near as 8 bits allow."""
    unit_CD = sum_CD / sum_CD.norm(dim=1, keepdim=True).clamp_min(1e-20)
    return (unit_CD * (_LEVELS / unit_CD.abs().max())).round().to(torch.int8)


def _nearest(vectors_ND: torch.Tensor, center_CD: torch.Tensor, pool: ThreadPoolExecutor) -> NDArray[np.int64]:
    parts = in_blocks(
        pool,
        len(vectors_ND),
        _BLOCK_ROWS,
        lambda rows: products(vectors_ND[rows], center_CD).argmax(axis=1)[: rows.stop - rows.start],
    )
    return np.concatenate(parts)


def _in_a_chain(center_CD: torch.Tensor) -> torch.Tensor:
    """Each next to one that is like it."""
    similarity_CC = products(center_CD, center_CD)[: len(center_CD)].copy()
    order = [0]
    lowest = np.iinfo(np.int32).min
    similarity_CC[:, 0] = lowest
    while len(order) < len(center_CD):
        order.append(int(similarity_CC[order[-1]].argmax()))
        similarity_CC[:, order[-1]] = lowest
    return center_CD[order]


def nearest_cells(cells: Cells, vectors_ND: torch.Tensor, num: int, pool: ThreadPoolExecutor) -> NDArray[np.int32]:
    """The `num` nearest cells of each document, or all there are, nearest first: int32[N, P], -1 after the last."""
    num = min(num, len(cells.center_CD))
    parts = in_blocks(
        pool, len(vectors_ND), _BLOCK_ROWS, lambda rows: rows_of(_nearest_of_block(cells, vectors_ND[rows], num))
    )
    return np.concatenate([np.empty((0, num), np.int32), *parts])


def _nearest_of_block(cells: Cells, block_ND: torch.Tensor, num: int) -> NDArray[np.int64]:
    lists_NP = new_lists(len(block_ND), num)
    everyone = np.arange(len(block_ND))
    if len(cells.region_GD) == 1:
        _offer(block_ND, everyone, cells.center_CD, 0, lists_NP)
        return lists_NP
    region_lists_NT = new_lists(len(block_ND), min(_REGIONS_TRIED, len(cells.region_GD)))
    _offer(block_ND, everyone, cells.region_GD, 0, region_lists_NT)
    tried_NT = rows_of(region_lists_NT)
    for region in np.unique(tried_NT):
        documents = np.flatnonzero((tried_NT == region).any(axis=1))
        first, end = cells.first_cell_G1[region : region + 2]
        chosen_ND = torch.index_select(block_ND, 0, torch.from_numpy(documents).to(block_ND.device))
        _offer(chosen_ND, documents, cells.center_CD[first:end], first, lists_NP)
    return lists_NP


def _offer(
    rows_RD: torch.Tensor, documents_R: NDArray[np.int64], center_CD: torch.Tensor, first: int, lists_NP: NDArray
) -> None:
    """Offer cells `first`, `first` + 1, … to documents, none of which is a cell itself."""
    nobody_R = np.full(len(documents_R), NO_ROW)
    offer_columns(products(rows_RD, center_CD), documents_R, nobody_R, first, lists_NP)
