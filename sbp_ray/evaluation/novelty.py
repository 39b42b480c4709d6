"""Novel n-grams: which runs of tokens a sample has that the corpus does not.

Memory is bounded by the sample: the corpus streams past the sample's own n-grams, batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NGRAM_LENGTHS = (1, 2, 4, 8, 13)
MANY = 2  # documents beyond this number are not told apart

# T = tokens of all documents, one after another, D = documents, W = runs that lie within a document,
# U = distinct runs of the sample

_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)  # odd, its bits well mixed
_SHIFT = np.uint64(32)

NgramTable = dict[int, NDArray[np.uint64]]
"""For each length, the sample's distinct runs, hashed and sorted: uint64 [U]."""
NgramCounts = dict[int, NDArray[np.uint8]]
"""For each length, in how many documents each of the table's runs stands, `MANY` standing for more: uint8 [U]."""


def ngram_hashes(ids_T: NDArray[Any], lengths_D: NDArray[Any], length: int) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """Every run of `length` tokens that lies within one document.

    Returns:
        Hashes uint64 [W] and the number of each run's document int64 [W].
    """
    num_runs = len(ids_T) - length + 1
    if num_runs <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    document_T = np.repeat(np.arange(len(lengths_D)), lengths_D)
    within = document_T[:num_runs] == document_T[length - 1 :]
    ids = ids_T.astype(np.uint64)
    hashes = np.zeros(num_runs, np.uint64)
    for offset in range(length):
        hashes = (hashes ^ (ids[offset : offset + num_runs] + np.uint64(1))) * _MULTIPLIER
        hashes ^= hashes >> _SHIFT
    return hashes[within], document_T[:num_runs][within]


def ngram_table(documents: Sequence[Sequence[int]]) -> NgramTable:
    """The distinct runs of a sample."""
    ids_T, lengths_D = flatten(documents)
    return {length: np.unique(ngram_hashes(ids_T, lengths_D, length)[0]) for length in NGRAM_LENGTHS}


def count_documents(table: NgramTable, ids_T: NDArray[Any], lengths_D: NDArray[Any]) -> NgramCounts:
    """For each of the table's runs, how many of the documents hold it, `MANY` standing for more. uint8 [U]."""
    counts: NgramCounts = {}
    for length, known_U in table.items():
        hashes_W, document_W = ngram_hashes(ids_T, lengths_D, length)
        place_W = np.searchsorted(known_U, hashes_W)
        hit_W = place_W < len(known_U)
        hit_W[hit_W] = known_U[place_W[hit_W]] == hashes_W[hit_W]
        once = np.unique(place_W[hit_W] * len(lengths_D) + document_W[hit_W]) // max(1, len(lengths_D))
        counts[length] = np.minimum(np.bincount(once, minlength=len(known_U)), MANY).astype(np.uint8)
    return counts


def add_counts(total: NgramCounts, more: NgramCounts) -> NgramCounts:
    """Counts of two parts of the corpus together."""
    return {length: np.minimum(total[length] + more[length], MANY) for length in more} if total else more


def novel_shares(
    documents: Sequence[Sequence[int]], table: NgramTable, counts: NgramCounts, *, own: int
) -> dict[str, float | None]:
    """Share of the sample's runs, counted as often as they stand there, that no other document of the corpus holds.

    Args:
        own: 1 when the sample is part of the corpus, and each document therefore holds its own runs; else 0.

    Returns:
        For each length, as text, a share, or None when no document of the sample is that long.
    """
    ids_T, lengths_D = flatten(documents)
    shares: dict[str, float | None] = {}
    for length, known_U in table.items():
        hashes_W, _ = ngram_hashes(ids_T, lengths_D, length)
        novel_W = counts[length][np.searchsorted(known_U, hashes_W)] <= own
        shares[str(length)] = float(novel_W.mean()) if novel_W.size else None
    return shares


def flatten(documents: Sequence[Sequence[int]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Token ids of all documents one after another, and each one's length."""
    lengths_D = np.array([len(ids) for ids in documents], np.int64)
    parts = [np.asarray(ids, np.int64) for ids in documents if len(ids)]
    return (np.concatenate(parts) if parts else np.empty(0, np.int64)), lengths_D
