"""Lines of a file, or of one part of it: several workers read a large plain file together.

`read_lines` goes on after a line that cannot be read, for corpora; `iter_lines` and `iter_json` are for files of which
every line must be right.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any, TypeGuard, cast

from sbp_ray.errors import SbpError, one_line
from sbp_ray.file_formats import file_size, kind_of, open_bytes, open_seekable, read_head


def iter_lines(path: str, named: str) -> Iterator[tuple[int, bytes]]:
    """All lines of a file, each with its number from 1.

    Args:
        named: what the file is called in errors: the setting, and the path.

    Raises:
        SbpError: the file cannot be read.
    """
    try:
        with open_bytes(path) as stream:
            kind_of(named, read_head(stream))
            yield from enumerate(stream, start=1)
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
                value = json.loads(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            except (ValueError, RecursionError):  # broken JSON, not UTF-8, or brackets without an end
                raise SbpError(f"{named}:{number}: is not JSON: {remedy}") from None
            yield f"{named}:{number}", value


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value of such a line is a string with more than blanks in it."""
    return isinstance(value, str) and bool(value.strip())


def first_byte(path: str, part: int, num_parts: int) -> int:
    """Where a part of the file begins; its lines are those that begin there or later, and before the next part."""
    return file_size(path) * part // num_parts if part else 0


def read_lines(path: str, max_bytes: int, part: int = 0, num_parts: int = 1) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not blank, with their number in the part, from 1; None in place of one of more than `max_bytes`.

    Raises:
        DamagedFileError: the file cannot be read to its end; all whole lines before that were given.
    """
    is_whole = num_parts == 1
    with open_bytes(path) if is_whole else open_seekable(path) as raw:
        # Arrow's stream has what a buffer needs.
        stream = raw if is_whole else io.BufferedReader(cast(io.RawIOBase, raw), 1 << 20)
        end = 0 if is_whole else file_size(path) * (part + 1) // num_parts
        if start := first_byte(path, part, num_parts):
            stream.seek(start - 1)  # a line that begins at the first byte is ours
            _skip_line(stream)
        for line in itertools.count(1):
            if not is_whole and stream.tell() >= end:
                return
            data = stream.readline(max_bytes)
            if len(data) == max_bytes and not data.endswith(b"\n"):
                yield line, None
                _skip_line(stream)
            elif not data:
                return
            elif not data.isspace():
                yield line, data


def _skip_line(stream: io.BufferedReader[Any]) -> None:
    while True:
        rest = stream.readline(1 << 20)
        if not rest or rest.endswith(b"\n"):
            return
