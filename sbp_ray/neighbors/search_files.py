"""What the steps of the search read and write: the embeddings, and files that live as long as the search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.doc_ids import ids_to_numpy
from sbp_ray.errors import SbpError
from sbp_ray.neighbors.partition import Partition
from sbp_ray.schema import DOC_ID, SIGNATURE_BYTES, Split
from sbp_ray.shards import SCRATCH, shard_name

# N = documents, D = vector length, K = neighbours

BATCH_ROWS = 4096  # documents that a worker reads and writes at a time


def _folder(split: Split, attempt: int) -> str:
    return f"{SCRATCH}/{split}-{attempt}"


def partition_file(split: Split, attempt: int) -> str:
    """Where the `Partition` lies."""
    return f"{_folder(split, attempt)}/partition.npz"


def routed_file(split: Split, attempt: int, shard: int) -> str:
    """Where the documents of a shard lie, in a bucket for each group."""
    return f"{_folder(split, attempt)}/routed-{shard:05d}.arrow"


def exact_file(split: Split, attempt: int, shard: int) -> str:
    """Where the nearest documents of the queries in a shard lie."""
    return f"{_folder(split, attempt)}/exact-{shard:05d}.npz"


def merged_exact_file(split: Split, attempt: int) -> str:
    """Where the nearest documents of the queries in all shards lie."""
    return f"{_folder(split, attempt)}/exact.npz"


def found_file(split: Split, attempt: int, group: int) -> str:
    """Where the lists that a group found lie, in a bucket for each shard."""
    return f"{_folder(split, attempt)}/found-{group:05d}.arrow"


def read_partition(out: Artifact, split: Split, attempt: int) -> Partition:
    """The groups of a split."""
    return Partition.from_bytes(out.read_bytes(partition_file(split, attempt)))


def routed_schema(dim: int) -> pa.Schema:
    """Documents on their way to a group."""
    return pa.schema(
        [
            ("row", pa.int64()),  # shard << 32 | row in the shard
            ("doc_id", DOC_ID),
            ("home", pa.int32()),  # the group where it lives
            ("vector", pa.binary(2 * dim)),  # int16 each
            ("signature", pa.binary(SIGNATURE_BYTES)),
            ("num_shingles", pa.int32()),
            ("group_hash", pa.uint64()),
        ]
    )


def found_schema(k: int) -> pa.Schema:
    """Lists on their way to a shard."""
    numbers = [(name, pa.binary(4 * k)) for name in ("cosines", "jaccards", "containments")]
    return pa.schema([("row", pa.int64()), ("ids", pa.binary(16 * k)), *numbers, ("same_group", pa.binary(k))])


# Columns of fixed width, one value after the other


def column(values_ND: NDArray) -> pa.Array:
    """[N, …] as binary of the width of a row."""
    values_ND = np.ascontiguousarray(values_ND)
    width = values_ND.dtype.itemsize * int(np.prod(values_ND.shape[1:]))
    return pa.Array.from_buffers(pa.binary(width), len(values_ND), [None, pa.py_buffer(values_ND)])


def values(table: pa.Table, name: str, dtype: Any, width: int) -> NDArray:
    """The inverse of `column`: [N, width]."""
    chunks = [
        np.frombuffer(chunk.buffers()[1], dtype).reshape(-1, width)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in table.column(name).chunks
        if len(chunk)
    ]
    return np.concatenate(chunks) if chunks else np.empty((0, width), dtype)


# Vectors


def vector_length(embeddings: Artifact, split: Split) -> int:
    """As the split's first shard declares it."""
    with embeddings.fs.open_input_file(embeddings.path(shard_name(split, 0))) as file:
        return pq.read_schema(file).field("vector").type.list_size


class Vectors(NamedTuple):
    """Documents of a shard."""

    doc_ids: pa.Array
    unit_ND: NDArray[np.float32]
    table: pa.Table


def read_vectors(embeddings: Artifact, name: str, columns: list[str], dim: int = 0) -> Iterator[Vectors]:
    """A shard, `BATCH_ROWS` documents at a time.

    Raises:
        SbpError: a vector has no direction, or another length than `dim`.
    """
    with embeddings.fs.open_input_file(embeddings.path(name)) as stream:
        file = pq.ParquetFile(stream)
        width = file.schema_arrow.field("vector").type.list_size
        if dim and width != dim:
            raise SbpError(
                f"{embeddings.url}: {name} holds {width}-d vectors and others {dim}-d ones: make them again with "
                "--redo embed"
            )
        for batch in file.iter_batches(BATCH_ROWS, columns=["doc_id", "vector", *columns], use_threads=False):
            vectors_ND = batch.column("vector").flatten().to_numpy().reshape(-1, width).astype(np.float32)
            length_N = np.linalg.norm(vectors_ND, axis=1)
            bad = np.flatnonzero(~(np.isfinite(length_N) & (length_N > 0)))
            if len(bad):
                doc_id = batch.column("doc_id")[int(bad[0])].as_py().hex()
                raise SbpError(
                    f"{embeddings.url}: {name}: the vector of document {doc_id} is zero or not finite: make "
                    "it again with --redo embed"
                )
            yield Vectors(batch.column("doc_id"), vectors_ND / length_N[:, None], pa.Table.from_batches([batch]))


def sample_vectors(
    embeddings: Artifact, shards: list[tuple[str, int]], num: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.bytes_]]:
    """About `num` documents at random, from as few of these shards as hold so many.

    A shard is a random part of the corpus, since ids are hashes; its rows may have an order.
    """
    used, num_there = [], 0
    for name, num_rows in shards:
        if num_there < num:
            used.append(name)
            num_there += num_rows
    rng = np.random.default_rng(seed)
    vectors: list[NDArray[np.float32]] = []
    ids: list[NDArray[np.bytes_]] = []
    for name in used:
        for part in read_vectors(embeddings, name, [], vectors[0].shape[1] if vectors else 0):
            chosen = rng.random(len(part.doc_ids)) < num / num_there
            vectors.append(part.unit_ND[chosen])
            ids.append(ids_to_numpy(part.doc_ids)[chosen])
    order = rng.permutation(sum(map(len, ids)))
    return np.concatenate(vectors)[order], np.concatenate(ids)[order]
