"""Contamination: documents that share a long run of words with an evaluation set.

Words are those of `sbp_ray.text.words`. All strings of an evaluation set's rows count, whatever their columns and
however deep, except those under `id` and `…_id`. A string gives its n-grams of `ngram_words` words; a shorter one gives
none, and cannot be checked.

`read_evaluation_sets` makes an `EvaluationNgrams` of the files, a row at a time; its `find` says which texts share an
n-gram with which sets, `count_hits` and `describe_contamination` what comes of that in a manifest and a log.

Legend: W words, G n-grams.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sbp_ray.config import DecontaminateConfig
from sbp_ray.errors import SbpError
from sbp_ray.file_formats import KINDS, split_suffixes
from sbp_ray.input_files import find_input_files
from sbp_ray.text.hashing import run_hashes
from sbp_ray.text.lines import iter_json
from sbp_ray.text.words import split_words

SETTING = "decontaminate.evaluation_sets"
_MAX_NGRAMS = 50_000_000  # 0.6 GB in each worker
_FILTER = 16  # bits for each n-gram
_CHUNK_CHARS = 1 << 20  # some 50 bytes each while they are hashed


class EvaluationSet(NamedTuple):
    """What there is to check against."""

    name: str
    """The file's name without its suffix; files of one name are one set."""
    num_items: int
    """Rows."""
    num_too_short: int
    """Rows of which no string has `ngram_words` words."""


class EvaluationNgrams:
    """Hashes of the evaluation sets' n-grams: sorted, once for each set that holds them."""

    def __init__(self, sets: Sequence[EvaluationSet], ngrams: Sequence[NDArray[np.uint64]], ngram_words: int) -> None:
        """`ngrams` holds those of each set, each once."""
        self.sets, self.ngram_words = tuple(sets), ngram_words
        hashes_G = np.concatenate([np.empty(0, np.uint64), *ngrams])
        order_G = np.argsort(hashes_G, kind="stable")
        self._hashes_G = hashes_G[order_G]
        self._set_G = np.repeat(np.arange(len(ngrams), dtype=np.uint16), [len(part) for part in ngrams])[order_G]
        self._filter_bits = max(3, (_FILTER * len(hashes_G)).bit_length())
        self._filter = _bit_table(self._hashes_G, self._filter_bits)

    @property
    def num_ngrams(self) -> int:
        return len(self._hashes_G)

    def count_hits(self, num_documents: int, by_set: Mapping[str, int]) -> dict[str, Any] | None:
        """What a manifest says of the check; None where there are no sets.

        Args:
            num_documents: dropped.
            by_set: how many of them share an n-gram with each set; a document can share some with several.
        """
        if not self.sets:
            return None
        return {
            "ngram_words": self.ngram_words,
            "ngrams": self.num_ngrams,
            "documents": num_documents,
            "sets": {
                s.name: {"items": s.num_items, "too_short": s.num_too_short, "documents": by_set.get(s.name, 0)}
                for s in self.sets
            },
        }

    def find(self, texts: Sequence[str]) -> dict[int, tuple[str, ...]]:
        """The texts that share an n-gram with a set: their numbers, and the names of those sets."""
        found: dict[int, tuple[str, ...]] = {}
        if self.num_ngrams == 0:
            return found
        for start, part in _chunks(texts):
            hashes_G, text_G = ngram_hashes(part, self.ngram_words)
            slot_G = hashes_G >> np.uint64(64 - self._filter_bits)
            is_likely_G = (self._filter[slot_G >> np.uint64(3)] >> (slot_G & np.uint64(7)).astype(np.uint8)) & 1
            likely = np.flatnonzero(is_likely_G)
            hashes_G, text_G = hashes_G[likely], text_G[likely]
            place_G = np.searchsorted(self._hashes_G, hashes_G)
            is_hit_G = self._hashes_G[np.minimum(place_G, self.num_ngrams - 1)] == hashes_G
            for text in np.unique(text_G[is_hit_G]).tolist():
                found[start + text] = self._names(hashes_G[is_hit_G & (text_G == text)])
        return found

    def _names(self, hashes_G: NDArray[np.uint64]) -> tuple[str, ...]:
        """Of the sets that hold at least one of the hashes."""
        first_G, last_G = (np.searchsorted(self._hashes_G, hashes_G, side) for side in ("left", "right"))
        numbers = {int(n) for a, b in zip(first_G, last_G, strict=True) for n in self._set_G[a:b]}
        return tuple(self.sets[number].name for number in sorted(numbers))


def describe_contamination(counted: Mapping[str, Any]) -> str:
    """`EvaluationNgrams.count_hits` in one line."""
    sets, words = counted["sets"], counted["ngram_words"]
    by_set = ", ".join(f"{name} {part['documents']:,}" for name, part in sets.items() if part["documents"])
    num_items, num_too_short = (sum(part[key] for part in sets.values()) for key in ("items", "too_short"))
    return (
        f"{counted['documents']:,} documents share {words} words in a row with an evaluation set and are dropped"
        + (f" ({by_set})" if by_set else "")
        + f" | {num_items:,} items in {len(sets)} sets, {num_too_short:,} too short to check"
    )


def _bit_table(sorted_G: NDArray[np.uint64], num_bits: int) -> NDArray[np.uint8]:
    """A bit for each value of the first `num_bits` bits of a hash: set where there is such a hash.

    Looking there first spares nearly all binary searches, which took 60 % of the time.
    """
    table = np.zeros(1 << (num_bits - 3), np.uint8)
    if len(sorted_G):
        slot_G = sorted_G >> np.uint64(64 - num_bits)
        byte_G = slot_G >> np.uint64(3)
        starts = np.flatnonzero(np.append(True, byte_G[1:] != byte_G[:-1]))
        bits_G = np.uint8(1) << (slot_G & np.uint64(7)).astype(np.uint8)
        table[byte_G[starts]] = np.bitwise_or.reduceat(bits_G, starts)
    return table


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Slices of some 10^6 characters, each with its start."""
    start = num_chars = 0
    for end, text in enumerate(texts, start=1):
        num_chars += len(text) + 1
        if num_chars >= _CHUNK_CHARS or end == len(texts):
            yield start, texts[start:end]
            start, num_chars = end, 0


# Reading the sets


def list_evaluation_files(cfg: DecontaminateConfig) -> list[tuple[str, int]]:
    """The files of the evaluation sets, with their sizes in bytes.

    Raises:
        SbpError: one is not there, is empty, or is not JSONL.
    """
    try:
        files = find_input_files(cfg.evaluation_sets).files
    except SbpError as error:
        raise SbpError(f"{SETTING}: {error}") from None
    for path, _ in files:
        if KINDS.get(split_suffixes(path)[0], "json") != "json":
            raise SbpError(f"{SETTING}: {path}: is no file of JSON lines: convert it")
    return files


def read_evaluation_sets(cfg: DecontaminateConfig) -> EvaluationNgrams:
    """Read all sets, a row at a time.

    Raises:
        SbpError: a file is not there or broken, or the sets hold more n-grams than fit in memory.
    """
    counts: dict[str, tuple[int, int]] = {}
    ngrams: dict[str, list[NDArray[np.uint64]]] = {}
    for path, _ in list_evaluation_files(cfg):
        name = posixpath.basename(path)[: -len("".join(split_suffixes(path))) or None]
        num_items, num_too_short = counts.get(name, (0, 0))
        parts = ngrams.setdefault(name, [])
        for rows in _row_chunks(path):
            hashes_G, text_G = ngram_hashes([text for row in rows for text in row], cfg.ngram_words)
            row_of_text = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
            num_items += len(rows)
            num_too_short += len(rows) - len(np.unique(row_of_text[text_G]))
            _add_part(parts, _union([hashes_G]))
            if sum(len(part) for parts in ngrams.values() for part in parts) > _MAX_NGRAMS:
                raise SbpError(
                    f"{SETTING}: more than {_MAX_NGRAMS:,} n-grams, which is no evaluation set's size, reached in "
                    f"{path}: name the evaluation files only"
                )
        counts[name] = (num_items, num_too_short)
    sets = [EvaluationSet(name, *counts[name]) for name in counts]
    return EvaluationNgrams(sets, [_union(ngrams[s.name]) for s in sets], cfg.ngram_words)


def _add_part(parts: list[NDArray[np.uint64]], part: NDArray[np.uint64]) -> None:
    """Merge like sizes only, so that each n-gram is sorted a few times however many parts there are."""
    parts.append(part)
    while len(parts) > 1 and 2 * len(parts[-1]) >= len(parts[-2]):
        parts[-2:] = [_union(parts[-2:])]


def _union(parts: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Sorted, each once. `np.unique` hashes, which took 6 times as long."""
    hashes_G = np.sort(np.concatenate([np.empty(0, np.uint64), *parts]))
    return hashes_G[np.append(True, hashes_G[1:] != hashes_G[:-1])] if len(hashes_G) else hashes_G


def _row_chunks(path: str) -> Iterator[list[list[str]]]:
    """The strings of each row; rows of some 10^6 characters together."""
    rows: list[list[str]] = []
    num_chars = 0
    for _, row in iter_json(path, f"{SETTING}: {path}", "mend or remove the line"):
        rows.append(list(iter_strings(row)))
        num_chars += sum(map(len, rows[-1])) + 1
        if num_chars >= _CHUNK_CHARS:
            yield rows
            rows, num_chars = [], 0
    if rows:
        yield rows


def iter_strings(value: Any) -> Iterator[str]:
    """All strings of a row however deep, except those under `id` and `…_id`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name != "id" and not name.endswith("_id"):
                yield from iter_strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from iter_strings(inner)


# Hashing


def ngram_hashes(texts: Sequence[str], ngram_words: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hash every run of `ngram_words` words of each text: the same number in every process.

    Returns:
        uint64[G], the hashes in the texts' order, and int64[G], the number of the text that each is from.
    """
    hash_W, text_W, _ = split_words(texts)
    hashes_G = run_hashes(hash_W, ngram_words)
    num_ngrams = len(hashes_G)
    is_within_G = text_W[:num_ngrams] == text_W[ngram_words - 1 :]
    return hashes_G[is_within_G], text_W[:num_ngrams][is_within_G]
