"""Measures of a document's quality that need nothing but its tokens or words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sbp_ray.text.shingles import shingle_hashes

TYPE_TOKEN_WORDS = 50
"""Words of a window in which types are counted: shorter documents have no ratio."""


def repetition_share(input_ids: Sequence[int] | NDArray, n: int = 4) -> float:
    """The share of the document's n-grams that repeat an earlier one of the same document.

    0 for a text that never says the same four tokens twice (and for one too short to), near 1 for a loop.

    Args:
        input_ids: int[T], the document without special tokens.
    """
    num_ngrams = len(input_ids) - n + 1
    if num_ngrams < 1:
        return 0.0
    return 1 - shingle_hashes(input_ids, n).size / num_ngrams


def type_token_ratio(words: NDArray, window: int = TYPE_TOKEN_WORDS) -> float | None:
    """Distinct words in a window of words, as a share of it, on average over all windows of the document.

    The moving average (Covington and McFall, "Cutting the Gordian Knot", 2010) does not depend on the document's
    length, as the plain ratio of types to tokens does.

    Args:
        words: a number for each word, such as `words.word_ids` gives.
        window: words.

    Returns:
        None for a document shorter than the window.
    """
    if len(words) < window:
        return None
    ordered_NW = np.sort(np.lib.stride_tricks.sliding_window_view(words, window), axis=1)
    types_N = 1 + np.count_nonzero(ordered_NW[:, 1:] != ordered_NW[:, :-1], axis=1)
    return float(types_N.mean() / window)
