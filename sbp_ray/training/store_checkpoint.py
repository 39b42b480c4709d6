"""Checkpoints on an object store: torch.distributed.checkpoint over the artifact's own file system."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import pyarrow.fs as pafs
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter, _StorageInfo

from sbp_ray.artifacts import Artifact

Path = str | os.PathLike[str]


class StoreFiles(FileSystemBase):
    """Streams to and from the store. A stream that breaks may leave an object: the checkpoint's marker tells."""

    def __init__(self, fs: pafs.FileSystem) -> None:
        self._fs = fs

    @contextmanager
    def create_stream(self, path: Path, mode: str) -> Iterator[Any]:
        open_stream = self._fs.open_output_stream if "w" in mode else self._fs.open_input_file
        with open_stream(os.fspath(path)) as stream:
            yield stream

    def concat_path(self, path: Path, suffix: str) -> str:
        return f"{os.fspath(path)}/{suffix}"

    def rename(self, path: Path, new_path: Path) -> None:
        self._fs.move(os.fspath(path), os.fspath(new_path))

    def init_path(self, path: Path) -> str:
        return os.fspath(path)

    def mkdir(self, path: Path) -> None:
        self._fs.create_dir(os.fspath(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Path) -> bool:
        return True

    def exists(self, path: Path) -> bool:
        return self._fs.get_file_info(os.fspath(path)).type != pafs.FileType.NotFound

    def rm_file(self, path: Path) -> None:
        self._fs.delete_file(os.fspath(path))


class StoreWriter(FileSystemWriter):
    """Writes each rank's part as one object."""

    def __init__(self, out: Artifact, folder: str) -> None:
        super().__init__(out.path(folder), sync_files=False)  # an object is there, whole, once its upload has ended
        self.fs = StoreFiles(out.fs)  # type: ignore[assignment]  # torch names its local class


class StoreReader(FileSystemReader):
    """Reads the tensors that a rank needs: one request for each."""

    def __init__(self, out: Artifact, folder: str) -> None:
        super().__init__(out.path(folder))
        self.fs = StoreFiles(out.fs)  # type: ignore[assignment]  # torch names its local class
        self.path = out.path(folder)

    def _slice_file(self, file: Any, sinfo: _StorageInfo) -> IO[bytes]:
        file.seek(sinfo.offset)
        return cast(IO[bytes], io.BytesIO(file.read(sinfo.length)))
