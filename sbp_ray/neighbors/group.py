"""The nearest documents of each document of a group, all of which fits into memory.

First by cells: a document is compared with those of its own cell and of the next nearest, and each product serves both:
the probed document learns of the probing one too. That finds most neighbours. Lists find the rest: two documents that a
third holds for neighbours are likely to be neighbours, so that in round after round those that a list brings together
are compared, unless they have met in a cell (Dong, Moses and Li 2011, "Efficient k-nearest neighbor graph construction
for generic similarity measures"). Documents whose true neighbours are known tell when it is enough.

Each list has one owner at a time among the threads, and holds the best of what was offered in any order, since entries
are never equal. Only which of several equally near documents comes last depends on when updates are carried out, and
they are carried out after a fixed number of lists. So the graph depends neither on the threads' number nor on their
speed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.neighbors import kernels
from sbp_ray.neighbors.cells import SAMPLES_PER_CELL, Cells, blocks, find_cells, in_blocks, nearest_cells, products
from sbp_ray.neighbors.quantize import Quantizer, inverse_lengths

# N = documents of the group, D = vector length, P = cells that a document probes, K = neighbours, R = rows of a block
# W = candidates of a document

_BLOCK_ROWS = 512
"""Rows of a block of scores."""
_BLOCK_COLUMNS = 1024
"""Columns of a block of scores, which is 2 MiB: it stays in the cache between the product and the scan."""
_CROWDED = 4
"""How many times the documents that a cell should have it may have before it is split, however alike they are."""
_ENOUGH_FROM_CELLS = 0.85
"""Share of the control's neighbours from which on lists of neighbours are the shorter way."""
_LITTLE_GAIN = 0.02
"""Share of the control's neighbours below which a probe has found too little to go on with cells."""
_MORE_PROBES = 4
"""Cells probed in a row when lists hardly change."""
_FEW_PROBES = 8
"""Cells probed at most before the first lists are joined."""
_NEAR_CELLS = 16
"""Nearest cells that are looked up at first; to look up more of them later takes as long again."""
_JOINED = 16
"""Nearest candidates of a list that are joined, and as many documents whose lists name the owner."""
_MORE_JOINED = 4
"""Candidates by which the joined part of a list grows when there are no cells left to probe."""
_MOST_JOINED = 32
"""Candidates of a list that are joined at most."""
_SLOW = 0.04
"""Share of all candidates that a round must change for lists alone to go on."""
_CHUNK = 2048
"""Lists that a thread joins at a time."""
_CHUNKS = 16
"""Chunks of lists whose updates are carried out together. Not a number for each thread: an update must be nearer than
the last entry of a list as it is before all of them, so which of equally near documents stays depends on this."""
_MEETINGS = 32
"""Parts of cells that each thread compares with the probing documents before updates are carried out."""
_UPDATES_PER_LIST = 24
"""Updates that a buffer has room for, for each list of a chunk."""
_ROUNDS = 40
"""Rounds of joining at most."""
_SETTLED = 0.002
"""Share of all candidates that a round must change at least; with fewer changes nothing more is to come."""
JOINED_BYTES = 4 * (2 * _MOST_JOINED + 1)
"""Memory that joining takes for a document at most."""
PROBED_BYTES = 4 * 3 * _NEAR_CELLS
"""Memory that probing takes for a document: its cells, and their parts in both orders."""


class Effort(NamedTuple):
    """How thorough a search is."""

    cell_documents: int
    """Documents of a cell, on average."""
    probes: int
    """Cells in which a document looks for neighbours at most, its own included."""
    recall: float
    """Share of the control's neighbours; when so many are found, the search ends."""


class Control(NamedTuple):
    """True neighbours of some documents of the group, by which the search knows when to end."""

    query_M: NDArray[np.int64]
    """The documents, one for each neighbour that is in the group too."""
    neighbor_M: NDArray[np.int64]
    """The neighbours."""


_Updates = tuple[NDArray[np.int32], NDArray[np.int64]]  # documents, and entries that better their lists


class Found(NamedTuple):
    """The nearest documents of each document, within the group."""

    order_N: NDArray[np.int64]
    """Which document is the i-th: those that are alike stand next to each other."""
    cosine_NK: NDArray[np.float32]
    """Of the i-th; falling, -inf after the last."""
    row_NK: NDArray[np.int32]
    """Neighbours, each a place in this order; `NO_ROW` after the last."""


class _Homes(NamedTuple):
    """Where the documents live, which are in the order of their cells."""

    home_N: NDArray[np.int32]
    """Part of a cell. A cell has one, unless it is crowded."""
    first_H1: NDArray[np.int64]
    """[H + 1] Where each part begins."""
    first_part_C1: NDArray[np.int64]
    """[C + 1] The parts of each cell."""


def num_candidates(k: int) -> int:
    """Candidates kept by 8-bit scores, whose error is about 0.001, before 16 bits decide which are the `k` nearest."""
    return k + max(16, k // 4)


def search_group(
    encoded_ND: NDArray[np.int16],
    k: int,
    quantizer: Quantizer,
    effort: Effort,
    control: Control,
    *,
    seed: int = 0,
    num_threads: int = 1,
    device: str = "cpu",
) -> Found:
    """Find the `k` nearest of each document.

    Args:
        encoded_ND: vectors.
        k: neighbours wanted.
        quantizer: makes 8 bits of them.
        effort: how thorough.
        control: the search ends when it has found these, but for a share.
        seed: draws the documents that the cells are made from.
        num_threads: that share the work.
        device: where products of whole cells are computed; the rest is the CPU's.
    """
    num = len(encoded_ND)
    if num == 0:
        return Found(np.empty(0, np.int64), np.empty((0, k), np.float32), np.empty((0, k), np.int32))
    with ThreadPoolExecutor(num_threads) as pool:
        parts = in_blocks(pool, num, _CHUNK, lambda rows: quantizer.coarse_of_encoded(encoded_ND[rows]))
        coarse_ND = np.concatenate(parts)
        del parts
        cells = _find_cells(coarse_ND, effort, seed, pool, device)
        num_near = min(effort.probes, _NEAR_CELLS)
        cell_NP = nearest_cells(cells, torch.from_numpy(coarse_ND).to(device), num_near, pool)
        order_N = _sorted_by_cell(cell_NP[:, 0])
        place_N = np.empty(num, np.int64)
        place_N[order_N] = np.arange(num)
        search = _Search(
            torch.from_numpy(_in_order(coarse_ND, order_N, pool)),
            cells,
            cell_NP[order_N],
            _homes(cell_NP[order_N, 0], _CROWDED * effort.cell_documents),
            kernels.new_lists(num, min(num_candidates(k), max(1, num - 1))),
            Control(place_N[control.query_M], place_N[control.neighbor_M]),
            pool,
            num_threads,
            device,
        )
        del coarse_ND
        search.run(effort)
        return Found(order_N, *_ranked(search.lists_NW, _in_order(encoded_ND, order_N, pool), k, pool))


def _in_order(vectors_ND: NDArray, order_N: NDArray[np.int64], pool: ThreadPoolExecutor) -> NDArray:
    ordered_ND = np.empty_like(vectors_ND)
    in_blocks(
        pool,
        len(order_N),
        _CHUNK,
        lambda rows: np.take(vectors_ND, order_N[rows], axis=0, out=ordered_ND[rows], mode="clip"),  # unbuffered
    )
    return ordered_ND


def _find_cells(coarse_ND: NDArray[np.int8], effort: Effort, seed: int, pool: ThreadPoolExecutor, device: str) -> Cells:
    num_cells = max(1, len(coarse_ND) // effort.cell_documents)
    num_sampled = min(len(coarse_ND), SAMPLES_PER_CELL * num_cells)
    sampled = np.sort(np.random.default_rng(seed).choice(len(coarse_ND), num_sampled, replace=False))
    return find_cells(torch.from_numpy(coarse_ND[sampled]).to(device), num_cells, seed, pool)


def _homes(cell_N: NDArray[np.int32], most: int) -> _Homes:
    """Split the cells that more than `most` documents live in; `cell_N` rises."""
    num_C = np.bincount(cell_N)
    num_parts_C = -(-num_C // most)
    first_H, first = [], 0
    for num, num_parts in zip(num_C, num_parts_C, strict=True):
        first_H.append(first + np.arange(num_parts) * num // max(1, num_parts))
        first += num
    first_H1 = np.append(np.concatenate(first_H), first)
    home_N = np.repeat(np.arange(len(first_H1) - 1, dtype=np.int32), np.diff(first_H1))
    return _Homes(home_N, first_H1, np.append(0, np.cumsum(num_parts_C)))


class _Search:
    """The lists of a group's documents, which are in the order of their cells, on their way to the true neighbours.

    Args:
        vectors_ND: int8.
        cells: the cells that documents may probe.
        cell_NP: the nearest cells of each document.
        homes: where each lives.
        lists_NW: empty.
        control: by which it knows when to end.
        pool: does the work.
        num_threads: of the pool.
        device: where products of whole cells are computed.
    """

    def __init__(
        self,
        vectors_ND: torch.Tensor,
        cells: Cells,
        cell_NP: NDArray[np.int32],
        homes: _Homes,
        lists_NW: NDArray[np.int64],
        control: Control,
        pool: ThreadPoolExecutor,
        num_threads: int,
        device: str,
    ) -> None:
        self.lists_NW = lists_NW
        self._coarse_ND, self._vectors_ND = vectors_ND.numpy(), vectors_ND.to(device)
        self._cells, self._homes, self._control, self._pool = cells, homes, control, pool
        self._cell_NP = cell_NP
        self._part_PN = np.empty((0, len(lists_NW)), np.int32)  # the parts of cells that each document has probed
        shares = np.linspace(0, len(lists_NW), num_threads + 1).astype(int)
        self._shares = list(itertools.pairwise(shares))  # of the lists: the owners among the threads

    def run(self, effort: Effort) -> None:
        """Probe cells while that brings much, then join lists; when the lists hardly change, probe further cells."""
        most_probes = min(effort.probes, len(self._cells.center_CD))
        share = 0.0
        while len(self._part_PN) < min(most_probes, _FEW_PROBES):
            self._probe_next(most_probes)
            gain = self._found_share() - share
            share += gain
            if share >= _ENOUGH_FROM_CELLS or (share > 0 and gain < _LITTLE_GAIN):
                break
        if len(self._homes.first_H1) == 2:  # one cell: all have met
            return
        most = min(_MOST_JOINED, self.lists_NW.shape[1])
        width = min(_JOINED, most)
        for _ in range(_ROUNDS):
            if self._found_share() >= effort.recall:
                break
            changed = self._join(width) / self.lists_NW.size
            if changed > _SLOW or self._found_share() >= effort.recall:
                continue
            num_left = most_probes - len(self._part_PN)
            if num_left:
                for _ in range(min(_MORE_PROBES, num_left)):
                    self._probe_next(most_probes)
                    if self._found_share() >= effort.recall:
                        return
            elif width < most:
                width = min(width + _MORE_JOINED, most)
            elif changed < _SETTLED:
                break

    def _found_share(self) -> float:
        """Of the control's neighbours; 0 where nobody knows any."""
        if len(self._control.query_M) == 0:
            return 0.0
        row_MW = kernels.rows_of(self.lists_NW[self._control.query_M])
        return float((row_MW == self._control.neighbor_M[:, None]).any(axis=1).mean())

    # Cells

    def _probe_next(self, most: int) -> None:
        """Let each document and those of its next nearest cell find one another; `most` cells may be probed in all."""
        num_probed = len(self._part_PN)
        if num_probed == self._cell_NP.shape[1]:
            self._cell_NP = nearest_cells(self._cells, self._vectors_ND, min(most, 2 * num_probed), self._pool)
        meetings = list(_meetings(self._cell_NP[:, num_probed], self._homes))
        part_N = np.empty(len(self.lists_NW), np.int32)
        for documents_V, part in meetings:
            part_N[documents_V] = part
        floor_N = ((self.lists_NW[:, -1] >> 32) + 1).clip(kernels.LEAST_FLOOR).astype(np.int32)

        def compare(meeting: tuple[NDArray[np.int64], int]) -> list[_Updates]:
            return self._compare(*meeting, floor_N=floor_N, is_mutual=num_probed > 0)

        for start in range(0, len(meetings), num_meetings := _MEETINGS * len(self._shares)):
            some = meetings[start : start + num_meetings]
            updates = self._pool.map(compare, some)
            self._carry_out([update for found in updates for update in found])
        self._part_PN = np.vstack([self._part_PN, part_N])

    def _compare(
        self, documents_V: NDArray[np.int64], part: int, *, floor_N: NDArray[np.int32], is_mutual: bool
    ) -> list[_Updates]:
        """Offer visitors the documents of a part; these get the visitors later, if `is_mutual`, as the updates tell."""
        first, end = self._homes.first_H1[part : part + 2]
        updates = []
        for rows, column in itertools.product(blocks(len(documents_V), _BLOCK_ROWS), range(first, end, _BLOCK_COLUMNS)):
            documents_R = documents_V[rows]
            rows_R = torch.from_numpy(documents_R).to(self._vectors_ND.device)
            rows_RD = torch.index_select(self._vectors_ND, 0, rows_R)  # indexing with [] takes 15 times as long
            columns = slice(column, min(column + _BLOCK_COLUMNS, end))
            scores_RM = products(rows_RD, self._vectors_ND[columns])
            kernels.offer_columns(scores_RM, documents_R, documents_R, columns.start, self.lists_NW)
            if is_mutual:
                update = np.empty(scores_RM.size, np.int32), np.empty(scores_RM.size, np.int64)
                num = kernels.offer_rows(scores_RM, documents_R, columns.start, floor_N[columns], *update)
                updates.append((update[0][:num].copy(), update[1][:num].copy()))
        return updates

    # Neighbours of neighbours

    def _join(self, width: int) -> int:
        """Join the `width` nearest of each list; returns how many entries of lists are new."""
        joined_NB = np.empty((len(self.lists_NW), 2 * width), np.int32)
        num_N = np.empty(len(self.lists_NW), np.int32)
        part_NP = np.ascontiguousarray(self._part_PN.T)

        def add_sources(share: tuple[int, int]) -> None:
            kernels.add_sources(self.lists_NW, width, *share, joined_NB, num_N)

        list(self._pool.map(add_sources, self._shares))
        kernels.forget_fresh(self.lists_NW, width)
        num_updates = _CHUNK * _UPDATES_PER_LIST + joined_NB.shape[1] ** 2
        buffers = [(np.empty(num_updates, np.int32), np.empty(num_updates, np.int64)) for _ in range(_CHUNKS)]

        def compare(chunk: slice, buffer: _Updates) -> tuple[int, _Updates]:
            stopped, num = kernels.join(
                joined_NB,
                num_N,
                chunk.start,
                chunk.stop,
                self._coarse_ND,
                part_NP,
                self.lists_NW,
                *buffer,
            )
            return stopped, (buffer[0][:num], buffer[1][:num])

        waiting, num_new = deque(blocks(len(self.lists_NW), _CHUNK)), 0
        while waiting:
            chunks = [waiting.popleft() for _ in range(min(_CHUNKS, len(waiting)))]
            stops, updates = zip(*self._pool.map(compare, chunks, buffers), strict=True)
            num_new += self._carry_out(updates)
            left = [slice(stop, chunk.stop) for chunk, stop in zip(chunks, stops, strict=True) if stop < chunk.stop]
            waiting.extendleft(reversed(left))
        return num_new

    def _carry_out(self, updates: Sequence[_Updates]) -> int:
        def better(share: tuple[int, int]) -> int:
            return sum(kernels.better(*update, *share, self.lists_NW) for update in updates)

        return sum(self._pool.map(better, self._shares))


def _sorted_by_cell(cell_N: NDArray[np.int32]) -> NDArray[np.int64]:
    """Documents cell by cell, in their order within each."""
    fits = cell_N.max() < 2**16  # NumPy sorts numbers of 16 bits by counting, which takes a fifth of the time
    return np.argsort(cell_N.astype(np.uint16) if fits else cell_N, kind="stable")


def _meetings(cell_N: NDArray[np.int32], homes: _Homes) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Documents that probe a cell, and the part of it; each document probes one cell, and no two meet twice."""
    order = _sorted_by_cell(cell_N)
    first_C1 = np.searchsorted(cell_N[order], np.arange(len(homes.first_part_C1)))
    for cell, (first_part, end_part) in enumerate(itertools.pairwise(homes.first_part_C1)):
        visitors = np.array_split(order[first_C1[cell] : first_C1[cell + 1]], max(1, end_part - first_part))
        yield from zip(visitors, range(first_part, end_part), strict=False)


def _ranked(
    lists_NW: NDArray[np.int64], encoded_ND: NDArray[np.int16], k: int, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    cosine_NK = np.empty((len(lists_NW), k), np.float32)
    row_NK = np.empty((len(lists_NW), k), np.int32)
    inverse_length_N = inverse_lengths(encoded_ND)
    in_blocks(
        pool,
        len(lists_NW),
        _CHUNK,
        lambda rows: kernels.rank(lists_NW, encoded_ND, inverse_length_N, rows.start, cosine_NK[rows], row_NK[rows]),
    )
    return cosine_NK, row_NK
