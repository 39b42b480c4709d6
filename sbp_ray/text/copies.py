"""Documents that copy others, told by their MinHash signatures.

A signature's 256 bytes are 32 bands of 8. Two documents with a Jaccard index of 0.8 agree in at least one of them with
a chance of 0.997 (of 0.72 at 0.667, of 0.12 at 0.5), and only such pairs are compared. Bands of 4 find
all but one in ten thousand at 0.6, and 0.98 at 0.5; they also compare more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sbp_ray.text.minhash import estimate_jaccard

# M = documents that are judged, C = documents of a corpus shard, H = 256 hashes, B = bands


def _bands(signature_MH: NDArray[np.uint8], band_bytes: int = 8) -> NDArray[np.unsignedinteger]:
    """unsigned[M, 256 / band_bytes]: equal where all bytes of a band are."""
    return np.ascontiguousarray(signature_MH).view(f"u{band_bytes}")


def copies_of_earlier(signature_MH: NDArray[np.uint8], max_jaccard: float, *, band_bytes: int = 8) -> NDArray[np.bool_]:
    """Which documents copy one before them, in the order of the rows: overlap it by more than `max_jaccard`.

    In each band a document is compared with the first and with the nearest before it that agree with it: of many copies
    of one text, all but one are found.
    """
    is_copy_M = np.zeros(len(signature_MH), bool)
    for keys_M in _bands(signature_MH, band_bytes).T:
        order_M = np.argsort(keys_M, kind="stable")
        is_new_M = np.append(True, np.diff(keys_M[order_M]) != 0)[: len(order_M)]
        first_M = order_M[np.maximum.accumulate(np.where(is_new_M, np.arange(len(order_M)), 0))]
        later, before, first = order_M[~is_new_M], order_M[np.flatnonzero(~is_new_M) - 1], first_M[~is_new_M]
        for other in (first, before):
            is_alike = estimate_jaccard(signature_MH[later], signature_MH[other]) > max_jaccard
            is_copy_M[later[is_alike]] = True
    return is_copy_M


def copies_of_corpus(
    signature_MH: NDArray[np.uint8],
    own_ids: Sequence[bytes],
    corpus: Iterable[tuple[Sequence[bytes], NDArray[np.uint8]]],
    max_jaccard: float,
) -> NDArray[np.bool_]:
    """Which documents copy one of the corpus.

    Args:
        signature_MH: uint8[M, 256].
        own_ids: for each, the id of the corpus document that it is itself, which does not count; empty for none.
        corpus: the shards' ids and signatures, of which one is in memory at a time.
        max_jaccard: more overlap than this is a copy.
    """
    is_copy_M = np.zeros(len(signature_MH), bool)
    own_M = np.asarray(own_ids, object)
    bands_MB = _bands(signature_MH)
    for ids, signature_CH in corpus:
        if not len(ids) or not len(own_M):
            continue
        ids_C = np.asarray(ids, object)
        for keys_M, keys_C in zip(bands_MB.T, _bands(signature_CH).T, strict=True):
            order_C = np.argsort(keys_C, kind="stable")
            for side, step in (("left", 0), ("right", -1)):  # the first and the last of those that agree
                place_M = np.searchsorted(keys_C[order_C], keys_M, side=side) + step  # type: ignore[call-overload]
                found_M = order_C[np.clip(place_M, 0, len(order_C) - 1)]
                rows = np.flatnonzero((keys_C[found_M] == keys_M) & ~is_copy_M & (ids_C[found_M] != own_M))
                is_alike = estimate_jaccard(signature_MH[rows], signature_CH[found_M[rows]]) > max_jaccard
                is_copy_M[rows[is_alike]] = True
    return is_copy_M
