"""Reads input files row by row: each row is a text that can be used, or a reason why not."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from sbp_ray.errors import SbpError, one_line
from sbp_ray.sources import HUGGING_FACE, list_input_files, open_bytes, open_file_system

FILE_COLUMN = "file"  # of a .txt file, beside its text
_MAX_LINE_BYTES = 64 << 20
_ROWS_TO_TELL = 1000  # a file without one usable row among so many has the wrong columns
_BATCH_ROWS = 256
_TINY_FILES = 1000  # .txt files read as one unit of work


class Unit(NamedTuple):
    """Input that one worker reads in one go."""

    paths: tuple[str, ...]
    part: int = 0
    num_parts: int = 1


def input_units(patterns: Sequence[str]) -> list[Unit]:
    """The work, in an order that depends on the input alone: a file each, except that small .txt files go together.

    Raises:
        SbpError: a pattern matches nothing that can be read.
    """
    names = [name for name in patterns if name.startswith(HUGGING_FACE)]
    paths = [path for path, _ in list_input_files(name for name in patterns if name not in names)]
    texts = [path for path in paths if path.endswith(".txt")]
    units = [Unit((path,)) for path in paths if not path.endswith(".txt")]
    units += [Unit(tuple(texts[start : start + _TINY_FILES])) for start in range(0, len(texts), _TINY_FILES)]
    for name in names:
        num_parts = open_hugging_face(name).num_shards
        units += [Unit((name,), part, num_parts) for part in range(num_parts)]
    return units


class Record(NamedTuple):
    """A row that can be used."""

    line: int
    """Line of the file, or row of the table, from 1."""
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
        """Every row of a file, in order, with memory for a few rows.

        Args:
            path: as `list_input_files` returns it, or `hf:NAME`.
            part: of a Hugging Face dataset that several workers share, from 0.
            num_parts: number of those workers.

        Raises:
            SbpError: the file has no usable text column, or not the group column.
        """
        if path.startswith(HUGGING_FACE):
            dataset = open_hugging_face(path)
            shard = dataset.shard(num_parts, part) if num_parts > 1 else dataset
            return self._checked(path, enumerate(shard, start=1))
        if path.endswith(".parquet"):
            return self._checked(path, _parquet_rows(path, self._wanted()))
        if path.endswith(".txt"):
            return self._checked(path, self._text_file(path))
        return self._checked(path, _json_rows(path, max(_MAX_LINE_BYTES, 12 * self._max_chars)))

    def _wanted(self) -> list[str]:
        return [self._text_column] + ([self._group_column] if self._group_column else [])

    def _text_file(self, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
        with open_bytes(path) as stream:
            text = stream.read(4 * self._max_chars + 4)  # enough to see that it is too long
        yield 1, {self._text_column: _cut_character(text, self._max_chars), FILE_COLUMN: path}

    def _checked(self, path: str, rows: Iterable[tuple[int, dict[str, Any] | str]]) -> Iterator[Record | BadRow]:
        """Judge each row; a string in place of a row is the reason why it could not be read."""
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
            if num_rows == _ROWS_TO_TELL:
                self._require_columns(path, columns, num_texts)
            yield checked
        if num_rows:
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


def _json_rows(path: str, max_bytes: int) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for line, data in _lines(path, max_bytes):
        if isinstance(data, str):
            yield line, data
            continue
        try:
            row = json.loads(data.decode("utf-8-sig" if line == 1 else "utf-8"))
        except UnicodeDecodeError:
            yield line, "not_utf8"
        except (ValueError, RecursionError):
            yield line, "broken_json"
        else:
            yield line, row if isinstance(row, dict) else "not_an_object"


def _lines(path: str, max_bytes: int) -> Iterator[tuple[int, bytes | str]]:
    """Lines that are not blank, each of at most `max_bytes`; in place of others, the reason."""
    with open_bytes(path) as raw:
        stream = io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)  # Arrow's stream has what it needs
        for line in itertools.count(1):
            try:
                data = stream.readline(max_bytes)
                is_cut = len(data) == max_bytes and not data.endswith(b"\n")
                if is_cut:
                    _skip_line(stream)
            except OSError as error:
                if not _is_damage(path, error):
                    raise
                yield line, "damaged_file"
                return
            if is_cut:
                yield line, "too_long"
            elif not data:
                return
            elif not data.isspace():
                yield line, data


def _skip_line(stream: io.BufferedReader[Any]) -> None:
    while True:
        rest = stream.readline(1 << 20)
        if not rest or rest.endswith(b"\n"):
            return


def _is_damage(path: str, error: OSError) -> bool:
    """Whether a compressed file is cut off or broken, as opposed to a disk or network that fails."""
    words = ("inflate", "compressed", "zstd", "corrupt", "deserialize")
    return path.endswith((".gz", ".zst", ".parquet")) and any(word in str(error).lower() for word in words)


def _parquet_rows(path: str, wanted: list[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    fs, inner = open_file_system(path)
    with fs.open_input_file(inner) as stream:
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
        line = 0
        try:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                values = [_as_bytes(column).to_pylist() for column in batch.columns]
                for row in zip(*values, strict=True):
                    line += 1
                    yield line, {**unread, **dict(zip(batch.schema.names, row, strict=True))}
        except (pa.ArrowInvalid, OSError) as error:
            if not isinstance(error, pa.ArrowInvalid) and not _is_damage(path, error):
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
