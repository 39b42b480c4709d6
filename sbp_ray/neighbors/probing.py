"""Cells that documents probe: each is compared with those of its own cell and of the next nearest, one after the other.

`Homes` says where the documents live, cell by cell. `Prober.probe_next` lets all documents probe their next cell: the
*meetings* of one round are the parts of cells, each with the documents that probe it, and a block of products serves
both: the probing document is offered those that live there, and they learn of it when updates are carried out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.neighbors.cells import Cells, nearest_cells
from sbp_ray.neighbors.nearest_lists import LEAST_FLOOR, Owners, Updates, offer_columns, offer_rows
from sbp_ray.neighbors.quantize import blocks, products

# N = documents of the group, in the order of their cells, D = vector length, P = cells that a document probes
# C = cells, H = parts of cells, V = documents that probe a part, R = rows of a block, W = candidates of a document

NEAR_CELLS = 16
"""Nearest cells that are looked up at first; to look up more of them later takes as long again."""
PROBED_BYTES = 4 * 3 * NEAR_CELLS
"""Memory that probing takes for a document: its cells, and their parts in both orders."""
_BLOCK_ROWS = 512
"""Rows of a block of scores."""
_BLOCK_COLUMNS = 1024
"""Columns of a block of scores, which is 2 MiB: it stays in the cache between the product and the scan."""
_MEETINGS = 32
"""Parts of cells that each thread compares with the probing documents before updates are carried out."""


class Homes(NamedTuple):
    """Where the documents live, which are in the order of their cells."""

    first_H1: NDArray[np.int64]
    """[H + 1] Where each part of a cell begins. A cell has one part, unless it is crowded."""
    first_part_C1: NDArray[np.int64]
    """[C + 1] The parts of each cell."""

    @classmethod
    def of_cells(cls, cell_N: NDArray[np.int32], most: int) -> Homes:
        """Split the cells that more than `most` documents live in; `cell_N` rises."""
        num_C = np.bincount(cell_N)
        num_parts_C = -(-num_C // most)
        first, parts = 0, []
        for num, num_parts in zip(num_C, num_parts_C, strict=True):
            parts.append(first + np.arange(num_parts) * num // max(1, num_parts))
            first += num
        return cls(np.append(np.concatenate(parts), first), np.append(0, np.cumsum(num_parts_C)))


def sort_by_cell(cell_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """Documents cell by cell, in their order within each."""
    fits = cell_N.max() < 2**16  # NumPy sorts numbers of 16 bits by counting, which takes a fifth of the time
    return np.argsort(cell_N.astype(np.uint16) if fits else cell_N, kind="stable")


class Prober:
    """Fills lists by letting the documents of a group probe cells.

    Args:
        vectors_ND: int8, on the device that multiplies.
        cell_NP: the nearest cells of each document.
        lists_NW: bettered.
    """

    def __init__(
        self,
        vectors_ND: torch.Tensor,
        cells: Cells,
        cell_NP: NDArray[np.int32],
        homes: Homes,
        lists_NW: NDArray[np.int64],
        owners: Owners,
    ) -> None:
        self._vectors_ND, self._cells, self._cell_NP, self._homes = vectors_ND, cells, cell_NP, homes
        self._lists_NW, self._owners = lists_NW, owners
        self.part_PN: list[NDArray[np.int32]] = []
        """For each cell that documents have probed: which part of it each of them has."""

    @property
    def num_cells(self) -> int:
        """All there are."""
        return len(self._cells.center_CD)

    def probe_next(self, most: int) -> None:
        """Let each document and those of its next nearest cell find one another; `most` cells may be probed in all."""
        num_probed = len(self.part_PN)
        if num_probed == self._cell_NP.shape[1]:
            pool = self._owners.pool
            self._cell_NP = nearest_cells(self._cells, self._vectors_ND, min(most, 2 * num_probed), pool)
        meetings = list(self._meetings(self._cell_NP[:, num_probed]))
        part_N = np.empty(len(self._lists_NW), np.int32)
        for documents_V, part in meetings:
            part_N[documents_V] = part
        floor_N = ((self._lists_NW[:, -1] >> 32) + 1).clip(LEAST_FLOOR).astype(np.int32)

        def compare(meeting: tuple[NDArray[np.int64], int]) -> list[Updates]:
            return self._compare(*meeting, floor_N=floor_N, is_mutual=num_probed > 0)

        num_meetings = _MEETINGS * len(self._owners.shares)
        for start in range(0, len(meetings), num_meetings):
            found = self._owners.pool.map(compare, meetings[start : start + num_meetings])
            self._owners.carry_out(itertools.chain.from_iterable(found), self._lists_NW)
        self.part_PN.append(part_N)

    def _meetings(self, cell_N: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Documents that probe a cell, and the part of it; each document probes one cell, and no two meet twice."""
        first_part_C1 = self._homes.first_part_C1
        order = sort_by_cell(cell_N)
        first_C1 = np.searchsorted(cell_N[order], np.arange(len(first_part_C1)))
        for cell, (first_part, end_part) in enumerate(itertools.pairwise(first_part_C1)):
            visitors = np.array_split(order[first_C1[cell] : first_C1[cell + 1]], max(1, end_part - first_part))
            yield from zip(visitors, range(first_part, end_part), strict=False)

    def _compare(
        self, documents_V: NDArray[np.int64], part: int, *, floor_N: NDArray[np.int32], is_mutual: bool
    ) -> list[Updates]:
        """Offer visitors the documents of a part; these get the visitors later, if `is_mutual`, as the updates tell."""
        first, end = self._homes.first_H1[part : part + 2]
        updates = []
        for rows, column in itertools.product(blocks(len(documents_V), _BLOCK_ROWS), range(first, end, _BLOCK_COLUMNS)):
            documents_R = documents_V[rows]
            rows_R = torch.from_numpy(documents_R).to(self._vectors_ND.device)
            rows_RD = torch.index_select(self._vectors_ND, 0, rows_R)  # indexing with [] takes 15 times as long
            columns = slice(column, min(column + _BLOCK_COLUMNS, end))
            scores_RM = products(rows_RD, self._vectors_ND[columns])
            offer_columns(scores_RM, documents_R, documents_R, columns.start, self._lists_NW)
            if is_mutual:
                update = np.empty(scores_RM.size, np.int32), np.empty(scores_RM.size, np.int64)
                num = offer_rows(scores_RM, documents_R, columns.start, floor_N[columns], *update)
                updates.append((update[0][:num].copy(), update[1][:num].copy()))
        return updates
