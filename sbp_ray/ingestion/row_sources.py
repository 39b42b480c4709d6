"""Files -> rows: JSON lines, Parquet and texts, in one form.

A row is a mapping with its number, from 1, or in its place the reason why it could not be read. A file that cannot be
read to its end gives all rows before that, and then `DamagedFileError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sbp_ray.decompression import DamagedFileError
from sbp_ray.errors import SbpError, one_line, storage_trouble
from sbp_ray.file_formats import decode_cut, file_size, open_bytes, open_seekable
from sbp_ray.text.lines import read_lines

Row = tuple[int, Mapping[str, Any] | str]
FILE_COLUMN = "file"  # of a text file, beside its text
_MAX_LINE_BYTES = 64 << 20
_BATCH_ROWS = 256
_PARQUET_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, LookupError, MemoryError)


def json_rows(path: str, max_chars: int, part: int, num_parts: int) -> Iterator[Row]:
    """Lines of JSON objects, of a file or of a part of it, in which they are counted."""
    max_bytes = max(_MAX_LINE_BYTES, 12 * max_chars)
    for line, data in read_lines(path, max_bytes, part, num_parts):
        if data is None:
            yield line, "too_long"
            continue
        try:
            row = json.loads(data.decode("utf-8-sig" if line == 1 and part == 0 else "utf-8"))
        except UnicodeDecodeError:
            yield line, "not_utf8"
        except (ValueError, RecursionError):
            yield line, "broken_json"
        else:
            yield line, row if isinstance(row, dict) else "not_an_object"


def text_rows(path: str, text_column: str, max_chars: int) -> Iterator[Row]:
    """The one document that a text file is."""
    limit = 4 * max_chars + 4  # enough to see that it is too long
    with open_bytes(path) as stream:
        data = stream.read(limit)
    text = decode_cut(data) if len(data) == limit else data
    if text is None:
        yield 1, "not_utf8"
    else:
        text = text if isinstance(text, str) else text.removeprefix(b"\xef\xbb\xbf")
        yield 1, {text_column: text, FILE_COLUMN: path}


def parquet_rows(path: str, wanted: Sequence[str], part: int, num_parts: int) -> Iterator[Row]:
    """Rows of a table, or of a part of its row groups, with the columns wanted; the first names the others too."""
    line = num_rows = 0
    with _damage_described(path, lambda: (line, num_rows)), open_seekable(path) as stream:
        file = pq.ParquetFile(stream, page_checksum_verification=True)
        num_rows, schema = file.metadata.num_rows, file.schema_arrow
        _require_consistent(file.metadata)
        for name in wanted:
            if schema.names.count(name) > 1:
                raise SbpError(f"{path}: has the column {name!r} more than once: rename all but one")
        there = [name for name in wanted if _has_field(schema, name)]
        columns = [name if name in schema.names else name.partition(".")[0] for name in there] or schema.names[:1]
        first, end = (file.num_row_groups * number // num_parts for number in (part, part + 1))
        line = sum(file.metadata.row_group(number).num_rows for number in range(first))
        unread = dict.fromkeys(schema.names)
        for group in range(first, end):  # each by itself: one that is damaged leaves those before it whole
            end_line = line + file.metadata.row_group(group).num_rows
            for batch in file.iter_batches(_BATCH_ROWS, [group], columns):
                values = [_column(batch, name).to_pylist() for name in there]
                for number in range(len(batch)):
                    line += 1
                    yield line, {**unread, **{name: column[number] for name, column in zip(there, values, strict=True)}}
                    unread = {}
            if line != end_line:
                raise pa.ArrowInvalid(f"{end_line - line:,} rows of row group {group} are missing")


def _require_consistent(metadata: pq.FileMetaData) -> None:
    """Raises pa.ArrowInvalid where a footer contradicts itself: it has no checksum, and rows would be missing."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise pa.ArrowInvalid(f"the row groups do not add up to {metadata.num_rows:,} rows")
    flat = [number for number in range(metadata.num_columns) if not metadata.schema.column(number).max_repetition_level]
    for number, group in enumerate(groups):
        if any(group.column(column).num_values != group.num_rows for column in flat):
            raise pa.ArrowInvalid(f"the columns of row group {number} do not have its {group.num_rows:,} rows")


@contextmanager
def _damage_described(path: str, place: Any) -> Iterator[None]:
    """Say of what is wrong in a Parquet file that it is damage; a disk or a network that fails is none."""
    try:
        yield
    except _PARQUET_DAMAGE as error:
        message = one_line(error)
        if isinstance(error, OSError) and (error.errno is not None or storage_trouble(error)):
            raise
        if "ncrypt" in message:
            raise SbpError(f"{path}: is encrypted ({message}): write it without encryption") from None
        line, num_rows = place()
        lost = file_size(path) * (num_rows - line) // num_rows if num_rows else file_size(path)
        raise DamagedFileError(path, message, max(0, lost)) from None


def count_row_groups(path: str) -> int:
    """Row groups of a Parquet file."""
    with _damage_described(path, lambda: (0, 0)), open_seekable(path) as stream:
        return int(pq.ParquetFile(stream).num_row_groups)


def _has_field(schema: pa.Schema, name: str) -> bool:
    """Whether a column is there, or under the dots of its name a field of one."""
    if name in schema.names:
        return True
    first, *rest = name.split(".")
    kind = schema.field(first).type if first in schema.names else None
    for field in rest:
        if kind is None or not pa.types.is_struct(kind) or kind.get_field_index(field) < 0:
            return False
        kind = kind.field(field).type
    return kind is not None


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Strings as bytes: Parquet does not promise that they are UTF-8."""
    if name in batch.schema.names:
        column = batch.column(name)
    else:
        first, *rest = name.split(".")
        column = pc.struct_field(batch.column(first), rest)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.large_binary())
    column.validate(full=True)
    return column
