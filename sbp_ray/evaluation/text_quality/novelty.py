"""Runs of tokens that a sample has and the corpus does not: novel n-grams, and what is copied from *any* document.

Memory is bounded by the samples, whatever the corpus holds. The runs of all samples together go into one hash table
(16 to 32 bytes for each run); the corpus streams past it once, shard by shard, and each of its runs is looked up. A
worker keeps 9 bytes for each place of the table beside the batch of rows that it reads, and sends back one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from sbp_ray.evaluation.intervals import mean_over_groups
from sbp_ray.text.hashing import mixed, run_hashes

NGRAM_LENGTHS = (1, 2, 4, 8, 13)
COPIED_RUN = 13
"""Tokens of a run that nobody writes twice by chance."""
MANY = 2
"""Counts of documents end here."""
COPY_CONTAINMENT = 0.5
"""A document is a copy when at least this share of its runs of 13 tokens stands elsewhere."""

# T = tokens of all documents, one after another, D = documents, L = lengths of runs, C = places of the table

# Zero stands for an empty place of the table, and for a run that would cross the end of its document.
_NO_RUN = np.uint64(0)
_SHIFT = np.uint64(32)
_ONE = np.uint64(1)
_NO_DOCUMENT = -1


@numba.njit(cache=True, nogil=True)
def _place(keys_C, hashed):  # type: ignore[no-untyped-def]  # compiled
    """Where the hash stands in the table, or the empty place where it would."""
    mask = np.uint64(keys_C.shape[0] - 1)
    place = (hashed >> _SHIFT) & mask if mask < (_ONE << _SHIFT) else hashed & mask
    while keys_C[place] != hashed and keys_C[place] != _NO_RUN:
        place = (place + _ONE) & mask
    return place


@numba.njit(cache=True, nogil=True)
def _insert(keys_C, hashes_W):  # type: ignore[no-untyped-def]  # compiled
    for w in range(hashes_W.shape[0]):
        keys_C[_place(keys_C, hashes_W[w])] = hashes_W[w]


@numba.njit(cache=True, nogil=True)
def _count(keys_C, hashes_LT, lengths_D, first_number, first_C, counts_C):  # type: ignore[no-untyped-def]  # compiled
    """Count, up to `MANY`, the documents that hold each run of the table; `first_C` says which was the first."""
    start = 0
    for d in range(lengths_D.shape[0]):
        end, number = start + lengths_D[d], first_number + d
        for t in range(start, end):
            for row in range(hashes_LT.shape[0]):
                hashed = hashes_LT[row, t]
                if hashed == _NO_RUN:
                    break
                place = _place(keys_C, hashed)
                if keys_C[place] == _NO_RUN:
                    continue
                if first_C[place] == _NO_DOCUMENT:
                    first_C[place] = number
                    counts_C[place] = 1
                elif first_C[place] != number:
                    counts_C[place] = MANY
        start = end


@numba.njit(cache=True, nogil=True)
def _counts_of(keys_C, counts_C, hashes_LT, found_LT):  # type: ignore[no-untyped-def]  # compiled
    for row in range(hashes_LT.shape[0]):
        for t in range(hashes_LT.shape[1]):
            if hashes_LT[row, t] != _NO_RUN:
                found_LT[row, t] = counts_C[_place(keys_C, hashes_LT[row, t])]


def hash_all_runs(ids_T: NDArray[Any], lengths_D: NDArray[Any]) -> NDArray[np.uint64]:
    """uint64[L, T]: of each length the run that begins at each token; 0 where its document ends before it."""
    left_T = np.repeat(np.cumsum(lengths_D), lengths_D) - np.arange(len(ids_T))
    token_T = mixed(mixed(ids_T.astype(np.uint64) + _ONE))  # small numbers would give equal hashes to unlike runs
    hashes_LT = np.zeros((len(NGRAM_LENGTHS), len(ids_T)), np.uint64)
    for row, length in enumerate(NGRAM_LENGTHS):
        hashes = np.maximum(run_hashes(token_T, length), _ONE)
        hashes_LT[row, : len(hashes)] = np.where(left_T[: len(hashes)] >= length, hashes, _NO_RUN)
    return hashes_LT


def hash_table(samples: Sequence[Sequence[Sequence[int]]]) -> NDArray[np.uint64]:
    """uint64[C]: the distinct runs of all samples, of every length, with open addressing.

    C is a power of two, and at most half of the places are taken.
    """
    hashes = [hash_all_runs(*flatten(documents)) for documents in samples]
    num_runs = sum(int(np.count_nonzero(hashes_LT)) for hashes_LT in hashes)
    keys_C = np.zeros(1 << (2 * num_runs + 1).bit_length(), np.uint64)
    for hashes_LT in hashes:
        _insert(keys_C, hashes_LT[hashes_LT != _NO_RUN])
    return keys_C


class DocumentCounter:
    """Counts in how many of the documents that stream past each run of a table stands."""

    def __init__(self, keys_C: NDArray[np.uint64]) -> None:
        self._keys_C = keys_C
        self._first_C = np.full(len(keys_C), _NO_DOCUMENT, np.int64)
        self._num_documents = 0
        self.counts_C = np.zeros(len(keys_C), np.uint8)
        """`MANY` stands for more."""

    def add(self, ids_T: NDArray[Any], lengths_D: NDArray[Any]) -> None:
        """Take in some documents, each of which comes once."""
        hashes_LT = hash_all_runs(ids_T, lengths_D)
        _count(self._keys_C, hashes_LT, lengths_D.astype(np.int64), self._num_documents, self._first_C, self.counts_C)
        self._num_documents += len(lengths_D)


def add_counts(total_C: NDArray[np.uint8], more_C: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Counts of two parts of the corpus together."""
    return np.minimum(total_C + more_C, MANY).astype(np.uint8)


@dataclass(frozen=True)
class KnownRuns:
    """Which runs of a sample stand in the corpus."""

    known_LT: NDArray[np.bool_]
    is_run_LT: NDArray[np.bool_]
    """False where the document ends before the run would."""
    lengths_D: NDArray[np.int64]

    def novel_shares(self) -> dict[str, float | None]:
        """Share of the sample's runs, counted as often as they stand there, that no document of the corpus holds.

        For each length, as text; None when no document of the sample is that long.
        """
        totals = self.is_run_LT.sum(axis=1)
        novel = (self.is_run_LT & ~self.known_LT).sum(axis=1)
        return {
            str(length): float(count / total) if total else None
            for length, count, total in zip(NGRAM_LENGTHS, novel, totals, strict=True)
        }

    def copied(self) -> tuple[list[int], NDArray[np.float64], NDArray[np.int64]]:
        """The documents with a run of `COPIED_RUN` tokens. Of each: the share of such runs that the corpus holds, and
        the tokens of the longest stretch all of whose runs it holds (in one document or several)."""
        row = NGRAM_LENGTHS.index(COPIED_RUN)
        found = []
        for number, end in enumerate(np.cumsum(self.lengths_D).tolist()):
            known = self.known_LT[row, end - self.lengths_D[number] : max(0, end - COPIED_RUN + 1)]
            if known.size:
                stretch = _longest_stretch(known)
                found.append((number, known.mean(), stretch + COPIED_RUN - 1 if stretch else 0))
        numbers, shares, longest = zip(*found, strict=True) if found else ((), (), ())
        return list(numbers), np.array(shares, np.float64), np.array(longest, np.int64)


def known_runs(
    documents: Sequence[Sequence[int]], keys_C: NDArray[np.uint64], counts_C: NDArray[np.uint8], *, own: int
) -> KnownRuns:
    """Which runs of some documents stand in the corpus.

    Args:
        keys_C: a table that the documents went into.
        counts_C: of the corpus, for its places.
        own: 1 when the sample is part of the corpus, and each document therefore holds its own runs; else 0.
    """
    ids_T, lengths_D = flatten(documents)
    hashes_LT = hash_all_runs(ids_T, lengths_D)
    found_LT = np.zeros(hashes_LT.shape, np.uint8)
    _counts_of(keys_C, counts_C, hashes_LT, found_LT)
    return KnownRuns(found_LT > own, hashes_LT != _NO_RUN, lengths_D)


def copied_shares(share_N: NDArray[np.float64], groups_N: Sequence[str], *, seed: int) -> dict[str, Any]:
    """What shares of texts that stand elsewhere come to: their mean, and how many are copies, or have any of it."""
    values = {"copied_share": share_N, "copies": share_N >= COPY_CONTAINMENT, "any_copied": share_N > 0}
    return {name: mean_over_groups(value_N, groups_N, seed=seed) for name, value_N in values.items()}


def copying_of_corpus(runs: KnownRuns, groups: Sequence[str], *, seed: int) -> dict[str, Any] | None:
    """How much a sample's documents share with any document of the corpus; None where all are too short.

    Returns:
        documents: those that are long enough for a run of 13 tokens.
        copied_share: mean share of a document's runs of 13 tokens that stand in the corpus.
        copies: share of the documents in which that is `COPY_CONTAINMENT` or more.
        any_copied: share of the documents with at least one such run.
        longest: median, 90th percentile and greatest length in tokens of the longest stretch found in the corpus.
    """
    numbers, share_N, longest_N = runs.copied()
    if not numbers:
        return None
    p50, p90 = np.quantile(longest_N, [0.5, 0.9])
    return {
        "documents": len(numbers),
        **copied_shares(share_N, [groups[number] for number in numbers], seed=seed),
        "longest": {"median": float(p50), "p90": float(p90), "max": int(longest_N.max())},
    }


def _longest_stretch(known: NDArray[np.bool_]) -> int:
    """How many places in a row are true at most."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max()) if edges.size else 0


def flatten(documents: Sequence[Sequence[int]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Token ids of all documents one after another, and each one's length."""
    lengths_D = np.array([len(ids) for ids in documents], np.int64)
    parts = [np.asarray(ids, np.int64) for ids in documents if len(ids)]
    return (np.concatenate(parts) if parts else np.empty(0, np.int64)), lengths_D
