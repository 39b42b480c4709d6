"""How an input file is opened: its compression is told by its first bytes, what its rows are by its name and its head.

`KINDS` and `_COMPRESSIONS` are all that is known of formats. `open_bytes` hands out every byte that comes before
damage, and then raises `DamagedFileError`; `kind_of` tells JSON lines, Parquet and text apart.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import posixpath
import re
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import pyarrow as pa
from backports.zstd import DecompressionParameter, ZstdError, ZstdFile

from sbp_ray.errors import SbpError, one_line
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


class _Compression(NamedTuple):
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...]
    """The first bytes of a file."""
    open: Callable[[BinaryIO], Any]


_ZSTD_MAGIC = (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60)))
_ZSTD_OPTIONS = {int(DecompressionParameter.window_log_max): 31}  # what `zstd --ultra --long=31` writes
_COMPRESSIONS = (
    _Compression((".gz", ".gzip"), (b"\x1f\x8b",), lambda raw: gzip.GzipFile(fileobj=raw)),
    _Compression((".zst", ".zstd"), _ZSTD_MAGIC, lambda raw: ZstdFile(raw, options=_ZSTD_OPTIONS)),
    _Compression((".xz",), (b"\xfd7zXZ\x00",), lzma.LZMAFile),
    _Compression((".bz2",), (b"BZh",), bz2.BZ2File),
)
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, ZstdError)
_PARQUET_MAGIC = (b"PAR1", b"PARE")  # the second of files whose footer is encrypted
_HEAD_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20
_ARRAY = re.compile(rb"\s*\[\s*(\{|\Z)")
_OBJECT = re.compile(rb'\s*\{\s*"([^"\\]|\\.)*"\s*:')
_SPREAD_OBJECT = re.compile(rb"\s*\{\s*\n")


class DamagedFileError(OSError):
    """A file cannot be read to its end, and never will be: it is cut off or broken."""

    def __init__(self, path: str, reason: str, bytes_unread: int) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason, self.bytes_unread = reason, bytes_unread


def split_suffixes(path: str) -> tuple[str, str]:
    """The suffix that says what the rows are, and that of a compression; lower case, empty where there is none."""
    stem, last = posixpath.splitext(posixpath.basename(path).lower())
    packed = any(last in compression.suffixes for compression in _COMPRESSIONS)
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
    for compression in _COMPRESSIONS:
        if head.startswith(compression.magic):
            stream = compression.open(cast(BinaryIO, raw))
            return io.BufferedReader(_Decompressed(path, raw, stream, size), _BUFFER_BYTES)
    kind_suffix, packed_suffix = split_suffixes(path)
    if head and packed_suffix and not _is_plain(head, KINDS.get(kind_suffix)):
        raise DamagedFileError(path, f"is not what {packed_suffix} says, nor plain text", size)
    return raw


class _Decompressed(io.RawIOBase):
    """Hands out all that was decompressed before damage, then raises it."""

    def __init__(self, path: str, raw: io.BufferedReader, stream: Any, size: int) -> None:
        self._path, self._raw, self._stream, self._size = path, raw, stream, size
        self._damage: DamagedFileError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill at least `_HEAD_BYTES` of it where the file holds so many."""
        view, filled = memoryview(buffer).cast("B"), 0
        while not self._damage and filled < min(len(view), _HEAD_BYTES):
            data = self._read(len(view) - filled)
            if not data:
                break
            view[filled : filled + len(data)] = data
            filled += len(data)
        if self._damage and not filled:
            raise self._damage
        return filled

    def _read(self, num_bytes: int) -> bytes:
        try:
            return bytes(self._stream.read1(num_bytes))
        except _DAMAGE as error:
            reason = "ends before its compressed data does" if isinstance(error, EOFError) else one_line(error)
        except OSError as error:
            if str(error) != "Invalid data stream":  # of bz2, which has no error of its own
                raise
            reason = "broken bzip2 data"
        self._damage = DamagedFileError(self._path, reason, self._size - self._raw.tell())
        return b""

    def close(self) -> None:
        self._stream.close()
        self._raw.close()
        super().close()


def is_compressed(stream: io.BufferedReader) -> bool:
    """Whether a stream from `open_bytes` holds other bytes than the file."""
    return isinstance(stream.raw, _Decompressed)


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
        SbpError: it is JSON, but not an object a line.
    """
    named = KINDS.get(split_suffixes(path)[0])
    if named == "parquet" or head.startswith(_PARQUET_MAGIC):
        return "parquet"
    if named == "text":
        has_column = text_column is not None and f'"{text_column}"'.encode() in head.partition(b"\n")[0]
        return "json" if has_column and _OBJECT.match(head) else "text"
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
