"""Shingles: runs of tokens or words, hashed, by which near-duplicates are told from related texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sbp_ray.text.hashing import run_hashes

# T = tokens of the document, S = distinct shingles


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
    return np.unique(run_hashes(ids_T, min(num_tokens, ids_T.size)))


def containment(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """|a ∩ b| / |a|: the share of `a` that `b` holds; 0 when `a` is empty."""
    return np.intersect1d(a, b, assume_unique=True).size / a.size if a.size else 0.0
