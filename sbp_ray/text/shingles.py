"""Shingles: runs of tokens or words, hashed, by which near-duplicates are told from related texts."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# T = tokens of the document, S = distinct shingles

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: odd, well mixed bits
_SHIFT = np.uint64(32)

# Scripts written without spaces, whose characters stand for words: Thai, Lao, Burmese, Khmer, kana, Han
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


def word_ids(text: str) -> NDArray[np.uint32]:
    """A number for each word of the normalised text: case, white space, punctuation and Unicode forms leave no trace.

    Tokens of a byte-level BPE would not do to compare documents by: an upper-cased or re-wrapped copy shares none.

    Returns:
        uint32[T]; of a text without letters and digits, a number for each of its characters.
    """
    normal = unicodedata.normalize("NFKC", text).casefold()
    words = _WORD.findall(normal) or list("".join(normal.split()))
    return np.fromiter((zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words), np.uint32, len(words))


def shingle_hashes(input_ids: Sequence[int] | NDArray, num_tokens: int = 13) -> NDArray[np.uint64]:
    """Hash every run of `num_tokens` tokens.

    Args:
        input_ids: int[T], the document without special tokens, or its words.
        num_tokens: length of a run. A shorter document has one shingle, all of it.

    Returns:
        uint64[S], sorted and unique; empty for an empty document.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens ({num_tokens}) must be positive")
    ids_T = np.asarray(input_ids).astype(np.uint64)
    if ids_T.size == 0:
        return np.empty(0, np.uint64)
    width = min(num_tokens, ids_T.size)
    hashes = np.full(ids_T.size - width + 1, width, np.uint64)
    for offset in range(width):  # unsigned arithmetic on arrays wraps around, as a hash wants
        hashes = (hashes ^ ids_T[offset : offset + hashes.size]) * _MULTIPLIER
        hashes ^= hashes >> _SHIFT
    return np.unique(hashes)


def jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """|a ∩ b| / |a ∪ b| of two results of `shingle_hashes`; 0 when both are empty."""
    common = _num_common(a, b)
    union = a.size + b.size - common
    return common / union if union else 0.0


def containment(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """|a ∩ b| / |a|: the share of `a` that `b` holds; 0 when `a` is empty."""
    return _num_common(a, b) / a.size if a.size else 0.0


def _num_common(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> int:
    return int(np.intersect1d(a, b, assume_unique=True).size)
