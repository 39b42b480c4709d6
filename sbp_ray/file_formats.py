"""How an input file is opened: its compression is told by its first bytes, what its rows are by its name and its head.

`KINDS` and `COMPRESSIONS` are all that is known of formats. `open_bytes` hands out every byte that comes before
damage, and then raises `DamagedFileError`; `kind_of` tells JSON lines, Parquet and text apart.
"""

from __future__ import annotations

import codecs
import io
import posixpath
import re
from typing import Literal, cast

import pyarrow as pa

from sbp_ray.decompression import COMPRESSIONS, DamagedFileError, DecompressedStream
from sbp_ray.errors import SbpError
from sbp_ray.object_stores import open_file_system

Kind = Literal["json", "parquet", "text"]
KINDS: dict[str, Kind] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
"""What the rows of a file are by its suffix, in any case, before that of a compression."""

_PARQUET_MAGIC = (b"PAR1", b"PARE")  # the second of files whose footer is encrypted
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32 LE begins like UTF-16
_HEAD_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20
_ARRAY = re.compile(rb"\s*\[\s*(\{|\Z)")
_OBJECT = re.compile(rb'\s*\{\s*"([^"\\]|\\.)*"\s*:')
_SPREAD_OBJECT = re.compile(rb"\s*\{\s*\n")


def split_suffixes(path: str) -> tuple[str, str]:
    """The suffix that says what the rows are, and that of a compression; lower case, empty where there is none."""
    stem, last = posixpath.splitext(posixpath.basename(path).lower())
    packed = any(last in compression.suffixes for compression in COMPRESSIONS)
    return (posixpath.splitext(stem)[1], last) if packed else (last, "")


def open_bytes(path: str) -> io.BufferedReader:
    """A stream of the file's bytes, decompressed by what they are, whatever the name says.

    Raises:
        DamagedFileError: here or while reading, after all that comes before the damage: the file is cut off, broken,
            or not what its name says.
    """
    fs, inner = open_file_system(path)
    stored = fs.open_input_file(inner)
    size = int(stored.size())
    raw: io.BufferedReader = io.BufferedReader(cast(io.RawIOBase, stored), _BUFFER_BYTES)
    head = raw.peek(_HEAD_BYTES)
    for compression in COMPRESSIONS:
        if head.startswith(compression.magic):
            return io.BufferedReader(DecompressedStream(path, raw, size, compression), _BUFFER_BYTES)
    kind_suffix, packed_suffix = split_suffixes(path)
    if head and packed_suffix and not _is_plain(head, KINDS.get(kind_suffix)):
        raise DamagedFileError(path, f"is not what {packed_suffix} says, nor plain text", size)
    return raw


def is_compressed(stream: io.BufferedReader) -> bool:
    """Whether a stream from `open_bytes` holds other bytes than the file."""
    return isinstance(stream.raw, DecompressedStream)


def open_seekable(path: str) -> pa.NativeFile:
    """The file as it is stored, to be read from any place."""
    fs, inner = open_file_system(path)
    return fs.open_input_file(inner)


def file_size(path: str) -> int:
    """Bytes of a file that is there."""
    fs, inner = open_file_system(path)
    return int(fs.get_file_info(inner).size)


def read_head(stream: io.BufferedReader) -> bytes:
    """The first bytes of a stream from `open_bytes`, which stay to be read, without a byte order mark."""
    return stream.peek(_HEAD_BYTES)[:_HEAD_BYTES].removeprefix(codecs.BOM_UTF8)


def kind_of(path: str, head: bytes, text_column: str | None = None) -> Kind | None:
    """What the rows of a file are, by its name, and where that says nothing by its head; None of what cannot be read.

    Args:
        head: from `read_head`.
        text_column: a text file whose first line is a JSON object with this column holds JSON lines.

    Raises:
        SbpError: it is JSON, but not an object a line, or begins with the mark of UTF-16 or UTF-32.
    """
    named = KINDS.get(split_suffixes(path)[0])
    if named == "parquet" or head.startswith(_PARQUET_MAGIC):
        return "parquet"
    if named == "text":
        has_column = text_column is not None and f'"{text_column}"'.encode() in head.partition(b"\n")[0]
        return "json" if has_column and _OBJECT.match(head) else "text"
    if head.startswith(_WIDE_MARKS):
        raise SbpError(f"{path}: is in UTF-16 or UTF-32: write it in UTF-8, as `iconv -f UTF-16 -t UTF-8` does")
    if _ARRAY.match(head):
        raise SbpError(f"{path}: is one JSON array: write a line for each of its elements, as `jq -c '.[]'` does")
    if _SPREAD_OBJECT.match(head):
        raise SbpError(f"{path}: holds JSON over several lines: write each object on a line, as `jq -c .` does")
    return "json" if named == "json" or _OBJECT.match(head) else None


def _is_plain(head: bytes, kind: Kind | None) -> bool:
    """Whether a file that is not compressed, though its name says so, holds what its name says beside that."""
    if kind == "text":
        return b"\0" not in head and decode_cut(head) is not None
    return head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")


def decode_cut(data: bytes) -> str | None:
    """UTF-8 that may end within a character, which is left out; None where anything else is wrong."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return None
