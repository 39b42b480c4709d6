"""Words that a tokenizer spells letter by letter, because it was made for other languages.

A vocabulary often has the letters of scripts in which it has no words: BERT's English one spells Arabic, Russian,
Greek, Hebrew, Hindi and Korean so, with hardly an unknown token, and its model makes nothing of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

# V = vocabulary, T = tokens of all texts, R = runs of letters

_RUN = 4  # letters in a row: fewer are initials, or a name that is spelt once
_MIN_VOCAB_SIZE = 5_000  # fewer tokens are so many letters, and few words, by design
_WORDS_OF_ONE_SIGN = ("CJK", "HIRAGANA", "KATAKANA")


def single_letters(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.bool_]:
    """Which tokens are one letter or a part of one, bool [V]; none in a vocabulary that is made to spell."""
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    if len(pieces) < _MIN_VOCAB_SIZE:
        return np.zeros(len(pieces), bool)
    decoder = tokenizer.backend_tokenizer.decoder
    return np.array([_is_letter(decoder.decode([piece]) if decoder else piece) for piece in pieces], bool)


def _is_letter(piece: str) -> bool:
    char = (piece.removeprefix("##") or piece).strip()
    if len(char) != 1:
        return False
    is_sign = unicodedata.name(char, "").startswith(_WORDS_OF_ONE_SIGN)
    return char == "\ufffd" or (unicodedata.category(char)[0] in "LM" and not is_sign)


def count_spelt(texts: Sequence[NDArray[np.int32]], is_letter_V: NDArray[np.bool_]) -> int:
    """Tokens that are letters in runs of four and more."""
    if not is_letter_V.any() or not texts:
        return 0
    letters_T = np.concatenate([np.append(is_letter_V[text], False) for text in texts])  # no run beyond a text
    edges = np.flatnonzero(np.diff(letters_T, prepend=False))
    lengths_R = edges[1::2] - edges[::2]
    return int(lengths_R[lengths_R >= _RUN].sum())
