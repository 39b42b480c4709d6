"""The loops that matrix products leave over, compiled by Numba: keeping the best, joining lists, comparing signatures.

A document's candidates are a sorted list of integers, `score << 32 | row << 1 | is_fresh`: an entry sorts by score,
names its row, and tells whether the row has yet to be compared with the other candidates of the list. Scores are exact,
so that the same pair has the same score wherever it is found, and duplicates come to stand next to each other.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

# R = rows of a block of scores, M = its columns, N = documents, W = candidates kept, K = neighbours, D = vector length
# B = documents whose lists name each other, U = updates

NO_ROW = -1
NO_ENTRY = -(1 << 62)
_SUMS = {"reassoc", "contract"}  # sums may be taken in lanes; -inf stays what it is
_SAME = 1e-6  # cosines of one pair differ by less, wherever they are computed
_LANES = 64  # columns whose maximum is taken together: four 512-bit registers
_ROW = 0xFFFFFFFF
_LOWEST = -(2**31)
LEAST_FLOOR = -(2**30)  # lower than any score; a score less this is still an int32
_HALVINGS = 12
_LONG = 40  # from here on, halving finds a place faster than going through the entries


@numba.njit(cache=True, nogil=True)
def scale_down(encoded_ND, factor, highest, coarse_ND):  # type: ignore[no-untyped-def]  # compiled
    """Write int16 times `factor`, rounded, at most `highest`, as int8; columns after the last of `encoded_ND` stay."""
    for n in range(encoded_ND.shape[0]):
        own, scaled = encoded_ND[n], coarse_ND[n]
        for d in range(own.shape[0]):
            level = np.rint(np.float32(own[d]) * factor)
            scaled[d] = np.int8(min(max(level, -highest), highest))


def new_lists(num_documents: int, num_wanted: int) -> NDArray[np.int64]:
    """int64[N, W], nothing found yet."""
    return np.full((num_documents, num_wanted), NO_ENTRY, np.int64)


@numba.njit(cache=True, nogil=True)
def _insert(list_W, entry):  # type: ignore[no-untyped-def]  # compiled
    """Put an entry in its place, and the last one out; 0 when it is there already or not good enough, else 1."""
    last = list_W.shape[0] - 1
    if entry <= list_W[last]:
        return 0
    place = last
    if last < _LONG:
        while place > 0 and list_W[place - 1] < entry:
            place -= 1
    else:
        least = 0
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
def _entry(score, row):  # type: ignore[no-untyped-def]  # compiled
    return np.int64(score) << 32 | np.int64(row) << 1 | 1


@numba.njit(cache=True, nogil=True)
def offer_columns(scores_RM, documents_R, own_R, first, lists_NW):  # type: ignore[no-untyped-def]  # compiled
    """Offer to each of `documents_R` the rows `first`, `first` + 1, …, whose columns these are, but not `own_R`."""
    num_wanted = lists_NW.shape[1]
    highest_L = np.empty(_LANES, np.int32)
    for r in range(len(documents_R)):
        list_W = lists_NW[documents_R[r]]
        floor = max(list_W[-1] >> 32, _LOWEST)
        if list_W[-1] == NO_ENTRY and num_wanted < _LANES:  # so many lanes hold something that is at least as high
            _highest_of_lanes(scores_RM[r], highest_L)
            floor = _exceeded_by(highest_L, num_wanted + 1)  # one may be `own_R`
        for start in range(0, scores_RM.shape[1], _LANES):
            scores_L = scores_RM[r, start : start + _LANES]
            if not _any_reaches(scores_L, np.int32(floor)):
                continue
            for lane in range(len(scores_L)):
                row = first + start + lane
                if scores_L[lane] >= floor and row != own_R[r]:
                    _insert(list_W, _entry(scores_L[lane], row))
                    floor = max(floor, list_W[-1] >> 32)


@numba.njit(cache=True, nogil=True)
def _highest_of_lanes(scores_M, highest_L):  # type: ignore[no-untyped-def]  # compiled
    """The highest of the columns lane, lane + L, …

    Whole registers and no branches: 0.1 ns a score, where a plain loop takes 0.5 ns.
    """
    num_lanes = len(highest_L)
    highest_L[:] = _LOWEST
    for start in range(0, len(scores_M), num_lanes):
        scores_L = scores_M[start : start + num_lanes]
        for lane in range(len(scores_L)):
            highest_L[lane] = max(highest_L[lane], scores_L[lane])


@numba.njit(cache=True, nogil=True)
def _exceeded_by(score_L, num):  # type: ignore[no-untyped-def]  # compiled
    """Nearly the highest score that at least `num` of these reach; halving is ten times as fast as sorting."""
    low, high = np.int64(score_L.min()), np.int64(score_L.max()) + 1
    for _ in range(_HALVINGS):
        middle = np.int32((low + high) // 2)
        reached = np.int32(0)
        for lane in range(len(score_L)):
            reached += np.int32(score_L[lane] >= middle)
        if reached >= num:
            low = np.int64(middle)
        else:
            high = np.int64(middle)
    return low


@numba.njit(cache=True, nogil=True)
def _any_reaches(scores_L, floor):  # type: ignore[no-untyped-def]  # compiled
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
        How many there are.
    """
    num = 0
    for r in range(len(documents_R)):
        for start in range(0, len(floor_M), _LANES):
            scores_L, floor_L = scores_RM[r, start : start + _LANES], floor_M[start : start + _LANES]
            if _most_above(scores_L, floor_L) < 0:
                continue
            for lane in range(len(scores_L)):
                if scores_L[lane] >= floor_L[lane]:
                    target_U[num] = first + start + lane
                    entry_U[num] = _entry(scores_L[lane], documents_R[r])
                    num += 1
    return num


@numba.njit(cache=True, nogil=True)
def _most_above(scores_L, floor_L):  # type: ignore[no-untyped-def]  # compiled
    most = np.int32(-1)
    for lane in range(len(floor_L)):
        most = max(most, np.int32(scores_L[lane] - floor_L[lane]))
    return most


@numba.njit(cache=True, nogil=True)
def rows_of(lists_NW):  # type: ignore[no-untyped-def]  # compiled
    """The rows that entries name, int32[N, W], `NO_ROW` after the last."""
    row_NW = np.empty(lists_NW.shape, np.int32)
    for n in range(lists_NW.shape[0]):
        for w in range(lists_NW.shape[1]):
            entry = lists_NW[n, w]
            row_NW[n, w] = NO_ROW if entry == NO_ENTRY else (entry & _ROW) >> 1
    return row_NW


# Joining lists


@numba.njit(cache=True, nogil=True)
def add_sources(lists_NW, width, first, end, joined_NB, num_N):  # type: ignore[no-untyped-def]  # compiled
    """Collect the rows that documents `first` to `end` join: those of their lists, then those whose lists name them.

    Args:
        lists_NW: candidates.
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
            joined_NB[n, count] = np.int32(lists_NW[n, count] & _ROW)
            count += 1
        num_N[n] = count
    for w in range(width):
        for n in range(lists_NW.shape[0]):
            entry = lists_NW[n, w]
            named = (entry & _ROW) >> 1
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
def forget_fresh(lists_NW, width):  # type: ignore[no-untyped-def]  # compiled
    """Once the nearest `width` of each list have been collected for joining, they are not fresh any more."""
    for n in range(lists_NW.shape[0]):
        for w in range(width):
            if lists_NW[n, w] != NO_ENTRY:
                lists_NW[n, w] &= ~np.int64(1)


@numba.njit(cache=True, nogil=True)
def _dot(a_D, b_D):  # type: ignore[no-untyped-def]  # compiled
    total = np.int32(0)
    for d in range(a_D.shape[0]):
        total = np.int32(total + np.int32(a_D[d]) * np.int32(b_D[d]))  # casts keep it in 32 bits: three times as fast
    return total


@numba.njit(cache=True, nogil=True)
def _have_met(part_P, other_part_P):  # type: ignore[no-untyped-def]  # compiled
    """Whether one of two documents has probed the part of a cell where the other lives, which is its first part."""
    met = False
    for p in range(len(part_P)):
        met |= (part_P[p] == other_part_P[0]) | (other_part_P[p] == part_P[0])
    return met


@numba.njit(cache=True, nogil=True)
def join(joined_NB, num_N, first, end, vectors_ND, part_NP, lists_NW, target_U, entry_U):  # type: ignore[no-untyped-def]  # compiled
    """Compare the documents that a list brings together, and note which of them betters the list of the other.

    Two documents are compared if one of them is fresh and they have not met in a cell.

    Args:
        joined_NB: the lists, see `add_sources`.
        num_N: entries of each.
        first: of the lists to join.
        end: the one after the last.
        vectors_ND: int8.
        part_NP: the parts of cells that each document has probed, the part where it lives first.
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
        num_fresh = 0
        for is_fresh in (1, 0):
            place = num_fresh
            for b in range(num_N[n]):
                if joined_NB[n, b] & 1 == is_fresh:
                    row_B[place] = joined_NB[n, b] >> 1
                    place += 1
            if is_fresh:
                num_fresh = place
        if num_fresh == 0:
            continue
        for b in range(num_N[n]):
            part_BP[b] = part_NP[row_B[b]]
            floor_B[b] = max(lists_NW[row_B[b], -1] >> 32, _LOWEST)
        for i in range(num_fresh):
            for j in range(i + 1, num_N[n]):
                if _have_met(part_BP[i], part_BP[j]):
                    continue
                score = _dot(vectors_ND[row_B[i]], vectors_ND[row_B[j]])
                if score > floor_B[i]:
                    target_U[num_updates], entry_U[num_updates] = row_B[i], _entry(score, row_B[j])
                    num_updates += 1
                if score > floor_B[j]:
                    target_U[num_updates], entry_U[num_updates] = row_B[j], _entry(score, row_B[i])
                    num_updates += 1
    return end, num_updates


@numba.njit(cache=True, nogil=True)
def better(target_U, entry_U, first, end, lists_NW):  # type: ignore[no-untyped-def]  # compiled
    """Carry out the updates of documents `first` to `end`, which no other thread does; returns how many took effect."""
    num = 0
    for u in range(len(target_U)):
        if first <= target_U[u] < end:
            num += _insert(lists_NW[target_U[u]], entry_U[u])
    return num


# What was found


@numba.njit(cache=True, nogil=True, fastmath=_SUMS)
def rank(lists_NW, encoded_ND, inverse_length_N, first, cosine_RK, row_RK):  # type: ignore[no-untyped-def]  # compiled
    """The nearest of the candidates of documents `first`, `first` + 1, …, by the cosine of their 16-bit vectors.

    Args:
        lists_NW: candidates.
        encoded_ND: int16 vectors.
        inverse_length_N: of these vectors, which rounding has left a hair longer or shorter than others.
        first: the first of R documents.
        cosine_RK: float32, written: falling, -inf after the last.
        row_RK: int32, written: `NO_ROW` after the last.
    """
    k = row_RK.shape[1]
    cosine_RK[:] = -np.inf
    row_RK[:] = NO_ROW
    for r in range(row_RK.shape[0]):
        own = encoded_ND[first + r]
        found = 0
        for entry in lists_NW[first + r]:
            if entry == NO_ENTRY:
                break
            row = np.int32((entry & _ROW) >> 1)
            other = encoded_ND[row]
            product = np.float32(0)
            for d in range(own.shape[0]):
                product += np.float32(own[d]) * np.float32(other[d])
            cosine = min(product * inverse_length_N[first + r] * inverse_length_N[row], np.float32(1))
            place = min(found, k)
            while place > 0 and _is_before(cosine, row, cosine_RK[r, place - 1], row_RK[r, place - 1]):
                if place < k:
                    cosine_RK[r, place], row_RK[r, place] = cosine_RK[r, place - 1], row_RK[r, place - 1]
                place -= 1
            if place < k:
                cosine_RK[r, place], row_RK[r, place] = cosine, row
                found = min(found + 1, k)


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


@numba.njit(cache=True, nogil=True, fastmath=_SUMS)
def keep_exact(scores_QB, scale, error_Q, query_QD, block_BD, own_Q, first_row, cosine_QK, row_QK):  # type: ignore[no-untyped-def]  # compiled
    """Compare queries in float32 with the documents of a block that may be among their nearest.

    Args:
        scores_QB: int32 products of rounded vectors; rows after the queries mean nothing.
        scale: what one of these stands for.
        error_Q: how far from the cosine such a product is at most.
        query_QD: float32.
        block_BD: float32.
        own_Q: the column that is the query itself, or -1.
        first_row: the number of the first column.
        cosine_QK: falling, changed in place.
        row_QK: the numbers of these, changed in place.
    """
    k = cosine_QK.shape[1]
    highest_L = np.empty((k // _LANES + 2) * _LANES, np.int32)
    for q in range(len(query_QD)):
        floor = _floor(cosine_QK[q, k - 1], error_Q[q], scale)
        if floor == _LOWEST:
            _highest_of_lanes(scores_QB[q], highest_L)
            # so many lanes hold a document that is at least as near, one of which may be the query itself
            least = _exceeded_by(highest_L, k + 1) * scale - error_Q[q]
            floor = _floor(least, error_Q[q], scale)
        for start in range(0, scores_QB.shape[1], _LANES):
            scores_L = scores_QB[q, start : start + _LANES]
            if not _any_reaches(scores_L, np.int32(floor)):
                continue
            for lane in range(len(scores_L)):
                b = start + lane
                if scores_L[lane] < floor or b == own_Q[q]:
                    continue
                cosine = np.float32(0)
                for d in range(query_QD.shape[1]):
                    cosine += query_QD[q, d] * block_BD[b, d]
                if cosine > cosine_QK[q, k - 1]:
                    place = k - 1
                    while place > 0 and cosine > cosine_QK[q, place - 1]:
                        cosine_QK[q, place], row_QK[q, place] = cosine_QK[q, place - 1], row_QK[q, place - 1]
                        place -= 1
                    cosine_QK[q, place], row_QK[q, place] = cosine, first_row + b
                    floor = max(floor, _floor(cosine_QK[q, k - 1], error_Q[q], scale))


@numba.njit(cache=True, nogil=True)
def _floor(least, error, scale):  # type: ignore[no-untyped-def]  # compiled
    """The least product that may stand for a cosine of `least`, when it is off by `error` at most."""
    return np.int64(max(np.floor((np.float64(least) - error) / scale), np.float64(_LOWEST)))


@numba.njit(cache=True, nogil=True)
def merge_lists(first_N1, list_M, cosine_MK, id_MK2, source_NK):  # type: ignore[no-untyped-def]  # compiled
    """The nearest of what several lists of each document hold, each neighbour once; of equally near the lower id first.

    Two lists may give the same neighbour cosines that differ in the last bits, when CPUs of two kinds computed them.

    Args:
        first_N1: [N + 1] where the lists of each document begin in `list_M`.
        list_M: numbers of lists, document after document.
        cosine_MK: float32, falling, -inf after the last of a list.
        id_MK2: the ids as two numbers each.
        source_NK: list * K + place of each document's neighbours, nearest first, -1 after the last; written.
    """
    k = cosine_MK.shape[1]
    for n in range(len(first_N1) - 1):
        found = 0
        source_NK[n] = -1
        for m in list_M[first_N1[n] : first_N1[n + 1]]:
            for j in range(k):
                if cosine_MK[m, j] == -np.inf:
                    break
                place = found
                while place > 0 and _is_nearer(
                    cosine_MK, id_MK2, m, j, source_NK[n, place - 1] // k, source_NK[n, place - 1] % k
                ):
                    place -= 1
                if place == k:
                    break
                if _is_among(cosine_MK, id_MK2, m, j, source_NK[n, :found], place):
                    continue
                for i in range(min(found, k - 1), place, -1):
                    source_NK[n, i] = source_NK[n, i - 1]
                source_NK[n, place] = m * k + j
                found = min(found + 1, k)


@numba.njit(cache=True, nogil=True)
def _is_nearer(cosine_MK, id_MK2, m, j, other, i):  # type: ignore[no-untyped-def]  # compiled
    if cosine_MK[m, j] != cosine_MK[other, i]:
        return cosine_MK[m, j] > cosine_MK[other, i]
    if id_MK2[m, j, 0] != id_MK2[other, i, 0]:
        return id_MK2[m, j, 0] < id_MK2[other, i, 0]
    return id_MK2[m, j, 1] < id_MK2[other, i, 1]


@numba.njit(cache=True, nogil=True)
def _is_among(cosine_MK, id_MK2, m, j, source_F, place):  # type: ignore[no-untyped-def]  # compiled
    """Whether entry `j` of list `m`, whose place that would be, is there already, a last bit nearer or further."""
    k = cosine_MK.shape[1]
    for step in (-1, 1):
        f = place - 1 if step < 0 else place
        while 0 <= f < len(source_F):
            other, i = source_F[f] // k, source_F[f] % k
            if abs(cosine_MK[other, i] - cosine_MK[m, j]) > _SAME:
                break
            if id_MK2[other, i, 0] == id_MK2[m, j, 0] and id_MK2[other, i, 1] == id_MK2[m, j, 1]:
                return True
            f += step
    return False
