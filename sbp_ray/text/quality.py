"""Measures of a document's quality that need nothing but its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import NDArray

from sbp_ray.text.shingles import shingle_hashes


def repetition_share(input_ids: Sequence[int] | NDArray, n: int = 4) -> float:
    """The share of the document's n-grams that repeat an earlier one of the same document.

    0 for a text that never says the same four tokens twice (and for one too short to), near 1 for a loop.

    Args:
        input_ids: int[T], the document without special tokens.
        n: tokens in an n-gram.
    """
    num_ngrams = len(input_ids) - n + 1
    if num_ngrams < 1:
        return 0.0
    return 1 - shingle_hashes(input_ids, n).size / num_ngrams
