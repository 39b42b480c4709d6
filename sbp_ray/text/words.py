"""What a word is, for all that compares texts by their words.

Words are runs of letters, marks and digits of the text in NFKC and without case; a character of a script that is
written without spaces is a word of its own.

Legend: C characters of words, W words.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sbp_ray.text.hashing import mixed

_PLACE_SHIFT = np.uint64(32)
_PART, _ALONE, _DIGIT = 1, 2, 4  # bits: of words; a word of its own; also a digit
# Thai to Tibetan's neighbours, kana, Han with its extensions.
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


class Words(NamedTuple):
    """The words of some texts, in their order."""

    hash_W: NDArray[np.uint64]
    """Adds up hashes of a word's characters and places."""
    text_W: NDArray[np.int64]
    """The number of each word's text."""
    is_number_W: NDArray[np.bool_]
    """Whether a digit is in it."""


def split_words(texts: Sequence[str]) -> Words:
    """All words of the texts."""
    normalised = [_normalised(text) for text in texts]
    codes = _codes("\n".join(normalised))
    place_C = np.flatnonzero(_kinds()[codes])
    if len(place_C) == 0:
        return Words(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, bool))
    code_C = codes[place_C]
    is_alone_C = _kinds()[code_C] & _ALONE > 0
    is_first_C = np.ones(len(place_C), bool)
    is_first_C[1:] = (np.diff(place_C) > 1) | is_alone_C[1:] | is_alone_C[:-1]
    start_W = np.flatnonzero(is_first_C)
    within_C = np.arange(len(place_C)) - np.repeat(start_W, np.diff(start_W, append=len(place_C)))
    hash_C = mixed(mixed(code_C.astype(np.uint64) | (within_C.astype(np.uint64) << _PLACE_SHIFT)))
    ends = np.cumsum([len(text) + 1 for text in normalised])
    text_W = np.searchsorted(ends, place_C[start_W], "right")
    is_number_W = np.logical_or.reduceat(_kinds()[code_C] & _DIGIT > 0, start_W)
    return Words(mixed(np.add.reduceat(hash_C, start_W)), text_W, is_number_W)


def word_ids(text: str) -> NDArray[np.uint64]:
    """A number for each word: case, white space, punctuation and Unicode forms leave no trace.

    Tokens of a byte-level BPE would not do to compare documents by: an upper-cased or re-wrapped copy shares none.

    Returns:
        uint64[W]; of a text without letters and digits, a number for each of its characters.
    """
    hash_W = split_words([text]).hash_W
    return hash_W if len(hash_W) else mixed(_codes("".join(_normalised(text).split())).astype(np.uint64))


def normalize_unicode(form: Literal["NFC", "NFKC"], text: str) -> str:
    """As `unicodedata.normalize`, whose time is quadratic in a run of combining marks: after 30 of them, more than any
    language has, an invisible joiner is put in, as Unicode's stream-safe text format does."""
    return unicodedata.normalize(form, text if text.isascii() else _many_marks().sub("\\g<0>\u034f", text))


@functools.cache
def _many_marks() -> re.Pattern[str]:
    marks = "".join(chr(code) for code in range(0x110000) if unicodedata.combining(chr(code)))
    return re.compile(f"[{marks}]{{30}}")


def _normalised(text: str) -> str:
    return normalize_unicode("NFKC", text).casefold()


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """What each code point is: bits, none of which is set where it is no part of a word."""
    classes = [unicodedata.category(chr(code))[0] for code in range(0x110000)]
    kinds = np.array([_PART * (c in "LMN") + _DIGIT * (c == "N") for c in classes], np.uint8)
    for first, last in _WITHOUT_SPACES:
        kinds[first : last + 1] += (_ALONE - _PART) * (kinds[first : last + 1] & _PART)
    return kinds
