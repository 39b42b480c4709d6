"""What each token of a text says: the value of a fact, by how often the training text states it; a name; the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbp_ray.bios.statements import Reading, Span
from sbp_ray.evaluation.facts.known_text import MOST_TIMES, KnownText

# T = tokens of a text

VALUES = tuple(f"value_{times}" for times in range(MOST_TIMES + 1))
"""Of facts that are stated never, once, twice, and more often."""
CLASSES = (*VALUES, "name", "rest")
"""By their numbers."""
_NAME, _REST = len(VALUES), len(VALUES) + 1


def classify_tokens(text: str, token_spans: Sequence[Span], reading: Reading, known: KnownText) -> NDArray[np.uint8]:
    """The class of each token, uint8 [T], by its first character that is no space.

    Args:
        token_spans: the characters of each token.
    """
    classes_C = np.full(len(text), _REST, np.uint8)
    for start, end in (*reading.other_names, *(statement.name_at for statement in reading.statements)):
        classes_C[start:end] = _NAME
    for statement in reading.statements:
        start, end = statement.value_at
        classes_C[start:end] = known.times(statement.fact)
    classes_T = np.full(len(token_spans), _REST, np.uint8)
    for token, (start, end) in enumerate(token_spans):
        inked = next((place for place in range(start, end) if not text[place].isspace()), None)
        if inked is not None:
            classes_T[token] = classes_C[inked]
    return classes_T


def token_spans(tokenizer: Any, text: str) -> list[Span]:
    """The characters of each token of a text, without special tokens, as `encode_texts` makes them."""
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    return [(start, end) for start, end in encoded["offset_mapping"]]
