"""Documents that copy others, told by their MinHash signatures.

A signature's 256 bytes are cut into bands, and only documents that agree in a whole band are compared. Two documents
with a Jaccard index J agree in a byte with a chance of p = J + (1 - J) / 256, in a band of w bytes with p^w, and in
none of the 256 / w bands with (1 - p^w)^(256 / w). Bands of 8 bytes miss 0.27 % of the pairs at J = 0.8, and 57 %
at 0.6, where bands of 4 miss 0.01 %; the more alike two documents are, the fewer are missed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sbp_ray.text.minhash import NUM_HASHES, estimate_jaccard

# M = documents that are judged, H = 256 hashes, B = bands, P = pairs

# Of the pairs at the limit, which may be missed because they agree in no band.
_MOST_MISSED = 0.003
# A document is compared with the first one of its band and with so many right before it. Bands that thousands of
# unlike documents share, such as pages of one form, would else take the square of their number.
_COMPARED = 64


def missed_share(jaccard: float, width: int) -> float:
    """The share of pairs with this Jaccard index that agree in no band of `width` bytes."""
    same_byte = jaccard + (1 - jaccard) / 256
    return (1 - same_byte**width) ** (NUM_HASHES // width)


def band_width(max_jaccard: float) -> int:
    """The bytes of the widest band that finds practically all pairs above the limit."""
    return next((width for width in (8, 4, 2) if missed_share(max_jaccard, width) <= _MOST_MISSED), 1)


def band_keys(signature_MH: NDArray[np.uint8], width: int) -> NDArray[np.unsignedinteger]:
    """unsigned[M, B]: equal where all bytes of a band are."""
    return np.ascontiguousarray(signature_MH).view(f"u{width}")


def candidate_pairs(*keys_M: NDArray) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to compare: each with the rows before it that have its keys, a few at most.

    Args:
        keys_M: columns in which rows of equal keys lie together.

    Yields:
        int64[P], rows, and int64[P], an earlier row for each; the nearest ones first.
    """
    place_M = np.arange(len(keys_M[0]))
    is_first_M = np.zeros(len(place_M), bool)
    is_first_M[:1] = True
    for key_M in keys_M:
        is_first_M[1:] |= key_M[1:] != key_M[:-1]
    place_M -= np.maximum.accumulate(np.where(is_first_M, place_M, 0))
    later_P = np.flatnonzero(~is_first_M)
    for lag in range(1, _COMPARED + 1):
        later_P = later_P[place_M[later_P] >= lag]
        if not len(later_P):
            return
        yield later_P, later_P - lag
    yield later_P, later_P - place_M[later_P]


def copies_of_earlier(signature_MH: NDArray[np.uint8], max_jaccard: float) -> NDArray[np.bool_]:
    """Which documents copy one before them, in the order of the rows: overlap it by more than `max_jaccard`."""
    is_copy_M = np.zeros(len(signature_MH), bool)
    for key_M in band_keys(signature_MH, band_width(max_jaccard)).T:
        order_M = np.argsort(key_M, kind="stable")
        for later_P, earlier_P in candidate_pairs(key_M[order_M]):
            rows_P, others_P = order_M[later_P], order_M[earlier_P]
            is_open_P = ~is_copy_M[rows_P]
            rows_P, others_P = rows_P[is_open_P], others_P[is_open_P]
            is_alike_P = estimate_jaccard(signature_MH[rows_P], signature_MH[others_P]) > max_jaccard
            is_copy_M[rows_P[is_alike_P]] = True
    return is_copy_M
