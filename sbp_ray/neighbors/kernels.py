"""The loops that matrix products leave over, compiled by Numba: keeping the best, re-ranking, comparing signatures.

A document's best candidates are kept in a heap of `score << 32 | row`: one integer sorts by score and names the row.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

# R = rows of a block of scores, M = its columns, N = documents, W = candidates kept, K = neighbours, D = vector length
# P = cells that a document visits, L = lanes

LANES = 64  # columns whose maximum is taken together: four 512-bit registers
NO_ROW = -1
_LOW_32 = 0xFFFFFFFF
_LOWEST = -(2**31)
_HIGHEST = 2**31 - 1
_NOTHING = _LOWEST << 32 | _LOW_32


def new_heaps(num_documents: int, num_wanted: int) -> NDArray[np.int64]:
    """int64[N, W], nothing found yet. The first of each row is the worst that is kept."""
    return np.full((num_documents, num_wanted), _NOTHING, np.int64)


@numba.njit(cache=True, nogil=True)
def _replace_worst(heap_W, packed):  # type: ignore[no-untyped-def]  # compiled
    size = heap_W.shape[0]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap_W[child + 1] < heap_W[child]:
            child += 1
        if heap_W[child] >= packed:
            break
        heap_W[place] = heap_W[child]
        place = child
    heap_W[place] = packed


@numba.njit(cache=True, nogil=True)
def _mark_lanes(scores_M, floor_M, floor, is_above_L):  # type: ignore[no-untyped-def]  # compiled
    """Tell for each lane whether one of the columns lane, lane + `LANES`, … is above its floor or above `floor`.

    Whole registers and no branches: 0.1 ns a score, where a plain loop takes 0.5 ns. M is a multiple of `LANES`.
    """
    for lane in range(LANES):
        is_above_L[lane] = 0
    for block in range(len(scores_M) // LANES):
        start = block * LANES
        for lane in range(LANES):
            is_above = scores_M[start + lane] > min(floor, floor_M[start + lane])
            is_above_L[lane] = max(is_above_L[lane], np.int32(is_above))


@numba.njit(cache=True, nogil=True)
def offer_rows(scores_RM, documents_R, first_row, margin, best_N, heaps_NW):  # type: ignore[no-untyped-def]  # compiled
    """Offer to each of `documents_R` the rows `first_row`, `first_row` + 1, … with the scores of their columns.

    Scores that are more than `margin` below a document's best, `best_N`, are not kept.
    """
    for r in range(len(documents_R)):
        document = documents_R[r]
        heap_W = heaps_NW[document]
        best = best_N[document]
        for m in range(scores_RM.shape[1]):
            best = max(best, np.int64(scores_RM[r, m]))
        best_N[document] = best
        floor = max(heap_W[0] >> 32, best - margin - 1)
        for m in range(scores_RM.shape[1]):
            if scores_RM[r, m] > floor:
                _replace_worst(heap_W, np.int64(scores_RM[r, m]) << 32 | np.int64(first_row + m))
                floor = max(floor, heap_W[0] >> 32)


@numba.njit(cache=True, nogil=True)
def offer_both(scores_RM, visitors_R, first_owned, num_owned, cell, home_N, visits_NP, heaps_NW):  # type: ignore[no-untyped-def]  # compiled
    """Offer visitors to the documents that live in a cell, and these to the visitors: each pair once.

    Args:
        scores_RM: int32; M a multiple of `LANES` and at least `num_owned`; the columns after that mean nothing.
        visitors_R: the documents of the rows. Those that live in the cell are among the columns too, so they are
            offered theirs from their own row alone.
        first_owned: document of the first column; the others follow.
        num_owned: columns that mean something.
        cell: the cell in which the documents of the columns live.
        home_N: the cell in which each document lives.
        visits_NP: other cells that it visits, -1 after the last. Two documents that visit each other's cells meet
            in both, and count in the one with the lower number.
        heaps_NW: changed in place.
    """
    num_columns = scores_RM.shape[1]
    floor_M = np.full(num_columns, _HIGHEST, np.int32)
    nothing_M = floor_M.copy()
    for m in range(num_owned):
        floor_M[m] = heaps_NW[first_owned + m, 0] >> 32
    is_above_L = np.empty(LANES, np.int32)
    for r in range(len(visitors_R)):
        visitor = visitors_R[r]
        home = home_N[visitor]
        own_W = heaps_NW[visitor]
        wanted_M = nothing_M if home == cell else floor_M
        scores_M = scores_RM[r]
        for start in range(0, num_columns, 16 * LANES):
            end = min(start + 16 * LANES, num_columns)
            _mark_lanes(scores_M[start:end], wanted_M[start:end], np.int32(own_W[0] >> 32), is_above_L)
            for lane in range(LANES):
                if is_above_L[lane] == 0:
                    continue
                for m in range(start + lane, min(end, num_owned), LANES):
                    score = scores_M[m]
                    is_near = score > own_W[0] >> 32
                    is_wanted = score > wanted_M[m]
                    if not (is_near or is_wanted):
                        continue
                    owned = first_owned + m
                    if owned == visitor or (home < cell and _visits(visits_NP[owned], home)):
                        continue
                    if is_near:
                        _replace_worst(own_W, np.int64(score) << 32 | np.int64(owned))
                    if is_wanted:
                        _replace_worst(heaps_NW[owned], np.int64(score) << 32 | np.int64(visitor))
                        floor_M[m] = heaps_NW[owned, 0] >> 32


@numba.njit(cache=True, nogil=True)
def _visits(visits_P, cell):  # type: ignore[no-untyped-def]  # compiled
    for visited in visits_P:
        if visited == cell:
            return True
        if visited < 0:
            return False
    return False


@numba.njit(cache=True, nogil=True, fastmath=True)
def rank(heaps_NW, encoded_ND, inverse_length_N, documents, k):  # type: ignore[no-untyped-def]  # compiled
    """The `k` nearest of the kept candidates, by the cosine of their 16-bit vectors.

    Args:
        heaps_NW: candidates.
        encoded_ND: int16 vectors.
        inverse_length_N: of these vectors, which rounding has left a hair longer or shorter than others.
        documents: which documents to rank, int64[R].
        k: neighbours wanted.

    Returns:
        float32[R, K] falling, and int32[R, K] rows, `NO_ROW` after the last.
    """
    cosine_RK = np.full((len(documents), k), -np.inf, np.float32)
    row_RK = np.full((len(documents), k), NO_ROW, np.int32)
    for r in range(len(documents)):
        own = encoded_ND[documents[r]]
        found = 0
        for packed in np.sort(heaps_NW[documents[r]])[::-1]:
            if packed == _NOTHING:
                break
            row = np.int32(packed & _LOW_32)
            other = encoded_ND[row]
            product = np.float32(0)
            for d in range(own.shape[0]):
                product += np.float32(own[d]) * np.float32(other[d])
            cosine = min(product * inverse_length_N[documents[r]] * inverse_length_N[row], np.float32(1))
            place = min(found, k)
            while place > 0 and _is_before(cosine, row, cosine_RK[r, place - 1], row_RK[r, place - 1]):
                if place < k:
                    cosine_RK[r, place], row_RK[r, place] = cosine_RK[r, place - 1], row_RK[r, place - 1]
                place -= 1
            if place < k:
                cosine_RK[r, place], row_RK[r, place] = cosine, row
                found = min(found + 1, k)
    return cosine_RK, row_RK


@numba.njit(cache=True, nogil=True)
def _is_before(cosine, row, other_cosine, other_row):  # type: ignore[no-untyped-def]  # compiled
    return cosine > other_cosine or (cosine == other_cosine and row < other_row)


@numba.njit(cache=True, nogil=True)
def equal_bytes(signatures_NH, documents, row_RK):  # type: ignore[no-untyped-def]  # compiled
    """How many bytes of each document's signature equal its neighbours': int32[R, K], 0 where there is none."""
    equal_RK = np.zeros(row_RK.shape, np.int32)
    for r in range(row_RK.shape[0]):
        own = signatures_NH[documents[r]]
        for k in range(row_RK.shape[1]):
            if row_RK[r, k] != NO_ROW:
                other = signatures_NH[row_RK[r, k]]
                equal = np.int32(0)
                for h in range(own.shape[0]):
                    equal += np.int32(own[h] == other[h])
                equal_RK[r, k] = equal
    return equal_RK
