"""File systems, opened by a path or a URL. An object store that is slow, or away for some seconds, is asked again."""

from __future__ import annotations

import functools
import os
import posixpath
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from sbp_ray.errors import SbpError, one_line

T = TypeVar("T")

_RETRIES = 11
"""Of a request. The pauses between them double up to 26 s: a store may be away for 51 s."""

_UNREADABLE_ANSWER = "Failed to flush response stream"
_PAUSES_S = (1, 2, 4, 8, 16)
"""Before a read of which Arrow knows no more than that."""


def open_file_system(pattern: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URL, and the path on it. Links keep the name that the user gave them.

    Raises:
        SbpError: it cannot be opened.
    """
    if "://" not in pattern:
        return pafs.LocalFileSystem(), posixpath.join(os.getcwd(), pattern)  # noqa: PTH109
    scheme, _, rest = pattern.partition("://")
    bucket, _, path = rest.partition("/")
    try:
        fs, root = _open_store(f"{scheme}://{bucket}" if bucket else f"{scheme}:///")
    except (pa.ArrowInvalid, OSError) as error:
        raise SbpError(f"{pattern}: cannot be opened: {one_line(error)}") from None
    return fs, posixpath.join(root or "/", path) if path else root


@functools.lru_cache(maxsize=64)
def _open_store(url: str) -> tuple[pafs.FileSystem, str]:
    """Of a bucket, so that the names in it are no part of a URL, in which a blank or `?` would mean something else.
    Kept, since a store keeps its connections."""
    fs, root = pafs.FileSystem.from_uri(url)
    if isinstance(fs, pafs.S3FileSystem):
        # One that is opened by its URL asks again for 6 s, every 0.2 s; a URL cannot say otherwise. The SDK's other
        # strategy, "standard", has a hundred retries, which nothing fills up through Arrow: then it has no more.
        _, (found,) = fs.__reduce__()
        fs = pafs.S3FileSystem(**found, retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=_RETRIES))
    return fs, root


class _AskedInVainError(OSError):
    """Of a read on which `ask_again` has given up: another one around it does not begin anew."""


def ask_again(read: Callable[..., T], *arguments: object) -> T:
    """What `read` returns. It is called again where Arrow did not ask again itself.

    Arrow takes a store's answer into as many bytes as it wanted to read. Where the text of an error is longer, it knows
    nothing of what is wrong, and gives up at once.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            return read(*arguments)
        except OSError as error:
            if isinstance(error, _AskedInVainError) or _UNREADABLE_ANSWER not in str(error):
                raise
            if pause_s is None:
                raise _AskedInVainError(str(error)) from error
            time.sleep(pause_s)
    raise AssertionError("the last turn returns or raises")
