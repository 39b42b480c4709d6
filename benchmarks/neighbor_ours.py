"""Our k-NN graph, as benchmarks/neighbors.py measures it: the stage itself, on files, under a local Ray."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import NeighborsConfig, Resources
from sbp_ray.schema import DOC_ID, SIGNATURE_BYTES, embedding_schema, shard_of
from sbp_ray.shards import shard_name

# N = vectors, D = vector length, Q = queries, K = neighbours

Rows = NDArray[np.int64]

_NUM_SHARDS = 8
_WRITTEN_ROWS = 50_000  # at a time
_WARM_UP_ROWS = 21_000
_WORKER_GIB = 8.0  # a third of a machine of 24 GiB: a million documents are one group
_OBJECT_STORE_BYTES = 256 * 2**20  # references travel, not vectors


def our_settings(k: int, min_recall: float, threads: int) -> NeighborsConfig:
    """The stage's settings: what a user would write for this machine."""
    return NeighborsConfig(
        num_neighbors=k,
        min_recall=min_recall,
        worker_gib=_WORKER_GIB,
        resources=Resources(num_workers=1, num_cpus=threads, num_threads=threads),
    )


def run_ours(
    vectors: Path, k: int, min_recall: float, threads: int, query_Q: Rows, measured: Callable[[float, float], None]
) -> Rows:
    """Make the graph of a .npy file of vectors, unit float32 [N, D].

    Writing the vectors as an artifact and starting Ray come before the clock starts; reading them, searching, writing
    the graph and its recall certificate are what it measures.

    Args:
        vectors: the file.
        k: neighbours of each.
        min_recall: what the stage must reach, or fail.
        threads: CPUs of the local Ray.
        query_Q: rows whose neighbours are wanted.
        measured: told the seconds, and those of all CPUs together, when they are known.

    Returns:
        Rows of the neighbours of `query_Q`, -1 where there are fewer, [Q, k].
    """
    import ray

    from sbp_ray.stages.neighbors import find_neighbors

    cfg = our_settings(k, min_recall, threads)
    with tempfile.TemporaryDirectory(prefix="sbp_ray-bench-") as folder:
        embeddings, out, few, unused = (
            Artifact(name, f"{folder}/{name}") for name in ("all", "graph", "few", "unused")
        )
        vectors_ND = np.load(vectors, mmap_mode="r")
        _write_embeddings(vectors_ND, embeddings)
        _write_embeddings(vectors_ND[:_WARM_UP_ROWS], few)
        _start_ray(threads)
        try:
            find_neighbors(cfg, embeddings=few, out=unused)  # Ray's workers import and compile once, as peers do
            start, cpu_start = time.perf_counter(), _cpu_seconds()
            find_neighbors(cfg, embeddings=embeddings, out=out)
            measured(time.perf_counter() - start, _cpu_seconds() - cpu_start)
        finally:
            ray.shutdown()
        return _read_rows(out, query_Q, k)


def _cpu_seconds() -> float:
    """Of this process and its descendants, Ray among them, all of which outlive the measurement."""
    process = psutil.Process()
    times = [each.cpu_times() for each in [process, *process.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


def _start_ray(threads: int) -> None:
    """A Ray of this process alone, with its workers up."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # listens on this machine only, for as long as the measurement
    import ray

    nowhere = {"env_vars": {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}}  # no dashboard, no other Ray's either
    ray.init(
        address="local",
        num_cpus=threads,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        runtime_env=nowhere,
        logging_level="WARNING",
    )

    @ray.remote
    def _warmed_up() -> int:
        return os.getpid()

    ray.get([_warmed_up.remote() for _ in range(threads)])


# Rows and ids: shards come out even, and the row can be read off the id


def _doc_id(row: int) -> bytes:
    return (row * 2654435761 % 2**32).to_bytes(4, "big") + row.to_bytes(12, "big")


def _row(doc_id: bytes) -> int:
    return int.from_bytes(doc_id[4:], "big")


def _write_embeddings(vectors_ND: NDArray[np.float32], out: Artifact) -> None:
    """The train split; the validation split is there and empty."""
    schema = embedding_schema(vectors_ND.shape[1])
    shard_N = np.array([shard_of(_doc_id(row), _NUM_SHARDS) for row in range(len(vectors_ND))], np.int64)
    for shard in range(_NUM_SHARDS):
        rows = np.flatnonzero(shard_N == shard)
        parts = [
            _embedding_rows(vectors_ND, rows[i : i + _WRITTEN_ROWS], schema) for i in range(0, len(rows), _WRITTEN_ROWS)
        ]
        table = pa.concat_tables(parts) if parts else schema.empty_table()
        out.write_table(shard_name("train", shard), table, stats={"documents": len(rows)})
        out.write_table(shard_name("validation", shard), schema.empty_table(), stats={"documents": 0})


def _embedding_rows(vectors_ND: NDArray[np.float32], rows: Rows, schema: pa.Schema) -> pa.Table:
    values = pa.array(vectors_ND[rows].astype(np.float16).ravel(), pa.float16())
    columns = {
        "doc_id": pa.array([_doc_id(int(row)) for row in rows], DOC_ID),
        "vector": pa.FixedSizeListArray.from_arrays(values, vectors_ND.shape[1]),
        "signature": pa.array([bytes(SIGNATURE_BYTES)] * len(rows), pa.binary(SIGNATURE_BYTES)),
        "num_shingles": pa.array(np.full(len(rows), 100, np.int32)),
        "content_signature": pa.array([bytes(SIGNATURE_BYTES)] * len(rows), pa.binary(SIGNATURE_BYTES)),
        "num_content_words": pa.array(np.full(len(rows), 20, np.int32)),
        "group_hash": pa.array(rows.astype(np.uint64)),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _read_rows(graph: Artifact, query_Q: Rows, k: int) -> Rows:
    found_QK = np.full((len(query_Q), k), -1, np.int64)
    wanted = {_doc_id(int(row)): place for place, row in enumerate(query_Q)}
    for name in graph.files("train", ".parquet"):
        table = graph.read_table(name, ["doc_id", "neighbor_ids"])
        for place, doc_id in enumerate(table.column("doc_id").to_pylist()):
            if doc_id in wanted:
                rows = [_row(neighbor) for neighbor in table.column("neighbor_ids")[place].as_py()]
                found_QK[wanted[doc_id], : len(rows)] = rows
    return found_QK
