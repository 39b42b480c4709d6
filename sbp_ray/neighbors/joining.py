"""Neighbours of neighbours: two documents that a third holds for neighbours are likely to be neighbours.

`join_lists` is one round. Each document collects the rows that it joins (`_add_sources`), these are compared with one
another where one of them is new (`_join`), and what betters a list is carried out. After Dong, Moses and Li 2011,
"Efficient k-nearest neighbor graph construction for generic similarity measures".
"""

from __future__ import annotations

from collections import deque

import numba
import numpy as np
from numpy.typing import NDArray

from sbp_ray.neighbors.nearest_lists import LOWEST, NO_ENTRY, ROW_BITS, Owners, Updates, make_entry, multiply
from sbp_ray.neighbors.quantize import blocks

# N = documents, W = candidates of a document, B = documents whose lists name each other, D = vector length
# P = cells that a document has probed, U = updates

MOST_JOINED = 32
"""Candidates of a list that are joined at most."""
JOINED_BYTES = 4 * (2 * MOST_JOINED + 1)
"""Memory that joining takes for a document at most."""
CHUNK = 2048
"""Lists that a thread joins at a time."""
CHUNKS = 16
"""Chunks of lists whose updates are carried out together. Not a number for each thread: an update must be nearer than
the last entry of a list as it is before all of them, so which of equally near documents stays depends on this."""
UPDATES_PER_LIST = 24
"""Updates that a buffer has room for, for each list of a chunk."""


def join_lists(
    lists_NW: NDArray[np.int64], width: int, coarse_ND: NDArray[np.int8], part_NP: NDArray[np.int32], owners: Owners
) -> int:
    """Join the `width` nearest of each list; returns how many entries of lists are new.

    Args:
        lists_NW: candidates, bettered.
        width: how many of each list count, the nearest.
        coarse_ND: 8-bit vectors.
        part_NP: the parts of cells that each document has probed, the part where it lives first.
    """
    joined_NB = np.empty((len(lists_NW), 2 * width), np.int32)
    num_N = np.empty(len(lists_NW), np.int32)
    list(owners.pool.map(lambda share: _add_sources(lists_NW, width, *share, joined_NB, num_N), owners.shares))
    lists_NW[:, :width] &= ~1  # what has been collected is not fresh any more; `NO_ENTRY` stays what it is
    size = CHUNK * UPDATES_PER_LIST + joined_NB.shape[1] ** 2
    buffers = [(np.empty(size, np.int32), np.empty(size, np.int64)) for _ in range(CHUNKS)]

    def compare(chunk: slice, buffer: Updates) -> tuple[int, Updates]:
        stopped, num = _join(joined_NB, num_N, chunk.start, chunk.stop, coarse_ND, part_NP, lists_NW, *buffer)
        return stopped, (buffer[0][:num], buffer[1][:num])

    waiting, num_new = deque(blocks(len(lists_NW), CHUNK)), 0
    while waiting:
        chunks = [waiting.popleft() for _ in range(min(CHUNKS, len(waiting)))]
        stops, updates = zip(*owners.pool.map(compare, chunks, buffers), strict=False)
        num_new += owners.carry_out(updates, lists_NW)
        left = [slice(stop, chunk.stop) for chunk, stop in zip(chunks, stops, strict=True) if stop < chunk.stop]
        waiting.extendleft(reversed(left))
    return num_new


@numba.njit(cache=True, nogil=True)
def _add_sources(lists_NW, width, first, end, joined_NB, num_N):  # type: ignore[no-untyped-def]  # compiled
    """Collect the rows that documents `first` to `end` join: those of their lists, then those whose lists name them.

    Args:
        width: how many of each list count, the nearest.
        first: of the documents whose row of `joined_NB` is written; no other thread writes these.
        end: the one after the last.
        joined_NB: `row << 1 | is_fresh`, int32, changed in place. Of those who name a document, and whom it does not
            name, the ones that name it first in their lists come first, until the row is full.
        num_N: entries of each row of `joined_NB`, changed in place.
    """
    for n in range(first, end):
        count = 0
        while count < width and lists_NW[n, count] != NO_ENTRY:
            joined_NB[n, count] = np.int32(lists_NW[n, count] & ROW_BITS)
            count += 1
        num_N[n] = count
    for w in range(width):
        for n in range(lists_NW.shape[0]):
            entry = lists_NW[n, w]
            named = (entry & ROW_BITS) >> 1
            if entry == NO_ENTRY or named < first or named >= end or num_N[named] == joined_NB.shape[1]:
                continue
            mutual = (entry >> 32) << 32 | np.int64(n) << 1
            if mutual | 1 >= lists_NW[named, width - 1] and _holds(lists_NW[named, :width], mutual):
                continue
            joined_NB[named, num_N[named]] = np.int32(n << 1 | (entry & 1))
            num_N[named] += 1


@numba.njit(cache=True, nogil=True)
def _holds(list_W, entry):  # type: ignore[no-untyped-def]  # compiled
    found = False
    for other in list_W:
        found |= other >> 1 == entry >> 1
    return found


@numba.njit(cache=True, nogil=True)
def _join(joined_NB, num_N, first, end, vectors_ND, part_NP, lists_NW, target_U, entry_U):  # type: ignore[no-untyped-def]  # compiled
    """Compare the documents that each of the lists `first` to `end` brings together, and note what betters a list.

    Args:
        joined_NB: the lists, see `_add_sources`.
        num_N: entries of each.
        first: of the lists to join.
        end: the one after the last.
        vectors_ND: int8.
        part_NP: see `join_lists`.
        lists_NW: not changed: its last entries say what is good enough.
        target_U: documents whose lists would be bettered, written.
        entry_U: by which entry, written.

    Returns:
        The list at which it stopped, since the updates might not hold another, and how many updates there are.
    """
    width = joined_NB.shape[1]
    num_updates = 0
    row_B, floor_B = np.empty(width, np.int32), np.empty(width, np.int32)
    part_BP = np.empty((width, part_NP.shape[1]), np.int32)
    for n in range(first, end):
        if num_updates + width * width > len(target_U):
            return n, num_updates
        num_fresh = _take_fresh_first(joined_NB[n, : num_N[n]], row_B)
        if num_fresh == 0:
            continue
        for b in range(num_N[n]):
            part_BP[b] = part_NP[row_B[b]]
            floor_B[b] = max(lists_NW[row_B[b], -1] >> 32, LOWEST)
        for i in range(num_fresh):
            for j in range(i + 1, num_N[n]):
                if _have_met(part_BP[i], part_BP[j]):
                    continue
                score = multiply(vectors_ND[row_B[i]], vectors_ND[row_B[j]])
                for one, other in ((i, j), (j, i)):
                    if score > floor_B[one]:
                        target_U[num_updates], entry_U[num_updates] = row_B[one], make_entry(score, row_B[other])
                        num_updates += 1
    return end, num_updates


@numba.njit(cache=True, nogil=True)
def _take_fresh_first(joined_B, row_B):  # type: ignore[no-untyped-def]  # compiled
    """Write the rows, those that are fresh before the others; returns how many are fresh."""
    num = num_fresh = 0
    for is_fresh in (1, 0):
        for entry in joined_B:
            if entry & 1 == is_fresh:
                row_B[num] = entry >> 1
                num += 1
        if is_fresh:
            num_fresh = num
    return num_fresh


@numba.njit(cache=True, nogil=True)
def _have_met(part_P, other_part_P):  # type: ignore[no-untyped-def]  # compiled
    """Whether one of two documents has probed the part of a cell where the other lives, which is its first part."""
    met = False
    for p in range(len(part_P)):
        met |= (part_P[p] == other_part_P[0]) | (other_part_P[p] == part_P[0])
    return met
