"""Lines of a file, or of one part of it: several workers read a large plain file together.

`read_lines` goes on after a line that cannot be read, for corpora; `iter_lines` and `iter_json` are for files of which
every line must be right.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from sbp_ray.errors import SbpError, one_line
from sbp_ray.input_files import file_size, open_bytes, open_seekable


def iter_lines(path: str, named: str) -> Iterator[tuple[int, bytes]]:
    """All lines of a file, each with its number from 1.

    Args:
        named: what the file is called in errors: the setting, and the path.

    Raises:
        SbpError: the file cannot be read.
    """
    try:
        with open_bytes(path) as raw:
            yield from enumerate(_buffered(raw), start=1)
    except OSError as error:
        raise SbpError(f"{named}: cannot be read: {one_line(error)}: check the file") from None


def iter_json(path: str, named: str, remedy: str) -> Iterator[tuple[str, Any]]:
    """The value of each line that is not blank, with what the line is called in errors.

    Raises:
        SbpError: the file cannot be read, or a line is not JSON; then `remedy` says what to do.
    """
    for number, line in iter_lines(path, named):
        if not line.isspace():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):  # broken JSON, not UTF-8, or brackets without an end
                raise SbpError(f"{named}:{number}: is not JSON: {remedy}") from None
            yield f"{named}:{number}", value


def _buffered(raw: BinaryIO) -> io.BufferedReader[Any]:
    return io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)  # Arrow's stream has what it needs


def first_byte(path: str, part: int, num_parts: int) -> int:
    """Where a part of the file begins; its lines are those that begin there or later, and before the next part."""
    return file_size(path) * part // num_parts if part else 0


def read_lines(path: str, max_bytes: int, part: int = 0, num_parts: int = 1) -> Iterator[tuple[int, bytes | str]]:
    """Lines that are not blank, each of at most `max_bytes`, with their number in the part, from 1.

    In place of a line that cannot be read, the reason.
    """
    is_whole = num_parts == 1
    with open_bytes(path) if is_whole else open_seekable(path) as raw:
        stream = _buffered(raw)
        end = 0 if is_whole else file_size(path) * (part + 1) // num_parts
        if start := first_byte(path, part, num_parts):
            stream.seek(start - 1)  # a line that begins at the first byte is ours
            _skip_line(stream)
        for line in itertools.count(1):
            if not is_whole and stream.tell() >= end:
                return
            try:
                data = stream.readline(max_bytes)
                is_cut = len(data) == max_bytes and not data.endswith(b"\n")
                if is_cut:
                    _skip_line(stream)
            except OSError as error:
                if not is_damage(path, error):
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


def is_damage(path: str, error: OSError) -> bool:
    """Whether a compressed file is cut off or broken, as opposed to a disk or network that fails."""
    words = ("inflate", "compressed", "zstd", "corrupt", "deserialize")
    return path.endswith((".gz", ".zst", ".parquet")) and any(word in str(error).lower() for word in words)
