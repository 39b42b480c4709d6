"""Reads input files row by row: each row is a text that can be used, or a reason why not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sbp_ray.errors import SbpError, one_line
from sbp_ray.input_files import HUGGING_FACE, list_input_files, open_bytes, open_seekable
from sbp_ray.text.lines import is_damage, read_lines

FILE_COLUMN = "file"  # of a .txt file, beside its text
_MAX_LINE_BYTES = 64 << 20
_ROWS_TO_TELL = 1000  # a file without one usable row among so many has the wrong columns
_BATCH_ROWS = 256
_TINY_FILES = 1000  # .txt files read as one unit of work
_PART_BYTES = 1 << 30  # of a plain JSONL or Parquet file that several workers read


class Unit(NamedTuple):
    """Input that one worker reads in one go."""

    paths: tuple[str, ...]
    part: int = 0
    num_parts: int = 1


def input_units(patterns: Sequence[str]) -> list[Unit]:
    """The work, in an order that depends on the input alone.

    A file each; small .txt files go together, and large JSONL and Parquet files are read in parts.

    Raises:
        SbpError: a pattern matches nothing that can be read.
    """
    names = [name for name in patterns if name.startswith(HUGGING_FACE)]
    sizes = dict(list_input_files(name for name in patterns if name not in names))
    texts = [path for path in sizes if path.endswith(".txt")]
    units = []
    for path in sizes:
        num_parts = 0 if path.endswith(".txt") else _num_parts(path, sizes[path])
        units += [Unit((path,), part, num_parts) for part in range(num_parts)]
    units += [Unit(tuple(texts[start : start + _TINY_FILES])) for start in range(0, len(texts), _TINY_FILES)]
    for name in names:
        num_parts = open_hugging_face(name).num_shards
        units += [Unit((name,), part, num_parts) for part in range(num_parts)]
    return units


def _num_parts(path: str, size: int) -> int:
    """In how many parts a file is read; a compressed one only from its beginning."""
    wanted = max(1, -(-size // _PART_BYTES))
    if wanted == 1 or path.endswith(".jsonl"):
        return wanted
    return max(1, min(wanted, _num_row_groups(path))) if path.endswith(".parquet") else 1


def _num_row_groups(path: str) -> int:
    with open_seekable(path) as stream:
        try:
            return int(pq.ParquetFile(stream).num_row_groups)
        except pa.ArrowInvalid:  # whoever reads it will say so
            return 1


class Record(NamedTuple):
    """A row that can be used."""

    line: int
    """Line of the file, or of the part that is read, or row of the table, from 1."""
    text: str
    group: str | None
    """Value of the group column; None where there is none."""


class BadRow(NamedTuple):
    """A row that cannot be used."""

    line: int
    reason: str


class RecordReader:
    """Reads files with one choice of columns."""

    def __init__(self, text_column: str, group_column: str | None, max_chars: int) -> None:
        self._text_column, self._group_column, self._max_chars = text_column, group_column, max_chars

    def read(self, path: str, part: int = 0, num_parts: int = 1) -> Iterator[Record | BadRow]:
        """Every row of a file, or of a part of it, in order, with memory for a few rows.

        Args:
            path: as `list_input_files` returns it, or `hf:NAME`.
            part: of a file or a Hugging Face dataset that several workers share, from 0.
            num_parts: number of those workers.

        Raises:
            SbpError: the file has no usable text column, or not the group column.
        """
        if path.startswith(HUGGING_FACE):
            dataset = open_hugging_face(path)
            shard = dataset.shard(num_parts, part) if num_parts > 1 else dataset
            return self._checked(path, part, enumerate(shard, start=1))
        if path.endswith(".parquet"):
            return self._checked(path, part, _parquet_rows(path, self._wanted(), part, num_parts))
        if path.endswith(".txt"):
            return self._checked(path, part, self._text_file(path))
        max_bytes = max(_MAX_LINE_BYTES, 12 * self._max_chars)
        return self._checked(path, part, _json_rows(path, max_bytes, part, num_parts))

    def _wanted(self) -> list[str]:
        return [self._text_column] + ([self._group_column] if self._group_column else [])

    def _text_file(self, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
        with open_bytes(path) as stream:
            text = stream.read(4 * self._max_chars + 4)  # enough to see that it is too long
        yield 1, {self._text_column: _cut_character(text, self._max_chars), FILE_COLUMN: path}

    def _checked(
        self, path: str, part: int, rows: Iterable[tuple[int, dict[str, Any] | str]]
    ) -> Iterator[Record | BadRow]:
        """Judge each row; a string in place of a row is the reason why it could not be read.

        Whether the columns are there is told by the first part of a file.
        """
        columns: dict[str, None] = {}  # a set that keeps the order
        num_rows = num_texts = 0
        for line, row in rows:
            if isinstance(row, str):
                yield BadRow(line, row)
                continue
            num_rows += 1
            if num_texts == 0:
                columns |= dict.fromkeys(row)
            checked = self._check(line, row)
            num_texts += isinstance(row.get(self._text_column), str | bytes)
            if num_rows == _ROWS_TO_TELL and part == 0:
                self._require_columns(path, columns, num_texts)
            yield checked
        if num_rows and part == 0:
            self._require_columns(path, columns, num_texts)

    def _require_columns(self, path: str, columns: Iterable[str], num_texts: int) -> None:
        found = ", ".join(columns) or "none"
        if num_texts == 0:
            raise SbpError(f"{path}: no text in column {self._text_column!r}: set ingest.text_column to one of {found}")
        if self._group_column and self._group_column not in columns:
            raise SbpError(f"{path}: no column {self._group_column!r}: set ingest.group_column to one of {found}")

    def _check(self, line: int, row: dict[str, Any]) -> Record | BadRow:
        text = row.get(self._text_column)
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError:
                return BadRow(line, "not_utf8")
        if text is None:
            return BadRow(line, "no_text")
        if not isinstance(text, str):
            return BadRow(line, "text_not_a_string")
        if not text or text.isspace():
            return BadRow(line, "empty")
        if len(text) > self._max_chars:
            return BadRow(line, "too_long")
        group = row.get(self._group_column) if self._group_column else None
        if isinstance(group, bytes):
            group = group.decode("utf-8", "replace")
        group = None if group is None else str(group)
        if not _is_utf8(text) or not _is_utf8(group or ""):
            return BadRow(line, "not_utf8")
        return Record(line, text, group)


def _is_utf8(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _cut_character(data: bytes, max_chars: int) -> bytes:
    """Undo a cut within a character, so that too long a text is not taken for a broken one."""
    return data if len(data) < 4 * max_chars + 4 else data.decode("utf-8", "ignore").encode("utf-8")


def _json_rows(path: str, max_bytes: int, part: int, num_parts: int) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for line, data in read_lines(path, max_bytes, part, num_parts):
        if isinstance(data, str):
            yield line, data
            continue
        try:
            row = json.loads(data.decode("utf-8-sig" if line == 1 and part == 0 else "utf-8"))
        except UnicodeDecodeError:
            yield line, "not_utf8"
        except (ValueError, RecursionError):
            yield line, "broken_json"
        else:
            yield line, row if isinstance(row, dict) else "not_an_object"


def _parquet_rows(
    path: str, wanted: list[str], part: int, num_parts: int
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with open_seekable(path) as stream:
        try:
            file = pq.ParquetFile(stream)
        except pa.ArrowInvalid:
            yield 1, "damaged_file"
            return
        names = file.schema_arrow.names
        columns = [name for name in wanted if name in names]
        if wanted[0] not in columns:
            columns = names[:1]  # so that there are rows to say what is missing of
        unread = dict.fromkeys(names)
        first, end = (file.num_row_groups * number // num_parts for number in (part, part + 1))
        line = sum(file.metadata.row_group(number).num_rows for number in range(first))
        try:
            for batch in file.iter_batches(_BATCH_ROWS, list(range(first, end)), columns):
                values = [_as_bytes(column).to_pylist() for column in batch.columns]
                for row in zip(*values, strict=True):
                    line += 1
                    yield line, {**unread, **dict(zip(batch.schema.names, row, strict=True))}
        except (pa.ArrowInvalid, OSError) as error:
            if not isinstance(error, pa.ArrowInvalid) and not is_damage(path, error):
                raise
            yield line + 1, "damaged_file"


def _as_bytes(column: pa.Array) -> pa.Array:
    """Strings as bytes: Parquet does not promise that they are UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        return column.cast(pa.large_binary())
    return column


def open_hugging_face(path: str) -> Any:
    """The streaming train split of `hf:NAME`, or of `hf:NAME:CONFIG`.

    Raises:
        SbpError: there is no such dataset, or no network.
    """
    import datasets

    name, _, config = path.removeprefix(HUGGING_FACE).partition(":")
    try:
        return datasets.load_dataset(name, config or None, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise SbpError(
            f"{path}: cannot be opened ({one_line(error)}): check the name and the network, or download it first"
        ) from None
