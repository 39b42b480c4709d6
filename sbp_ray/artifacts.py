"""Artifacts: the folders that stages meet on, local or on an object store.

Every file is committed whole: on a file system it is written under a temporary name and renamed, on an object store it
appears when its upload ends. Work may be done twice; its result has one deterministic name, so it is there once.

    started.json    written first: what the artifact is being made from. A rerun with other settings is refused.
    manifest.json   written last: the only sign that the artifact is complete.
    removal.json    written before the artifact is deleted, and deleted last: what lies beside it counts for nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import posixpath
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sbp_ray.errors import SbpError
from sbp_ray.object_stores import ask_again, open_file_system

T = TypeVar("T")

STARTED = "started.json"
MANIFEST = "manifest.json"
REMOVAL = "removal.json"
RUN_LOCK = "run.lock"
_TEMPORARY = ".tmp-"
_ARROW_MAGIC = b"ARROW1"


@dataclass(frozen=True)
class Artifact:
    """A folder in the run directory. Cheap to send to workers: it holds two strings."""

    name: str
    """The artifact's noun, such as `corpus`."""
    url: str
    """An absolute local path, or s3://…, gs://…"""

    @cached_property
    def _fs_and_root(self) -> tuple[pafs.FileSystem, str]:
        return open_file_system(self.url)

    def __reduce__(self) -> tuple[Any, ...]:
        return Artifact, (self.name, self.url)  # file systems are opened where they are used

    @property
    def fs(self) -> pafs.FileSystem:
        return self._fs_and_root[0]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def path(self, name: str = "") -> str:
        """Where `name` lies, as `fs` wants it."""
        return posixpath.join(self._fs_and_root[1], name) if name else self._fs_and_root[1]

    def exists(self, name: str) -> bool:
        return self.fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound

    def files(self, folder: str = "", suffix: str = "") -> list[str]:
        """Names of the committed files right under `folder`, sorted; empty when there is no such folder."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        names = [info.base_name for info in self.fs.get_file_info(selector) if info.type == pafs.FileType.File]
        return sorted(
            posixpath.join(folder, name) for name in names if name.endswith(suffix) and not _is_temporary(name)
        )

    # Whole files

    def read_bytes(self, name: str) -> bytes:
        return self._read(name, lambda file: file.read())

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        with self._committed(name) as path, self.fs.open_output_stream(path) as stream:
            stream.write(data)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")

    def write_json_once(self, name: str, make: Callable[[], Any]) -> Any:
        """What lies under `name`; what `make` returns is put there if nothing does."""
        if not self.exists(name):
            self.write_json(name, make())
        return self.read_json(name)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A stream, for what does not fit in memory; it appears under `name` when the block ends without an error."""
        if self.is_local:
            with self._committed(name) as path, open(path, "wb") as stream:
                yield stream
        else:  # closing a stream of an object store commits it, even after an error: write here, then upload
            with tempfile.NamedTemporaryFile() as stream:
                yield cast(BinaryIO, stream)
                stream.flush()
                pafs.copy_files(stream.name, self.path(name), destination_filesystem=self.fs)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return self._read(name, lambda file: pq.read_table(file, columns=columns))

    def num_rows(self, name: str) -> int:
        """Rows of a Parquet file, from its footer alone."""
        return self._read(name, lambda file: pq.read_metadata(file).num_rows)

    def write_table(self, name: str, table: pa.Table, stats: dict[str, Any] | None = None) -> None:
        """Commit a Parquet file; `stats` travels in its metadata, for `read_stats`."""
        if stats is not None:
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), "stats": json.dumps(stats)})
        # Vectors and lists of cosines never repeat: looking for repeats would double the time to write them.
        has_vectors = any(_is_list_of_floats(field.type) for field in table.schema)
        with self.writing(name) as stream:
            pq.write_table(table, stream, compression="zstd", use_dictionary=not has_vectors)

    def read_stats(self, name: str) -> dict[str, Any]:
        """What `write_table`, or a `BucketWriter`, was given as `stats`."""
        return self._read(name, _read_stats)

    def _read(self, name: str, read: Callable[[pa.NativeFile], T]) -> T:
        def once() -> T:
            with self.fs.open_input_file(self.path(name)) as file:
                return read(file)

        return ask_again(once)

    @contextmanager
    def _committed(self, name: str) -> Iterator[str]:
        """The path to write to; what was written appears under `name` when the block ends without an error."""
        target = self.path(name)
        if not self.is_local:
            yield target
            return
        folder, base = posixpath.split(target)
        _make_folder(Path(folder))
        temporary = posixpath.join(folder, f"{_TEMPORARY}{base}-{uuid.uuid4().hex}")
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
            _sync(folder)
        except OSError as error:
            if error.errno is not None and error.filename is None:  # a write does not say to which file
                raise OSError(error.errno, error.strerror, target) from error
            raise
        finally:
            Path(temporary).unlink(missing_ok=True)

    # Folders of files that libraries read and write themselves: tokenizers, checkpoints

    def local_copy(self, folder: str) -> Path:
        """A local path with the folder's files; a download, made once on each node, where the artifact is remote."""
        if self.is_local:
            return Path(self.path(folder))
        attempt = self.read_bytes(STARTED)  # holds the time too: an artifact that was redone is another one
        digest = hashlib.sha256(f"{self.url}/{folder}".encode() + attempt).hexdigest()[:16]
        cache = _cache_folder() / digest
        with open(f"{cache}.lock", "w") as lock:  # of the kernel: it goes with its process
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not cache.exists():
                scratch = cache.with_name(f"{_TEMPORARY}{digest}")
                shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed while it downloaded
                scratch.mkdir()
                ask_again(partial(pafs.copy_files, source_filesystem=self.fs), self.path(folder), str(scratch))
                scratch.rename(cache)
        return cache

    def commit_folder(self, source: Path, folder: str) -> None:
        """Copy a finished local folder to `folder`, replacing what an interrupted attempt left there."""
        if self.is_local:
            target = Path(self.path(folder))
            scratch = target.with_name(f"{_TEMPORARY}{target.name}")
            shutil.rmtree(scratch, ignore_errors=True)
            _make_folder(target.parent)
            shutil.copytree(source, scratch)
            for inner, _, names in os.walk(scratch):
                for name in names:
                    _sync(f"{inner}/{name}")
                _sync(inner)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(scratch, target)
            _sync(target.parent)
        else:
            self.fs.delete_dir_contents(self.path(folder), missing_dir_ok=True)
            pafs.copy_files(str(source), self.path(folder), destination_filesystem=self.fs)

    # Completion

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of a complete artifact, else None."""
        return self.read_json(MANIFEST) if self.exists(MANIFEST) else None

    def fingerprint(self) -> str:
        """Names the settings and inputs that this artifact is made from, 16 hex digits; known from its start on."""
        return self.read_json(STARTED)["fingerprint"]

    def remove_unfinished(self) -> None:
        """Delete what writers that were killed left under temporary names. For the holder of the run directory's lock.

        A writer of an earlier attempt that still runs fails at its rename: its work is done again anyway. An object
        store shows no such files; uploads that never ended are for its own clean-up rule.
        """
        if not self.is_local:
            return
        for folder, inner, files in os.walk(self.path()):
            for name in filter(_is_temporary, files):
                Path(folder, name).unlink(missing_ok=True)
            for name in filter(_is_temporary, inner):
                shutil.rmtree(Path(folder, name), ignore_errors=True)

    def is_being_removed(self) -> bool:
        """Whether a deletion was begun and has not ended."""
        return self.exists(REMOVAL)

    def remove(self) -> None:
        """Delete the artifact, or what a deletion that was cut off has left of it.

        Only a folder that carries our own marker is ever deleted. The order is ours, since a store deletes by the
        alphabet: a kill in between leaves files that no attempt takes for an artifact's. The lock of a run directory
        that is the artifact's folder stays, and with it the folder.
        """
        if not any(self.exists(marker) for marker in (REMOVAL, MANIFEST, STARTED)):
            return
        self.write_json(REMOVAL, {})
        inside = {info.base_name: info for info in self.fs.get_file_info(pafs.FileSelector(self.path()))}
        inside.pop(RUN_LOCK, None)
        for name in (MANIFEST, *sorted(inside.keys() - {MANIFEST, STARTED, REMOVAL}), STARTED, REMOVAL):
            if name in inside:
                is_folder = inside[name].type == pafs.FileType.Directory
                (self.fs.delete_dir if is_folder else self.fs.delete_file)(self.path(name))
        if self.is_local and not any(Path(self.path()).iterdir()):
            Path(self.path()).rmdir()


def fingerprint_of(recipe: dict[str, Any]) -> str:
    """16 hex digits that name a recipe: settings and the fingerprints of the inputs."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _is_list_of_floats(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_floating(kind.value_type)


def _read_stats(file: pa.NativeFile) -> dict[str, Any]:
    is_arrow = file.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
    file.seek(0)
    if not is_arrow:
        return json.loads(pq.read_metadata(file).metadata[b"stats"])
    with pa.ipc.open_file(file) as batches:
        last = batches.get_batch_with_custom_metadata(batches.num_record_batches - 1)
        return json.loads(last.custom_metadata[b"stats"])


def _is_temporary(name: str) -> bool:
    return name.startswith(_TEMPORARY)


def _cache_folder() -> Path:
    """Where this user's downloads lie on a node.

    Raises:
        SbpError: somebody else made the folder, or may write into it: what lies there cannot be trusted.
    """
    folder = Path(tempfile.gettempdir()) / f"sbp_ray-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SbpError(f"{folder} is not a folder of this user's alone (mode 0700): remove it, or set TMPDIR")
    return folder


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, which survive a power cut as what is written into them does."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)  # another writer may have been first
        _sync(folder.parent)


def _sync(path: str | Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
