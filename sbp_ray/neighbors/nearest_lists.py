"""Lists of the best candidates of each document, and the loops over them that matrix products leave over.

A candidate is an integer, `score << 32 | row << 1 | is_fresh`: it sorts by score, names its row, and tells whether the
row has yet to be compared with the other candidates of the list. Scores are exact, so that the same pair has the same
score wherever it is found, and duplicates come to stand next to each other.

`offer_columns` puts documents straight into lists that belong to the calling thread. Whoever finds something for other
lists (`offer_rows`, and the joins) notes *updates*, which `Owners.carry_out` applies later, each thread to the lists it
owns. `rank` ends the search: it orders what the lists hold by exact cosines.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

# N = documents, W = candidates kept, K = neighbours, D = vector length, U = updates
# R = rows of a block of scores, M = its columns, L = columns whose maximum is taken together

NO_ROW = -1
NO_ENTRY = -(1 << 62)
LANES = 64
"""Columns of a block whose maximum is taken together: four 512-bit registers."""
LOWEST = -(2**31)
LEAST_FLOOR = -(2**30)
"""Lower than any score; a score less this is still an int32."""
ROW_BITS = 0xFFFFFFFF
_HALVINGS = 12
"""Halvings after which a floor is near enough to the score that it stands for."""

Updates = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Documents, and for each an entry that may better its list."""


def new_lists(num_documents: int, num_wanted: int) -> NDArray[np.int64]:
    """int64[N, W], nothing found yet."""
    return np.full((num_documents, num_wanted), NO_ENTRY, np.int64)


def rows_of(lists_NW: NDArray[np.int64]) -> NDArray[np.int32]:
    """The rows that entries name, int32[N, W], `NO_ROW` after the last."""
    return np.where(lists_NW == NO_ENTRY, NO_ROW, (lists_NW & ROW_BITS) >> 1).astype(np.int32)


class Owners(NamedTuple):
    """The threads of a search. Each owns some of the lists, and changes no others."""

    pool: ThreadPoolExecutor
    shares: list[tuple[int, int]]
    """First list of each thread, and the one after its last."""

    @classmethod
    def share_out(cls, pool: ThreadPoolExecutor, num_threads: int, num_documents: int) -> Owners:
        """Give each thread as many lists as the others."""
        edges = np.linspace(0, num_documents, num_threads + 1).astype(int)
        return cls(pool, list(itertools.pairwise(edges.tolist())))

    def carry_out(self, updates: Iterable[Updates], lists_NW: NDArray[np.int64]) -> int:
        """Apply updates; returns how many of them took effect."""
        found = list(updates)

        def better_share(share: tuple[int, int]) -> int:
            return sum(_better(*update, *share, lists_NW) for update in found)

        return sum(self.pool.map(better_share, self.shares))


@numba.njit(cache=True, nogil=True)
def _better(target_U, entry_U, first, end, lists_NW):  # type: ignore[no-untyped-def]  # compiled
    num = 0
    for u in range(len(target_U)):
        if first <= target_U[u] < end:
            num += _insert(lists_NW[target_U[u]], entry_U[u])
    return num


@numba.njit(cache=True, nogil=True)
def _insert(list_W, entry):  # type: ignore[no-untyped-def]  # compiled
    """Put an entry in its place, and the last one out; 0 when it is there already or not good enough, else 1."""
    last = list_W.shape[0] - 1
    if entry <= list_W[last]:
        return 0
    least, place = 0, last
    while least < place:
        middle = (least + place) // 2
        if list_W[middle] < entry:
            place = middle
        else:
            least = middle + 1
    if list_W[place] >> 1 == entry >> 1 or (place > 0 and list_W[place - 1] >> 1 == entry >> 1):
        return 0
    for i in range(last, place, -1):
        list_W[i] = list_W[i - 1]
    list_W[place] = entry
    return 1


@numba.njit(cache=True, nogil=True)
def make_entry(score, row):  # type: ignore[no-untyped-def]  # compiled
    """A candidate that is fresh."""
    return np.int64(score) << 32 | np.int64(row) << 1 | 1


# Blocks of scores


@numba.njit(cache=True, nogil=True)
def offer_columns(scores_RM, documents_R, own_R, first, lists_NW):  # type: ignore[no-untyped-def]  # compiled
    """Offer to each of `documents_R` the rows `first`, `first` + 1, …, whose columns these are, but not `own_R`."""
    num_wanted = lists_NW.shape[1]
    highest_L = np.empty(LANES, np.int32)
    for r in range(len(documents_R)):
        list_W = lists_NW[documents_R[r]]
        floor = max(list_W[-1] >> 32, LOWEST)
        if list_W[-1] == NO_ENTRY and num_wanted < LANES:  # one of the columns may be `own_R`
            floor = find_floor(scores_RM[r], num_wanted + 1, highest_L)
        for start in range(0, scores_RM.shape[1], LANES):
            scores_L = scores_RM[r, start : start + LANES]
            if not any_reaches(scores_L, np.int32(floor)):
                continue
            for lane in range(len(scores_L)):
                row = first + start + lane
                if scores_L[lane] >= floor and row != own_R[r]:
                    _insert(list_W, make_entry(scores_L[lane], row))
                    floor = max(floor, list_W[-1] >> 32)


@numba.njit(cache=True, nogil=True)
def find_floor(scores_M, num, highest_L):  # type: ignore[no-untyped-def]  # compiled
    """A score that at least `num` of the columns reach, and not many more, so that few others are looked at.

    The highest scores of columns lane, lane + L, … are taken in whole registers, which costs 0.1 ns a score where a
    plain loop takes 0.5 ns; that `num` of these reach a score is found by halving, ten times as fast as by sorting.
    """
    num_lanes = len(highest_L)
    highest_L[:] = LOWEST
    for start in range(0, len(scores_M), num_lanes):
        scores_L = scores_M[start : start + num_lanes]
        for lane in range(len(scores_L)):
            highest_L[lane] = max(highest_L[lane], scores_L[lane])
    low, high = np.int64(highest_L.min()), np.int64(highest_L.max()) + 1
    for _ in range(_HALVINGS):
        middle = np.int32((low + high) // 2)
        reached = np.int32(0)
        for lane in range(num_lanes):
            reached += np.int32(highest_L[lane] >= middle)
        if reached >= num:
            low = np.int64(middle)
        else:
            high = np.int64(middle)
    return low


@numba.njit(cache=True, nogil=True)
def any_reaches(scores_L, floor):  # type: ignore[no-untyped-def]  # compiled
    """Whether one of the scores is at least `floor`."""
    reached = np.int32(0)
    for lane in range(len(scores_L)):
        reached |= np.int32(scores_L[lane] >= floor)
    return reached


@numba.njit(cache=True, nogil=True)
def offer_rows(scores_RM, documents_R, first, floor_M, target_U, entry_U):  # type: ignore[no-untyped-def]  # compiled
    """Note to which columns, the documents `first`, `first` + 1, …, a row of the block is near enough.

    Args:
        scores_RM: int32; rows after the documents mean nothing.
        documents_R: the rows.
        first: of the columns.
        floor_M: the least score that may better the list of each column, at least `LEAST_FLOOR`.
        target_U: documents whose lists may be bettered, written.
        entry_U: by which entry, written.

    Returns:
        How many updates there are.
    """
    num = 0
    for r in range(len(documents_R)):
        for start in range(0, len(floor_M), LANES):
            scores_L, floor_L = scores_RM[r, start : start + LANES], floor_M[start : start + LANES]
            most_above = np.int32(-1)
            for lane in range(len(floor_L)):
                most_above = max(most_above, np.int32(scores_L[lane] - floor_L[lane]))
            if most_above < 0:
                continue
            for lane in range(len(scores_L)):
                if scores_L[lane] >= floor_L[lane]:
                    target_U[num] = first + start + lane
                    entry_U[num] = make_entry(scores_L[lane], documents_R[r])
                    num += 1
    return num


# What was found


@numba.njit(cache=True, nogil=True)
def multiply(a_D, b_D):  # type: ignore[no-untyped-def]  # compiled
    """The exact product of two encoded vectors, of 8 or of 16 bits.

    No sum leaves 32 bits, in whatever order it is taken: it is at most the product of the two lengths.
    """
    total = np.int32(0)
    for d in range(a_D.shape[0]):
        total = np.int32(total + np.int32(a_D[d]) * np.int32(b_D[d]))  # casts keep it in 32 bits: three times as fast
    return total


@numba.njit(cache=True, nogil=True)
def rank(lists_NW, encoded_ND, inverse_length_N, first, cosine_RK, row_RK):  # type: ignore[no-untyped-def]  # compiled
    """The nearest of the candidates of documents `first`, `first` + 1, …, by the cosine of their 16-bit vectors.

    A cosine depends on the two vectors alone, to the bit: their product is exact.

    Args:
        lists_NW: candidates.
        encoded_ND: int16 vectors.
        inverse_length_N: of these vectors, which rounding has left a hair longer or shorter than others.
        first: the first of R documents.
        cosine_RK: float32, written: falling, -inf after the last.
        row_RK: int32, written: `NO_ROW` after the last.
    """
    cosine_RK[:] = -np.inf
    row_RK[:] = NO_ROW
    for r in range(row_RK.shape[0]):
        for found, entry in enumerate(lists_NW[first + r]):
            if entry == NO_ENTRY:
                break
            row = np.int32((entry & ROW_BITS) >> 1)
            product = np.float32(multiply(encoded_ND[first + r], encoded_ND[row]))
            cosine = min(product * inverse_length_N[first + r] * inverse_length_N[row], np.float32(1))
            put_in_place(cosine, row, min(found, row_RK.shape[1]), cosine_RK[r], row_RK[r])


@numba.njit(cache=True, nogil=True)
def put_in_place(cosine, row, found, cosine_K, row_K):  # type: ignore[no-untyped-def]  # compiled
    """Put a document among the `found` nearest, and the last one out of K; of equally near ones the lower row first."""
    place = found
    while place > 0 and (cosine > cosine_K[place - 1] or (cosine == cosine_K[place - 1] and row < row_K[place - 1])):
        if place < len(row_K):
            cosine_K[place], row_K[place] = cosine_K[place - 1], row_K[place - 1]
        place -= 1
    if place < len(row_K):
        cosine_K[place], row_K[place] = cosine, row
