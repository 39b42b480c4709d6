"""Input files that the user names: found and listed before any work starts.

`find_input_files` takes each pattern apart at its slashes and walks down a tree of folders, local or on a store. A path
or glob that names a file which cannot be read is refused; in a folder such files are counted. `**` is any number of
folders, none among them. A name that begins with a dot is meant only by a pattern that begins so.
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import pyarrow.fs as pafs

from sbp_ray.decompression import DamagedFileError
from sbp_ray.errors import SbpError, one_line
from sbp_ray.file_formats import (
    KINDS,
    kind_of,
    open_bytes,
    read_head,
    split_suffixes,
)
from sbp_ray.object_stores import open_file_system

HUGGING_FACE = "hf:"
_Type = Literal["file", "folder", "other"]
_STARTED = "started.json"  # in every artifact, see sbp_ray.artifacts
_HIDDEN = (".", "_")  # what Spark, Hive and editors leave in a folder


class DatasetName(NamedTuple):
    """What `hf:NAME`, `hf:NAME:CONFIG` and `hf:NAME@REVISION:CONFIG` say."""

    name: str
    config: str | None
    revision: str | None

    @classmethod
    def parse(cls, pattern: str) -> DatasetName:
        """Of a pattern that begins with `HUGGING_FACE`. A revision has no slash, which a folder's path may have."""
        whole, _, config = pattern.removeprefix(HUGGING_FACE).partition(":")
        name, at, revision = whole.rpartition("@")
        is_pinned = bool(at and revision) and "/" not in revision
        return cls(name if is_pinned else whole, config or None, revision if is_pinned else None)


class FoundFiles(NamedTuple):
    """What the patterns name."""

    files: list[tuple[str, int]]
    """Path and size in bytes of what is read, sorted."""
    skipped: Counter[str]
    """What lies in the folders beside them: suffix, or why it is left out, to number."""

    def describe(self) -> str:
        """In words, such as `read 6 of 10 files, skipped: 3 .md, 1 hidden`."""
        total = len(self.files) + self.skipped.total()
        skipped = ", ".join(f"{count:,} {what}" for what, count in self.skipped.most_common())
        return f"read {len(self.files):,} of {total:,} files" + (f", skipped: {skipped}" if skipped else "")


class _Entry(NamedTuple):
    path: str
    type: _Type
    size: int
    identity: Hashable
    """The same for two names of one file or folder."""


class _Tree(Protocol):
    """Folders and files; names in a folder are sorted, and say whether each is a folder."""

    def look(self, path: str) -> _Entry | None: ...
    def names(self, folder: str) -> dict[str, bool]: ...


def find_input_files(patterns: Iterable[str]) -> FoundFiles:
    """Every file that the paths, globs and folders name, each file once whatever links lead to it.

    Raises:
        SbpError: a pattern matches nothing, or a file that cannot be read, or only files that are empty.
    """
    found: dict[Hashable, tuple[str, int]] = {}
    skipped: Counter[str] = Counter()
    for pattern in patterns:
        entries, left_out = _find(pattern)
        if not entries and not left_out:
            raise SbpError(f"{pattern}: there is no such file or folder")
        if not entries:
            there = FoundFiles([], left_out).describe()
            raise SbpError(f"{pattern}: holds no {', '.join(KINDS)} file ({there})")
        if not any(entry.size for entry in entries):
            raise SbpError(f"{pattern}: is empty")
        for entry in entries:
            path = _with_scheme(entry.path, pattern)
            found.setdefault((path if "://" in path else entry.identity), (path, entry.size))
        skipped += left_out
    return FoundFiles(sorted(found.values()), skipped)


def _find(pattern: str) -> tuple[list[_Entry], Counter[str]]:
    _require_utf8(pattern)
    fs, path = open_file_system(pattern)
    segments = [segment for segment in path.split("/") if segment]
    is_local = isinstance(fs, pafs.LocalFileSystem)
    tree = _LocalTree() if is_local else _StoreTree(fs, segments)
    entries: list[_Entry] = []
    skipped: Counter[str] = Counter()
    try:
        for entry in _expand(tree, "/" if is_local else "", segments):
            is_named = entry.path.strip("/") == "/".join(segments)
            if entry.type == "file" and _is_readable(entry, pattern):
                entries.append(entry)
            elif entry.type == "folder" and (is_named or split_suffixes(entry.path)[0] in KINDS):
                entries += _read_folder(tree, entry, skipped, pattern)
            elif entry.type == "folder":
                skipped["folder"] += 1
            elif entry.type == "other":
                raise SbpError(f"{entry.path}: is neither a file nor a folder: save what it gives to a file")
            else:
                skipped["empty"] += 1
    except OSError as error:
        raise SbpError(f"{pattern}: cannot be read: {one_line(error)}") from None
    return entries, skipped


def _is_readable(entry: _Entry, pattern: str) -> bool:
    """Whether a file that a path or glob names is read, or is empty; any other is refused."""
    _require_utf8(entry.path)
    if split_suffixes(entry.path)[0] in KINDS or _kind_by_content(entry, pattern):
        return True
    if entry.size == 0:
        return False
    raise SbpError(f"{entry.path}: holds neither JSON lines nor Parquet: convert it, or name it .txt if it is text")


def _kind_by_content(entry: _Entry, pattern: str) -> bool:
    try:
        with open_bytes(_with_scheme(entry.path, pattern)) as stream:
            return kind_of(entry.path, read_head(stream)) is not None
    except DamagedFileError:
        return False


def _with_scheme(path: str, pattern: str) -> str:
    """As the pattern is: a URL, or a local path."""
    scheme, separator, _ = pattern.rpartition("://")
    return f"{scheme}{separator}{path}"


def _read_folder(tree: _Tree, folder: _Entry, skipped: Counter[str], pattern: str) -> Iterator[_Entry]:
    """The files of a folder and of those below that can be read; the others are counted."""
    for inner in _folders_below(tree, folder, _HIDDEN):
        for name, is_folder in tree.names(inner).items():
            suffix = split_suffixes(name)[0]
            if name.startswith(_HIDDEN) or is_folder:
                skipped["hidden"] += not is_folder
                continue
            entry = None
            if suffix in KINDS or not suffix:
                _require_utf8(posixpath.join(inner, name))
                entry = tree.look(posixpath.join(inner, name))
            if entry is None:
                skipped[_shown(suffix)] += 1
            elif entry.type == "file" and entry.size and (suffix or _kind_by_content(entry, pattern)):
                yield entry
            else:
                skipped["empty" if not entry.size else "without a suffix" if not suffix else "not a file"] += 1


def _expand(tree: _Tree, path: str, segments: Sequence[str]) -> Iterator[_Entry]:
    """What a pattern means below a path. A name that is there is meant literally, whatever signs are in it."""
    if not segments:
        entry = tree.look(path)
        if entry:
            yield entry
        return
    first, rest = segments[0], segments[1:]
    literal = posixpath.join(path, first)
    if not _has_signs(first) or tree.look(literal):
        yield from _expand(tree, literal, rest)
    elif first == "**":
        start = tree.look(path)
        for folder in _folders_below(tree, start, ".") if start else ():
            if rest:
                yield from _expand(tree, folder, rest)
            else:
                yield from (entry for entry in _expand(tree, folder, ["*"]) if entry.type != "folder")
    else:
        for name in tree.names(path):
            if fnmatch.fnmatchcase(name, first) and (first.startswith(".") or not name.startswith(".")):
                yield from _expand(tree, posixpath.join(path, name), rest)


def _folders_below(tree: _Tree, start: _Entry, hidden: Sequence[str]) -> Iterator[str]:
    """A folder and all below it, each once although links lead to it again."""
    seen: set[Hashable] = set()
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        if folder.type != "folder" or folder.identity in seen:
            continue
        seen.add(folder.identity)
        names = tree.names(folder.path)
        if folder is not start and _STARTED in names:  # an artifact of ours: a run directory below its input
            continue
        yield folder.path
        inner = [name for name, is_folder in names.items() if is_folder]
        looked = (tree.look(posixpath.join(folder.path, name)) for name in reversed(inner) if name[0] not in hidden)
        waiting += [entry for entry in looked if entry]


class _LocalTree:
    def look(self, path: str) -> _Entry | None:
        try:
            status = os.stat(path)  # noqa: PTH116  # of many small files: a Path each would double the time
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.islink(path):  # noqa: PTH114
                return None
            target = os.readlink(path)  # noqa: PTH115
            raise SbpError(f"{path}: links to {target}, which is not there: fetch it, or leave the link out") from None
        is_file, is_folder = stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode)
        kind: _Type = "file" if is_file else "folder" if is_folder else "other"
        return _Entry(path, kind, status.st_size, (status.st_dev, status.st_ino))

    def names(self, folder: str) -> dict[str, bool]:
        try:
            with os.scandir(folder) as entries:
                return {entry.name: _is_folder(entry) for entry in sorted(entries, key=lambda entry: entry.name)}
        except (FileNotFoundError, NotADirectoryError):
            return {}


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


class _StoreTree:
    """Folders of a store, each listed when it is asked for; those below a folder or a `**` in one request."""

    def __init__(self, fs: pafs.FileSystem, segments: Sequence[str]) -> None:
        literal = list(itertools.takewhile(lambda segment: not _has_signs(segment), segments))
        self._fs, self._is_recursive = fs, len(segments) - len(literal) != 1
        self._infos: dict[str, pafs.FileInfo] = {}
        self._names: dict[str, dict[str, bool]] = {}

    def look(self, path: str) -> _Entry | None:
        info = self._infos.get(path) or self._fs.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            return None
        return _Entry(path, "file" if info.type == pafs.FileType.File else "folder", info.size or 0, path)

    def names(self, folder: str) -> dict[str, bool]:
        if folder not in self._names:
            selector = pafs.FileSelector(folder, recursive=self._is_recursive, allow_not_found=True)
            self._names[folder] = {}
            for info in sorted(self._fs.get_file_info(selector), key=lambda info: info.path):
                parent, name = posixpath.split(info.path)
                is_folder = info.type == pafs.FileType.Directory
                self._infos[info.path] = info
                self._names.setdefault(parent, {})[name] = is_folder
                if is_folder and self._is_recursive:
                    self._names.setdefault(info.path, {})
        return self._names[folder]


def _has_signs(segment: str) -> bool:
    return any(char in segment for char in "*?[")


def _require_utf8(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise SbpError(f"{_shown(path)}: the name is not UTF-8: rename it") from None


def _shown(name: str) -> str:
    """As messages and manifests can hold it: names on a disk may be of any bytes."""
    return name.encode("utf-8", "backslashreplace").decode()
