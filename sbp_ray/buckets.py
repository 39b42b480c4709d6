"""Files sorted into buckets: how rows get from workers that read by one key to workers that write by another.

Each reading worker commits one Parquet file whose row groups each belong to one bucket; the worker that owns a bucket
then reads its row groups, and nothing else, from every file. F readers and B buckets need F files, not F x B.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact


class BucketWriter:
    """Writes chunks of rows, each chunk sorted by bucket."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._row_groups: dict[int, list[int]] = defaultdict(list)
        self._num_row_groups = 0

    def write(self, table: pa.Table, bucket_N: NDArray[np.integer]) -> None:
        """Add rows; `bucket_N` names the bucket of each. Within a bucket, rows keep their order."""
        if len(table) == 0:
            return
        order_N = np.argsort(bucket_N, kind="stable")
        sorted_N = bucket_N[order_N]
        table = table.take(pa.array(order_N))
        buckets, starts = np.unique(sorted_N, return_index=True)
        ends = [*starts[1:], len(sorted_N)]
        for bucket, start, end in zip(buckets, starts, ends, strict=True):
            self._writer.write_table(table.slice(start, end - start), row_group_size=int(end - start))
            self._row_groups[int(bucket)].append(self._num_row_groups)
            self._num_row_groups += 1

    def finish(self, stats: dict[str, Any]) -> None:
        """Record `stats`, for `Artifact.read_stats`, and where each bucket lies."""
        self._writer.add_key_value_metadata({"stats": json.dumps(stats), "buckets": json.dumps(self._row_groups)})


@contextmanager
def bucket_writer(out: Artifact, name: str, schema: pa.Schema) -> Iterator[BucketWriter]:
    """Commits `name` when the block ends without an error; call `finish` last."""
    with out.writing(name) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        yield BucketWriter(writer)


def read_bucket(artifact: Artifact, names: Iterable[str], bucket: int, schema: pa.Schema) -> pa.Table:
    """The bucket's rows from all files, in the order of `names`; with a column `file`, a number into `names`."""
    parts = [schema.append(pa.field("file", pa.int32())).empty_table()]
    for number, name in enumerate(names):
        with artifact.fs.open_input_file(artifact.path(name)) as stream:
            file = pq.ParquetFile(stream)
            row_groups = json.loads(file.metadata.metadata[b"buckets"]).get(str(bucket), [])
            if row_groups:
                rows = file.read_row_groups(row_groups)
                parts.append(rows.append_column("file", pa.array(np.full(len(rows), number, np.int32))))
    return pa.concat_tables(parts)
