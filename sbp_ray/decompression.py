"""A compressed file as a stream of what is in it: members, frames or streams in a row, and every byte before damage.

One loop for all compressions, since the readers that come with them differ in what they do with a broken file: those of
bz2 and xz take the rest for padding where a second stream begins wrongly, and all lose what they made of the block in
which they stumble. Here a member that breaks is read once more up to that block, and the block byte by byte.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

from sbp_ray.errors import one_line

_LEAST_BYTES = 1 << 16  # that are handed out at a time, where the file holds so many
_BLOCK_BYTES = 1 << 16  # of a compressed file


class DamagedFileError(OSError):
    """A file cannot be read to its end, and never will be: it is cut off or broken."""

    def __init__(self, path: str, reason: str, bytes_unread: int) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason, self.bytes_unread = reason, bytes_unread


class Decoder(Protocol):
    """What reads one member; as in Python's lzma and bz2."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipDecoder:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _zstd_decoder() -> ZstdDecompressor:
    """One that reads what `zstd --ultra --long=31` writes."""
    return ZstdDecompressor(options={int(DecompressionParameter.window_log_max): 31})


class Compression(NamedTuple):
    """A way in which files are compressed."""

    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...]
    """The first bytes of a member."""
    new_decoder: Callable[[], Decoder]


COMPRESSIONS = (
    Compression((".gz", ".gzip"), (b"\x1f\x8b",), _GzipDecoder),
    Compression(
        (".zst", ".zstd"),
        (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60))),
        _zstd_decoder,
    ),
    Compression((".xz",), (b"\xfd7zXZ\x00",), lzma.LZMADecompressor),
    Compression((".bz2",), (b"BZh",), bz2.BZ2Decompressor),
)
_DAMAGE = (OSError, zlib.error, lzma.LZMAError, ZstdError)  # bz2 has no error of its own


class DecompressedStream(io.RawIOBase):
    """Hands out all that was decompressed before damage, then raises `DamagedFileError`."""

    def __init__(self, path: str, stored: io.BufferedReader, size: int, compression: Compression) -> None:
        self._path, self._stored, self._size, self._compression = path, stored, size, compression
        self._damage: DamagedFileError | None = None
        self._position = 0
        """Of what was read of the file."""
        self._broken_block: int | None = None
        """Where the block begins in which this member broke, while it is read once more."""
        self._begin_member(0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill at least `_LEAST_BYTES` of it where the file holds so many."""
        view, filled = memoryview(buffer).cast("B"), 0
        while not self._damage and filled < min(len(view), _LEAST_BYTES):
            try:
                data = self._read(len(view) - filled)
            except DamagedFileError as damage:
                self._damage, data = damage, b""
            if not data:
                break
            view[filled : filled + len(data)] = data
            filled += len(data)
        if self._damage and not filled:
            raise self._damage
        return filled

    def close(self) -> None:
        self._stored.close()
        super().close()

    def _read(self, max_bytes: int) -> bytes:
        """Some bytes; none at the end of the file."""
        while True:
            if self._decoder.eof and not self._go_to_next_member():
                return b""
            block = self._next_block() if self._decoder.needs_input else None
            try:
                data = self._decoder.decompress(block or b"", max_bytes)
            except _DAMAGE as error:
                if self._broken_block is not None:
                    raise DamagedFileError(self._path, one_line(error), self._size - self._position) from None
                self._begin_again()
                continue
            self._num_given += len(data)
            if data:
                return data
            if block == b"" and not self._decoder.eof:
                raise DamagedFileError(self._path, "ends before its compressed data does", 0)

    def _next_block(self) -> bytes:
        """As it is stored; empty at the end of the file."""
        num_bytes, self._block_start = _BLOCK_BYTES, self._position
        if self._broken_block is not None:
            num_bytes = max(1, min(num_bytes, self._broken_block - self._position))
        block = self._stored.read(num_bytes)
        self._position += len(block)
        return block

    def _begin_member(self, place: int) -> None:
        self._stored.seek(place)
        self._member_start = self._position = self._block_start = place
        self._num_given = 0
        self._decoder = self._compression.new_decoder()

    def _begin_again(self) -> None:
        """Go back to where this member broke, so that nothing before is lost and the place is known to the byte."""
        num_skipped, self._broken_block = self._num_given, self._block_start
        self._begin_member(self._member_start)
        while self._num_given < num_skipped:
            self._read(min(num_skipped - self._num_given, _BLOCK_BYTES))

    def _go_to_next_member(self) -> bool:
        """Whether there is one. Zeros behind a member are padding; other bytes are what is left of something."""
        place = self._position - len(self._decoder.unused_data)
        self._stored.seek(place)
        while (head := self._stored.read(_BLOCK_BYTES)) and not (rest := head.lstrip(b"\0")):
            place += len(head)
        if not head:
            return False
        place += len(head) - len(rest)
        self._stored.seek(place)
        if not self._stored.read(8).startswith(self._compression.magic):
            raise DamagedFileError(self._path, "other bytes follow its compressed data", self._size - place)
        self._broken_block = None
        self._begin_member(place)
        return True
