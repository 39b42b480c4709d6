"""The nearest documents of each document of a group, all of which fits into memory.

First by cells (`probing`): a document is compared with those of its own cell and of the next nearest. That finds most
neighbours. Lists find the rest (`joining`): in round after round the documents that a list brings together are
compared, unless they have met in a cell. Documents whose true neighbours are known tell when it is enough.

Each list has one owner at a time among the threads, and holds the best of what was offered in any order, since entries
are never equal. Only which of several equally near documents comes last depends on when updates are carried out, and
they are carried out after a fixed number of lists. So the graph depends neither on the threads' number nor on their
speed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.neighbors.cells import SAMPLES_PER_CELL, Cells, find_cells, nearest_cells
from sbp_ray.neighbors.joining import MOST_JOINED, join_lists
from sbp_ray.neighbors.nearest_lists import Owners, new_lists, rank, rows_of
from sbp_ray.neighbors.probing import NEAR_CELLS, Homes, Prober, sort_by_cell
from sbp_ray.neighbors.quantize import Quantizer, in_blocks, inverse_lengths, new_pool

# N = documents of the group, D = vector length, P = cells that a document probes, K = neighbours
# W = candidates of a document

ROUNDS = 40
"""Rounds of joining at most."""
_CHUNK = 2048
"""Documents that a thread works on at a time."""
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
_JOINED = 16
"""Nearest candidates of a list that are joined, and as many documents whose lists name the owner."""
_MORE_JOINED = 4
"""Candidates by which the joined part of a list grows when there are no cells left to probe."""
_SLOW = 0.04
"""Share of all candidates that a round must change for lists alone to go on."""
_SETTLED = 0.002
"""Share of all candidates that a round must change at least; with fewer changes nothing more is to come."""


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

    def found_share(self, lists_NW: NDArray[np.int64]) -> float:
        """The share of these neighbours that lists hold; 0 where nobody knows any."""
        if len(self.query_M) == 0:
            return 0.0
        row_MW = rows_of(lists_NW[self.query_M])
        return float((row_MW == self.neighbor_M[:, None]).any(axis=1).mean())


class Found(NamedTuple):
    """The nearest documents of each document, within the group."""

    order_N: NDArray[np.int64]
    """Which document is the i-th: those that are alike stand next to each other."""
    cosine_NK: NDArray[np.float32]
    """Of the i-th; falling, -inf after the last."""
    row_NK: NDArray[np.int32]
    """Neighbours, each a place in this order; `NO_ROW` after the last."""


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
        control: the search ends when it has found these, but for a share.
        seed: draws the documents that the cells are made from.
        device: where products of whole cells are computed; the rest is the CPU's.
    """
    num = len(encoded_ND)
    if num == 0:
        return Found(np.empty(0, np.int64), np.empty((0, k), np.float32), np.empty((0, k), np.int32))
    with new_pool(num_threads) as pool:
        coarse_ND = np.concatenate(in_blocks(pool, num, _CHUNK, lambda rows: quantizer.coarse(encoded_ND[rows])))
        cells = _find_cells(coarse_ND, effort, seed, pool, device)
        cell_NP = nearest_cells(cells, torch.from_numpy(coarse_ND).to(device), min(effort.probes, NEAR_CELLS), pool)
        order_N = sort_by_cell(cell_NP[:, 0])
        place_N = np.empty(num, np.int64)
        place_N[order_N] = np.arange(num)
        control = Control(place_N[control.query_M], place_N[control.neighbor_M])
        coarse_ND = _in_order(coarse_ND, order_N, pool)
        lists_NW = new_lists(num, min(num_candidates(k), max(1, num - 1)))
        owners = Owners.share_out(pool, num_threads, num)
        homes = Homes.of_cells(cell_NP[order_N, 0], _CROWDED * effort.cell_documents)
        vectors_ND = torch.from_numpy(coarse_ND).to(device)
        prober = Prober(vectors_ND, cells, cell_NP[order_N], homes, lists_NW, owners)
        _probe_first(prober, effort, control, lists_NW)
        if len(homes.first_H1) > 2:  # in a single cell all have met
            _join_and_probe(prober, effort, control, lists_NW, coarse_ND, owners)
        return Found(order_N, *rank_all(lists_NW, _in_order(encoded_ND, order_N, pool), k, pool))


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


def _probe_first(prober: Prober, effort: Effort, control: Control, lists_NW: NDArray[np.int64]) -> None:
    """Probe cells while that brings much."""
    share = 0.0
    for _ in range(min(effort.probes, prober.num_cells, _FEW_PROBES)):
        prober.probe_next(effort.probes)
        gain = control.found_share(lists_NW) - share
        share += gain
        if share >= _ENOUGH_FROM_CELLS or (share > 0 and gain < _LITTLE_GAIN):
            break


def _join_and_probe(
    prober: Prober,
    effort: Effort,
    control: Control,
    lists_NW: NDArray[np.int64],
    coarse_ND: NDArray[np.int8],
    owners: Owners,
) -> None:
    """Join lists, round after round; when they hardly change, probe further cells, then join more of each list."""
    most_joined = min(MOST_JOINED, lists_NW.shape[1])
    width = min(_JOINED, most_joined)
    for _ in range(ROUNDS):
        if control.found_share(lists_NW) >= effort.recall:
            return
        part_NP = np.stack(prober.part_PN, axis=1)
        changed = join_lists(lists_NW, width, coarse_ND, part_NP, owners) / lists_NW.size
        if changed > _SLOW:
            continue
        num_left = min(effort.probes, prober.num_cells) - len(prober.part_PN)
        if num_left:
            for _ in range(min(_MORE_PROBES, num_left)):
                if control.found_share(lists_NW) >= effort.recall:
                    return
                prober.probe_next(effort.probes)
        elif width < most_joined:
            width = min(width + _MORE_JOINED, most_joined)
        elif changed < _SETTLED:
            return


def rank_all(
    lists_NW: NDArray[np.int64], encoded_ND: NDArray[np.int16], k: int, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Cosines and rows of the `k` nearest candidates of each document, by 16-bit vectors."""
    num = len(lists_NW)
    cosine_NK, row_NK = np.empty((num, k), np.float32), np.empty((num, k), np.int32)
    inverse_length_N = np.concatenate(in_blocks(pool, num, _CHUNK, lambda rows: inverse_lengths(encoded_ND[rows])))

    def rank_block(rows: slice) -> None:
        rank(lists_NW, encoded_ND, inverse_length_N, rows.start, cosine_NK[rows], row_NK[rows])

    in_blocks(pool, num, _CHUNK, rank_block)
    return cosine_NK, row_NK
