"""The nearest documents of each document of a group, all of which fits into memory.

First by cells: a document is compared with those of its own cell and of the few next nearest. That finds most
neighbours, and the rest by these: two documents that a third holds for neighbours are likely to be neighbours, so that
in round after round the lists of each document's neighbours are joined (Dong, Moses and Li 2011, "Efficient k-nearest
neighbor graph construction for generic similarity measures"), until the lists hardly change.

Each list has one owner at a time among the threads, and what the owner does to it has one order: the graph depends
neither on their number nor on their speed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.neighbors import kernels
from sbp_ray.neighbors.cells import SAMPLES_PER_CELL, find_cells, in_blocks, nearest_cells, products
from sbp_ray.neighbors.quantize import Quantizer, inverse_lengths

# N = documents of the group, D = vector length, P = cells that a document visits, K = neighbours, R = rows of a block
# W = candidates of a document

_BLOCK_ROWS = 512
_BLOCK_COLUMNS = 1024  # scores of 2 MiB a block: they stay in the cache between the product and the scan
_CROWDED = 4  # a cell of more than so many times the documents that a cell should have is split, however alike they are
_JOINED = 16  # the nearest of a document's candidates that are joined, and as many documents that name it
_MORE_JOINED = 4  # further ones, once a round betters few lists
_MOST_JOINED = 32
_SLOW = 0.04  # of all candidates, changed in a round
_CHUNK = 2048  # lists that a thread joins at a time
_CHUNKS = 16  # whose updates are carried out together
_UPDATES_PER_LIST = 24
_ROUNDS = 12
_SETTLED = 0.002  # likewise: nothing more is to come
JOINED_BYTES = 4 * (2 * _MOST_JOINED + 1)  # a document, at most


class Effort(NamedTuple):
    """How thorough a search is."""

    cell_documents: int
    """Documents of a cell, on average."""
    visits: int
    """Cells in which a document looks for neighbours, its own included."""
    recall: float
    """Share of the control queries' neighbours; when so many are found, the search ends."""


class Control(NamedTuple):
    """True neighbours of some documents of the group, by which the search knows when to end."""

    query_M: NDArray[np.int64]
    """The documents, one for each neighbour that is in the group too."""
    neighbor_M: NDArray[np.int64]
    """The neighbours."""


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
    if len(encoded_ND) == 0:
        return Found(np.empty(0, np.int64), np.empty((0, k), np.float32), np.empty((0, k), np.int32))
    with ThreadPoolExecutor(num_threads) as pool:
        parts = in_blocks(pool, len(encoded_ND), _CHUNK, lambda rows: quantizer.coarse_of_encoded(encoded_ND[rows]))
        coarse_ND = np.concatenate(parts)
        cell_NP = _visited_cells(coarse_ND, effort, seed, pool, device)
        order_N = np.argsort(cell_NP[:, 0], kind="stable")
        coarse_ND, cell_NP = coarse_ND[order_N], cell_NP[order_N]
        homes = _homes(cell_NP[:, 0], _CROWDED * effort.cell_documents)
        lists_NW = kernels.new_lists(len(encoded_ND), min(num_candidates(k), max(1, len(encoded_ND) - 1)))
        _compare_in_cells(coarse_ND, cell_NP, homes, lists_NW, pool, device)
        if len(homes.first_H1) > 2:
            place_N = np.argsort(order_N)
            control = Control(place_N[control.query_M], place_N[control.neighbor_M])
            _join_until_found(coarse_ND, homes.home_N, lists_NW, effort.recall, control, pool, num_threads)
        return Found(order_N, *_ranked(lists_NW, encoded_ND[order_N], k, pool))


# Cells


def _visited_cells(
    coarse_ND: NDArray[np.int8], effort: Effort, seed: int, pool: ThreadPoolExecutor, device: str
) -> NDArray[np.int32]:
    """The cells of each document, the nearest of which it lives in: int32[N, P]."""
    num_cells = max(1, len(coarse_ND) // effort.cell_documents)
    if num_cells == 1:
        return np.zeros((len(coarse_ND), 1), np.int32)
    num_sampled = min(len(coarse_ND), SAMPLES_PER_CELL * num_cells)
    sampled = np.sort(np.random.default_rng(seed).choice(len(coarse_ND), num_sampled, replace=False))
    cells = find_cells(torch.from_numpy(coarse_ND[sampled]).to(device), num_cells, seed, pool)
    return nearest_cells(cells, torch.from_numpy(coarse_ND).to(device), effort.visits, pool)


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


def _compare_in_cells(
    coarse_ND: NDArray[np.int8],
    cell_NP: NDArray[np.int32],
    homes: _Homes,
    lists_NW: NDArray[np.int64],
    pool: ThreadPoolExecutor,
    device: str,
) -> None:
    """Compare each document with those of the cells that it visits: first all with their homes, then with the next."""
    vectors_ND = torch.from_numpy(coarse_ND).to(device)

    def visit(meeting: tuple[NDArray[np.int64], int]) -> None:
        documents_V, part = meeting
        first, end = homes.first_H1[part : part + 2]
        for start in range(0, len(documents_V), _BLOCK_ROWS):
            documents_R = documents_V[start : start + _BLOCK_ROWS]
            rows_RD = torch.index_select(vectors_ND, 0, torch.from_numpy(documents_R).to(device))  # [] is 15 x slower
            for column in range(first, end, _BLOCK_COLUMNS):
                columns = slice(column, min(column + _BLOCK_COLUMNS, end))
                scores_RM = products(rows_RD, vectors_ND[columns])
                kernels.offer_columns(scores_RM, documents_R, columns.start, columns.stop, lists_NW)

    for place in range(cell_NP.shape[1]):
        list(pool.map(visit, _meetings(cell_NP[:, place], homes)))


def _meetings(cell_N: NDArray[np.int32], homes: _Homes) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Who visits which part of a cell, where each document visits one cell; nobody meets twice."""
    order = np.argsort(cell_N, kind="stable")
    first_C1 = np.searchsorted(cell_N[order], np.arange(len(homes.first_part_C1)))
    for cell, (first_part, end_part) in enumerate(itertools.pairwise(homes.first_part_C1)):
        visitors = np.array_split(order[first_C1[cell] : first_C1[cell + 1]], max(1, end_part - first_part))
        yield from ((documents, part) for documents, part in zip(visitors, range(first_part, end_part), strict=False))


# Neighbours of neighbours


def _join_until_found(
    coarse_ND: NDArray[np.int8],
    home_N: NDArray[np.int32],
    lists_NW: NDArray[np.int64],
    recall: float,
    control: Control,
    pool: ThreadPoolExecutor,
    num_threads: int,
) -> None:
    """Join lists in rounds, until they hold enough of the control's neighbours or hardly change any more."""
    num, most = len(lists_NW), min(_MOST_JOINED, lists_NW.shape[1])
    width = min(_JOINED, most)
    shares = list(itertools.pairwise(np.linspace(0, num, num_threads + 1).astype(int)))
    for _ in range(_ROUNDS):
        if len(control.query_M) and _found_share(lists_NW, control) >= recall:
            break
        num_new = _join_all(coarse_ND, home_N, lists_NW, width, pool, shares)
        if width == most and num_new < _SETTLED * lists_NW.size:
            break
        if num_new < _SLOW * lists_NW.size:
            width = min(width + _MORE_JOINED, most)


def _found_share(lists_NW: NDArray[np.int64], control: Control) -> float:
    row_MW = kernels.rows_of(lists_NW[control.query_M])
    return float((row_MW == control.neighbor_M[:, None]).any(axis=1).mean())


def _join_all(
    coarse_ND: NDArray[np.int8],
    home_N: NDArray[np.int32],
    lists_NW: NDArray[np.int64],
    width: int,
    pool: ThreadPoolExecutor,
    shares: list[tuple[int, int]],
) -> int:
    """One round, of the `width` nearest of each list; returns how many entries of lists are new."""
    joined_NB = np.empty((len(lists_NW), 2 * width), np.int32)
    num_N = np.empty(len(lists_NW), np.int32)
    list(pool.map(lambda share: kernels.add_sources(lists_NW, width, *share, joined_NB, num_N), shares))
    kernels.forget_fresh(lists_NW, width)
    num_updates = _CHUNK * _UPDATES_PER_LIST + joined_NB.shape[1] ** 2
    buffers = [(np.empty(num_updates, np.int32), np.empty(num_updates, np.int64)) for _ in range(_CHUNKS)]
    waiting = deque((start, min(start + _CHUNK, len(lists_NW))) for start in range(0, len(lists_NW), _CHUNK))
    num_new = 0
    while waiting:
        chunks = [waiting.popleft() for _ in range(min(_CHUNKS, len(waiting)))]

        def compare(chunk: tuple[int, int], buffer: tuple[NDArray[np.int32], NDArray[np.int64]]) -> tuple[int, int]:
            return kernels.join(joined_NB, num_N, *chunk, coarse_ND, home_N, lists_NW, *buffer)

        done = list(pool.map(compare, chunks, buffers))
        updates = [
            (target_U[:num], entry_U[:num]) for (target_U, entry_U), (_, num) in zip(buffers, done, strict=False)
        ]

        def carry_out(share: tuple[int, int], updates: list[tuple[NDArray, NDArray]] = updates) -> int:
            return sum(kernels.better(target_U, entry_U, *share, lists_NW) for target_U, entry_U in updates)

        num_new += sum(pool.map(carry_out, shares))
        left = [(stopped, end) for (_, end), (stopped, _) in zip(chunks, done, strict=True) if stopped < end]
        waiting.extendleft(reversed(left))
    return num_new


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
