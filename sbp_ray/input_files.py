"""Input files that the user names: found and listed before any work starts."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.fs as pafs

from sbp_ray.errors import SbpError, one_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
HUGGING_FACE = "hf:"


def open_file_system(pattern: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URL, and the path on it."""
    if "://" not in pattern:
        return pafs.LocalFileSystem(), str(Path(pattern).resolve())
    try:
        return pafs.FileSystem.from_uri(pattern)
    except (pa.ArrowInvalid, OSError) as error:
        raise SbpError(f"{pattern}: cannot be opened: {one_line(error)}") from None


def list_input_files(patterns: Iterable[str]) -> list[tuple[str, int]]:
    """Every file that the paths, globs and folders name, with its size in bytes, sorted.

    Raises:
        SbpError: a pattern matches nothing, or only files of kinds that cannot be read or are empty.
    """
    found: dict[str, int] = {}
    for pattern in patterns:
        files = _matching(pattern)
        usable = {path: size for path, size in files.items() if path.endswith(SUFFIXES)}
        if not files:
            raise SbpError(f"{pattern}: there is no such file or folder")
        if not usable:
            raise SbpError(f"{pattern}: holds no {', '.join(SUFFIXES)} file")
        if not any(usable.values()):
            raise SbpError(f"{pattern}: is empty")
        found |= usable
    return sorted(found.items())


def _matching(pattern: str) -> dict[str, int]:
    fs, path = open_file_system(pattern)
    prefix = pattern.partition("://")[0] + "://" if "://" in pattern else ""
    is_glob = any(char in path for char in "*?[")
    base = path
    while is_glob and any(char in base for char in "*?["):
        base = posixpath.dirname(base)
    info = fs.get_file_info(base)
    if info.type == pafs.FileType.File:
        infos = [info]
    elif info.type == pafs.FileType.Directory:
        infos = fs.get_file_info(pafs.FileSelector(base, recursive=True))
    else:
        infos = []
    return {
        prefix + item.path: item.size
        for item in infos
        if item.type == pafs.FileType.File and (not is_glob or _matches(item.path, path))
    }


def _matches(path: str, pattern: str) -> bool:
    """Whether a glob means the path: `*` stays within one folder, `**` does not."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(path, pattern.replace("**/", "*"))
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def open_bytes(path: str) -> BinaryIO:
    """A stream of the file's bytes, decompressed where its name ends in .gz or .zst."""
    fs, inner = open_file_system(path)
    return cast(BinaryIO, fs.open_input_stream(inner, compression="detect"))


def open_seekable(path: str) -> pa.NativeFile:
    """The file as it is stored, to be read from any place."""
    fs, inner = open_file_system(path)
    return fs.open_input_file(inner)


def file_size(path: str) -> int:
    """Bytes of a file that is there."""
    fs, inner = open_file_system(path)
    return int(fs.get_file_info(inner).size)
