"""Reads input files row by row: each row is a text that can be used, or a reason why not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sbp_ray.decompression import DamagedFileError
from sbp_ray.file_formats import kind_of, open_bytes, read_head
from sbp_ray.ingestion.hugging_face import hugging_face_rows
from sbp_ray.ingestion.row_sources import Row, json_rows, parquet_rows, text_rows
from sbp_ray.input_files import HUGGING_FACE
from sbp_ray.text.lines import first_byte

_COLUMNS_KEPT = 100  # names that are remembered of a file, for errors


class Record(NamedTuple):
    """A row that can be used."""

    line: int
    """Line of the file, or of the part that is read, or row of the table, from 1."""
    text: str
    group: str | None
    """Value of the group column; None where there is none."""
    source: str | None = None
    """Value of the source column."""


class BadRow(NamedTuple):
    """A row that cannot be used."""

    line: int
    reason: str


class Damage(NamedTuple):
    """Why a file could not be read to its end: the last that is yielded of it."""

    line: int
    """The first row that was not read."""
    reason: str
    bytes_unread: int
    """Of the file as it is stored, as far as that can be told: what a cut file has lost is unknown."""


class SeenColumns:
    """What the rows of a file hold."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.num_rows = self.num_texts = 0
        self.has_group = self.has_source = False
        self.types: Counter[str] = Counter()
        """Of what the text column holds where it is no text."""
        self.from_byte = 0
        """Where the part begins whose lines are counted."""

    def add(self, row: Mapping[str, Any], text: Any, has_group: bool, has_source: bool) -> None:
        self.num_rows += 1
        self.has_group = self.has_group or has_group
        self.has_source = self.has_source or has_source
        if len(self.names) < _COLUMNS_KEPT and not row.keys() <= self.names.keys():
            self.names |= dict.fromkeys(row)
        if isinstance(text, str | bytes):
            self.num_texts += 1
        else:
            self.types[_type_name(text)] += 1


class RecordReader:
    """Reads files with one choice of columns."""

    def __init__(
        self, text_column: str, group_column: str | None, max_chars: int, source_column: str | None = None
    ) -> None:
        self._text_column, self._group_column, self._max_chars = text_column, group_column, max_chars
        self._source_column = source_column

    def read(
        self, path: str, part: int = 0, num_parts: int = 1, seen: SeenColumns | None = None
    ) -> Iterator[Record | BadRow | Damage]:
        """Every row of a file, or of a part of it, in order, with memory for a few rows.

        Args:
            path: as `find_input_files` returns it, or `hf:NAME`.
            part: of a file or a Hugging Face dataset that several workers share, from 0.
            num_parts: number of those workers.
            seen: takes in what the rows hold.

        Raises:
            SbpError: the file is of a kind that cannot be read.
        """
        seen = SeenColumns() if seen is None else seen
        line = 0  # of the last row, where the file breaks off
        try:
            for line, row in self._rows(path, part, num_parts, seen):
                if isinstance(row, str):
                    yield BadRow(line, row)
                else:
                    columns = self._text_column, self._group_column, self._source_column
                    text, group, source = (_lookup(row, column) for column in columns)
                    seen.add(row, text, group is not _ABSENT, source is not _ABSENT)
                    yield self._check(line, text, _name_in(group), _name_in(source))
        except DamagedFileError as error:
            yield Damage(line + 1, error.reason, error.bytes_unread)

    def _rows(self, path: str, part: int, num_parts: int, seen: SeenColumns) -> Iterator[Row]:
        if path.startswith(HUGGING_FACE):
            return hugging_face_rows(path, part, num_parts)
        with open_bytes(path) as stream:
            kind = kind_of(path, read_head(stream), self._text_column)
        if kind == "parquet":
            wanted = [name for name in (self._text_column, self._group_column, self._source_column) if name]
            return parquet_rows(path, wanted, part, num_parts)
        if kind == "text":
            return text_rows(path, self._text_column, self._max_chars)
        seen.from_byte = first_byte(path, part, num_parts)
        return json_rows(path, self._max_chars, part, num_parts)

    def _check(self, line: int, text: Any, group: str | None, source: str | None) -> Record | BadRow:
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError:
                return BadRow(line, "not_utf8")
        if text is None or text is _ABSENT:
            return BadRow(line, "no_text")
        if not isinstance(text, str):
            return BadRow(line, "text_not_a_string")
        if not text or text.isspace():
            return BadRow(line, "empty")
        if len(text) > self._max_chars:
            return BadRow(line, "too_long")
        if not all(map(_is_utf8, (text, group or "", source or ""))):
            return BadRow(line, "not_utf8")
        return Record(line, text, group, source)


_ABSENT = object()


def _lookup(row: Mapping[str, Any], name: str | None) -> Any:
    """The value of a column, or under the dots of its name that of a field of one."""
    if name is None or name in row:
        return _ABSENT if name is None else row[name]
    value: Any = row
    for field in name.split("."):
        if not isinstance(value, Mapping) or field not in value:
            return _ABSENT
        value = value[field]
    return value


def _name_in(value: Any) -> str | None:
    """A group or a source. Nothing, NaN (which tables have in its place) and an empty string name none.

    7.0 names what 7 does: tables hold whole numbers as floats where one of a column is missing.
    """
    if value is _ABSENT or value is None or value in ("", b"") or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _type_name(value: Any) -> str:
    """In the words of JSON."""
    if value is _ABSENT:
        return "nothing"
    names = {type(None): "null", bool: "a truth value", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _is_utf8(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
