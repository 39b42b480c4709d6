"""What a text is about, apart from its form: its words that are no numbers and that few documents have.

Two earnings tables of two companies share their form alone; an updated story keeps its names though all of its figures
change. `common_words` finds the words of the form in a sample of a corpus, `content_words` leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sbp_ray.text.words import split_words

# W = words, S = distinct words

COMMON_SHARE = 0.01
"""Of all documents: a word that so many have is of the language, or of a form."""
_COMMON_DOCUMENTS = 8  # in a small corpus a hundredth may be the two documents that are to be compared


def distinct_words(text: str) -> NDArray[np.uint64]:
    """uint64[S], sorted: the text's words that are no numbers."""
    found = split_words([text])
    return np.unique(found.hash_W[~found.is_number_W])


def common_words(parts: Iterable[NDArray[np.uint64]], num_documents: int) -> NDArray[np.uint64]:
    """Sorted: words that a hundredth of the documents have.

    Args:
        parts: `distinct_words` of each document.
    """
    words, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *parts]), return_counts=True)
    return words[counts >= max(_COMMON_DOCUMENTS, COMMON_SHARE * num_documents)]


def content_words(text: str, common: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """uint64[S], sorted: the text's words that are no numbers and not common."""
    words_S = distinct_words(text)
    return words_S[~np.isin(words_S, common, assume_unique=True)]
