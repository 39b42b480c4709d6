"""Files sorted into buckets: how rows get from workers that read by one key to workers that write by another.

Each reading worker commits one Arrow file whose record batches each belong to one bucket; the worker that owns a bucket
then reads its batches, and nothing else, from every file. F readers and B buckets need F files, not F x B. Arrow, not
Parquet: a footer costs 24 bytes a bucket instead of about 100 a bucket and column, and every reader reads every footer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact


class BucketWriter:
    """Writes chunks of rows, each chunk sorted by bucket."""

    def __init__(self, writer: pa.ipc.RecordBatchFileWriter, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema
        self._batches: dict[int, list[int]] = defaultdict(list)
        self._num_batches = 0

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
            self._writer.write_batch(batch)
            self._batches[int(bucket)].append(self._num_batches)
            self._num_batches += 1

    def finish(self, stats: dict[str, Any]) -> None:
        """Record `stats`, for `Artifact.read_stats`, and where each bucket lies."""
        empty = pa.RecordBatch.from_pylist([], self._schema)
        index = {"stats": json.dumps(stats), "buckets": json.dumps(self._batches)}
        self._writer.write_batch(empty, custom_metadata=index)


@contextmanager
def bucket_writer(
    out: Artifact, name: str, schema: pa.Schema, *, compression: str | None = "zstd"
) -> Iterator[BucketWriter]:
    """Commits `name` when the block ends without an error; call `finish` last."""
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with out.writing(name) as stream, pa.ipc.new_file(stream, schema, options=options) as writer:
        yield BucketWriter(writer, schema)


def read_bucket(artifact: Artifact, names: Iterable[str], bucket: int, schema: pa.Schema) -> pa.Table:
    """The bucket's rows from all files, in the order of `names`; with a column `file`, a number into `names`."""
    parts = [schema.append(pa.field("file", pa.int32())).empty_table()]
    for number, name in enumerate(names):
        with artifact.fs.open_input_file(artifact.path(name)) as stream, pa.ipc.open_file(stream) as file:
            index = file.get_batch_with_custom_metadata(file.num_record_batches - 1).custom_metadata
            batches = [file.get_batch(batch) for batch in json.loads(index[b"buckets"]).get(str(bucket), [])]
            if batches:
                rows = pa.Table.from_batches(batches)
                parts.append(rows.append_column("file", pa.array(np.full(len(rows), number, np.int32))))
    return pa.concat_tables(parts)
