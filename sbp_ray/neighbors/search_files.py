"""What the steps of the search read and write: the embeddings, and files that live as long as the search."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.doc_ids import ids_to_numpy
from sbp_ray.errors import SbpError
from sbp_ray.schema import DOC_ID, SIGNATURE_BYTES, Split
from sbp_ray.steps import SCRATCH

# N = documents, D = vector length, K = neighbours

DESCRIBED = ("cosines", "jaccards", "containments", "content_overlaps")
"""What a list says of each neighbour beside its id and its group: float32 each."""
ROUTED_COLUMNS = ["signature", "num_shingles", "content_signature", "num_content_words", "group_hash"]
"""Columns of the embeddings that go along with id and vector."""
BATCH_ROWS = 4096
"""Documents that a worker reads and writes at a time."""


class Scratch(NamedTuple):
    """Names of the files of one attempt at the search of a split."""

    split: Split
    attempt: int

    @property
    def _folder(self) -> str:
        return f"{SCRATCH}/{self.split}-{self.attempt}"

    @property
    def partition(self) -> str:
        """The `Partition`."""
        return f"{self._folder}/partition.npz"

    @property
    def exact(self) -> str:
        """The nearest documents of the queries in all shards."""
        return f"{self._folder}/exact.npz"

    def exact_of(self, shard: int) -> str:
        """The nearest documents of the queries in a shard."""
        return f"{self._folder}/exact-{shard:05d}.npz"

    def routed(self, shard: int) -> str:
        """The documents of a shard, in a bucket for each group."""
        return f"{self._folder}/routed-{shard:05d}.arrow"

    def found(self, group: int) -> str:
        """The lists that a group found, in a bucket for each shard."""
        return f"{self._folder}/found-{group:05d}.arrow"


def write_arrays(out: Artifact, name: str, arrays: NamedTuple) -> None:
    """Arrays and numbers as a file of NumPy's."""
    stream = io.BytesIO()
    np.savez(stream, **arrays._asdict())
    out.write_bytes(name, stream.getvalue())


def read_arrays(out: Artifact, name: str) -> dict[str, Any]:
    """What `write_arrays` wrote, by name."""
    with np.load(io.BytesIO(out.read_bytes(name))) as arrays:
        return {key: value if value.ndim else value.item() for key, value in arrays.items()}


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
            ("content_signature", pa.binary(SIGNATURE_BYTES)),
            ("num_content_words", pa.int32()),
            ("group_hash", pa.uint64()),
        ]
    )


def found_schema(k: int) -> pa.Schema:
    """Lists on their way to a shard."""
    numbers = [(name, pa.binary(4 * k)) for name in DESCRIBED]
    return pa.schema([("row", pa.int64()), ("ids", pa.binary(16 * k)), *numbers, ("same_group", pa.binary(k))])


# Vectors


def vector_length(embeddings: Artifact, name: str) -> int:
    """As the shard declares it."""
    with embeddings.fs.open_input_file(embeddings.path(name)) as file:
        return pq.read_schema(file).field("vector").type.list_size


class Vectors(NamedTuple):
    """Documents of a shard."""

    unit_ND: NDArray[np.float32]
    table: pa.Table
    """Their ids and other columns."""


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
            yield Vectors(vectors_ND / length_N[:, None], pa.Table.from_batches([batch]))


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
            chosen = rng.random(len(part.table)) < num / num_there
            vectors.append(part.unit_ND[chosen])
            ids.append(ids_to_numpy(part.table.column("doc_id"))[chosen])
    order = rng.permutation(sum(map(len, ids)))
    return np.concatenate(vectors)[order], np.concatenate(ids)[order]
