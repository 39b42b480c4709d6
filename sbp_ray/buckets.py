"""Files sorted into buckets: how rows get from workers that read by one key to workers that write by another.

Each reading worker commits one Arrow file whose record batches each belong to one bucket; the worker that owns a bucket
then reads its batches, and nothing else, from every file. F readers and B buckets need F files, not F x B.

A file's index says where the batches of each bucket lie. A process reads the index of a file once, and opens a file
again only for a bucket that has rows there. Arrow, not Parquet: 24 bytes a batch instead of about 100 a batch and
column.
"""

from __future__ import annotations

import functools
import json
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact

_INDEXES = 2048
"""Files whose index a process keeps: with as many buckets and one batch in each, 100 MB."""


class BucketWriter:
    """Writes chunks of rows, each chunk sorted by bucket."""

    def __init__(self, stream: BinaryIO, writer: pa.ipc.RecordBatchFileWriter, schema: pa.Schema) -> None:
        self._stream, self._writer = stream, writer
        self._places: list[tuple[int, int, int]] = []  # bucket, offset and length of each batch
        self._empty = pa.RecordBatch.from_pylist([], schema)
        writer.write_batch(self._empty)  # the schema goes along with the first batch

    def write(self, table: pa.Table, bucket_N: NDArray[np.integer]) -> None:
        """Add rows; `bucket_N` names the bucket of each. Within a bucket, rows keep their order."""
        if len(table) == 0:
            return
        order_N = np.argsort(bucket_N, kind="stable")
        sorted_N = bucket_N[order_N]
        buckets, starts = np.unique(sorted_N, return_index=True)
        ends = [*starts[1:], len(sorted_N)]
        for bucket, start, end in zip(buckets, starts, ends, strict=True):
            [batch] = table.take(pa.array(order_N[start:end])).combine_chunks().to_batches()
            offset = self._stream.tell()
            self._writer.write_batch(batch)
            self._places.append((int(bucket), offset, self._stream.tell() - offset))

    def finish(self, stats: dict[str, Any]) -> None:
        """Record `stats`, for `Artifact.read_stats`, and where each bucket lies."""
        index = {"stats": json.dumps(stats), "places": np.array(self._places, np.int64).tobytes()}
        self._writer.write_batch(self._empty, custom_metadata=index)


@contextmanager
def bucket_writer(
    out: Artifact, name: str, schema: pa.Schema, *, compression: str | None = "zstd"
) -> Iterator[BucketWriter]:
    """Commits `name` when the block ends without an error; call `finish` last."""
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with out.writing(name) as stream, pa.ipc.new_file(stream, schema, options=options) as writer:
        yield BucketWriter(stream, writer, schema)


def read_bucket(artifact: Artifact, names: Iterable[str], bucket: int, schema: pa.Schema) -> pa.Table:
    """The bucket's rows from all files, in the order of `names`; with a column `file`, a number into `names`."""
    names = list(names)
    parts = [schema.append(pa.field("file", pa.int32())).empty_table()]
    listed = _list_files(artifact, {posixpath.dirname(name) for name in names})
    for number, name in enumerate(names):
        info = listed[artifact.path(name)]
        places_P3 = _read_places(artifact, info.path, info.size, info.mtime_ns)
        mine_P3 = places_P3[places_P3[:, 0] == bucket]
        if len(mine_P3):
            with artifact.fs.open_input_file(info.path) as file:
                pieces = [file.read_at(length, offset) for _, offset, length in mine_P3.tolist()]
            batches = [pa.ipc.read_record_batch(pa.ipc.read_message(piece), schema) for piece in pieces]
            rows = pa.Table.from_batches(batches)
            parts.append(rows.append_column("file", pa.array(np.full(len(rows), number, np.int32))))
    return pa.concat_tables(parts)


def _list_files(artifact: Artifact, folders: Iterable[str]) -> dict[str, pafs.FileInfo]:
    """Size and time of each file, by path: one request for a thousand files."""
    selectors = [pafs.FileSelector(artifact.path(folder)) for folder in folders]
    return {info.path: info for selector in selectors for info in artifact.fs.get_file_info(selector)}


@functools.lru_cache(_INDEXES)
def _read_places(artifact: Artifact, path: str, size: int, mtime_ns: int) -> NDArray[np.int64]:
    """int64[P, 3]: bucket, offset and length of each batch of a file; its size and time tell it from an earlier one."""
    with artifact.fs.open_input_file(path) as stream, pa.ipc.open_file(stream) as file:
        last = file.get_batch_with_custom_metadata(file.num_record_batches - 1)
        return np.frombuffer(last.custom_metadata[b"places"], np.int64).reshape(-1, 3)
