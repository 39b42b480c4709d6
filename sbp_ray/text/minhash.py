"""b-bit MinHash: how alike two documents' shingles are, from 256 bytes each instead of their texts.

Of each of 256 permutations of all shingles, the document's first shingle is taken, and of that one byte is kept (Li and
König, "b-Bit Minwise Hashing", WWW 2010). Two documents agree in a byte with probability J + (1 - J) / 256, where J is
the Jaccard index of their shingles.
"""

from __future__ import annotations

from hashlib import shake_256

import numpy as np
from numpy.typing import NDArray

from sbp_ray.text.shingles import shingle_hashes
from sbp_ray.text.words import word_ids

# S = distinct shingles, H = hashes, M = pairs of documents

NUM_HASHES = 256
_CHANCE = 1 / 256  # two different shingles have the same byte
_EMPTY = 255  # every byte of the signature of a document without shingles
_BLOCK_SHINGLES = 256  # with 256 hashes 256 KiB, which stays in a core's cache; also what bounds the memory
_BLOCK_PAIRS = 1024  # likewise

# Part of the format: signatures made with other numbers cannot be compared. NumPy's generators may change.
_RANDOM = np.frombuffer(shake_256(b"minhash").digest(2 * NUM_HASHES * 4), "<u4").astype(np.uint32)
_FACTOR_H = _RANDOM[:NUM_HASHES] | np.uint32(1)  # odd: a permutation of the uint32
_OFFSET_H = _RANDOM[NUM_HASHES:]


def document_signature(text: str, num_words: int) -> tuple[NDArray[np.uint8], int]:
    """The signature of a document and the number of its distinct shingles, each of `num_words` words.

    Words are those of `text.words`; a shorter document has one shingle, all of it.
    """
    shingles = shingle_hashes(word_ids(text), num_words)
    return signature(shingles), shingles.size


def signature(shingles: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """One byte for each permutation.

    Args:
        shingles: uint64[S], well mixed, in any order; repeats change nothing.

    Returns:
        uint8[256]; all 255 for an empty set, so that two empty sets pass for equal.
    """
    if shingles.size == 0:
        return np.full(NUM_HASHES, _EMPTY, np.uint8)
    values_S1 = shingles.astype(np.uint32)[:, None]
    first_H = np.full(NUM_HASHES, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, shingles.size, _BLOCK_SHINGLES):
        ranks_SH = values_S1[start : start + _BLOCK_SHINGLES] * _FACTOR_H
        ranks_SH += _OFFSET_H
        np.minimum(first_H, ranks_SH.min(axis=0), out=first_H)
    return _avalanched(first_H).astype(np.uint8)


def _avalanched(values_H: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's finalizer. Without it, two shingles that agree in their last byte would agree in all hashes."""
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13), (1, 16)):
        values_H = (values_H ^ (values_H >> np.uint32(shift))) * np.uint32(factor)
    return values_H


def estimate_jaccard(a_MH: NDArray[np.uint8], b_MH: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The Jaccard index of M pairs of documents, corrected for bytes that agree by chance.

    With P = J + (1 - J) / 256, the standard error is sqrt(P (1 - P) / 256) * 256 / 255: 0.031 at J = 0.6 (where it is
    nearly greatest), 0.019 at J = 0.1 and 0.9, 0.004 at J = 0.

    Args:
        a_MH: uint8[M, 256], signatures.
        b_MH: uint8[M, 256], the others' signatures.

    Returns:
        float32[M], clipped to [0, 1].
    """
    if a_MH.shape != b_MH.shape or a_MH.shape[1:] != (NUM_HASHES,):
        raise ValueError(f"signatures of shapes {a_MH.shape} and {b_MH.shape} cannot be compared")
    equal_M = np.empty(len(a_MH), np.float32)
    for start in range(0, len(a_MH), _BLOCK_PAIRS):
        rows = slice(start, start + _BLOCK_PAIRS)
        is_equal_MH = np.ascontiguousarray(a_MH[rows] == b_MH[rows])
        # Eight bytes at a time: each is summed over 32 words, so none runs over.
        sums = is_equal_MH.view(np.uint64).sum(axis=1, dtype=np.uint64)
        equal_M[rows] = sums.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.uint16)
    return jaccard_of(equal_M)


def jaccard_of(num_equal: NDArray[np.number]) -> NDArray[np.float32]:
    """The Jaccard index of documents whose signatures agree in so many bytes; see `estimate_jaccard`."""
    share = num_equal.astype(np.float32) / np.float32(NUM_HASHES)
    return np.clip((share - np.float32(_CHANCE)) / np.float32(1 - _CHANCE), 0, 1)


def estimate_containment(
    jaccard_M: NDArray[np.floating], num_a_M: NDArray[np.integer], num_b_M: NDArray[np.integer]
) -> NDArray[np.float32]:
    """The share of the smaller document's shingles that the larger one holds, from the Jaccard index and both sizes.

    |a ∩ b| = J / (1 + J) * (|a| + |b|). An error of J comes out multiplied by (1 + r) / (1 + J)², where r is how many
    times larger the larger one is. For a document that is wholly inside another, whose J is 1 / r, the standard error
    is 0.02 at r = 1.25, 0.04 at r = 2, 0.11 at r = 5 and 0.17 at r = 10.

    Args:
        jaccard_M: as `estimate_jaccard` gives it.
        num_a_M: distinct shingles of one document of each pair.
        num_b_M: and of the other.

    Returns:
        float32[M], clipped to [0, 1]; 0 where a document has no shingles.
    """
    num_a, num_b = num_a_M.astype(np.float64), num_b_M.astype(np.float64)
    common_M = jaccard_M / (1.0 + jaccard_M) * (num_a + num_b)
    smaller_M = np.minimum(num_a, num_b)
    share_M = np.divide(common_M, smaller_M, out=np.zeros_like(common_M), where=smaller_M > 0)
    return np.clip(share_M, 0, 1).astype(np.float32)
