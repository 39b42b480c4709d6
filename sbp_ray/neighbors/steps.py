"""The steps of the search over files: each worker reads what the one before it committed, and commits its own part."""

from __future__ import annotations

import io
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import bucket_writer, read_bucket
from sbp_ray.config import NeighborsConfig
from sbp_ray.doc_ids import ID, id_numbers, ids_to_arrow, ids_to_numpy, shards_of
from sbp_ray.neighbors.cells import blocks
from sbp_ray.neighbors.group import Control, Effort, Found, search_group
from sbp_ray.neighbors.histogram import cosine_histogram
from sbp_ray.neighbors.kernels import NO_ROW, equal_bytes, merge_lists
from sbp_ray.neighbors.partition import (
    SAMPLES_PER_CELL,
    Partition,
    gaps,
    make_groups,
    margin_for,
    num_cells_of,
    one_group,
)
from sbp_ray.neighbors.quantize import Quantizer, encode
from sbp_ray.neighbors.recall import Exact, ExactSearch, merged, no_neighbors
from sbp_ray.neighbors.search_files import (
    BATCH_ROWS,
    Vectors,
    column,
    exact_file,
    found_file,
    found_schema,
    merged_exact_file,
    partition_file,
    read_partition,
    read_vectors,
    routed_file,
    routed_schema,
    sample_vectors,
    values,
    vector_length,
)
from sbp_ray.neighbors.search_plan import (
    EXACT_BELOW,
    num_calibration_documents,
    num_control_queries,
    num_groups,
    refuse_small_machine,
    threads_of,
)
from sbp_ray.schema import NEIGHBORS, SIGNATURE_BYTES, Split
from sbp_ray.shards import Stats, shard_name
from sbp_ray.text.minhash import estimate_containment, jaccard_of
from sbp_ray.threads import read_ahead

# N = documents, D = vector length, G = groups, K = neighbours, M = lists, or neighbours of all lists

_CALIBRATION_QUERIES = 2000
_SHORT_VECTOR = 128  # below so many dimensions products are cheap, and larger cells find more in the same time
_FAIR_SHARE = 0.7  # of the misses that `min_recall` allows: the first attempt aims at these
_BORDER_SHARE = 0.3  # likewise: neighbours that meet in no group


def _pool(num_threads: int) -> ThreadPoolExecutor:
    torch.set_num_threads(1)  # the threads of the pool each call torch
    return ThreadPoolExecutor(num_threads)


# Step 1


class Partitioner:
    """Chooses the groups of one split, and how far into others their documents are copied."""

    def __init__(self, cfg: NeighborsConfig, embeddings: Artifact, out: Artifact, rows: dict[Split, list[int]]) -> None:
        self._cfg, self._embeddings, self._out, self._rows = cfg, embeddings, out, rows

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, attempt = item["split"], item["attempt"]
        shards = [(shard_name(split, shard), num) for shard, num in enumerate(self._rows[split]) if num]
        if shards:
            made = self._groups(split, shards, attempt)
        else:
            made = one_group(Quantizer(1.0), vector_length(self._embeddings, split))
        self._out.write_bytes(partition_file(split, attempt), made.to_bytes())
        return {}

    def _groups(self, split: Split, shards: list[tuple[str, int]], attempt: int) -> Partition:
        cfg, num_documents = self._cfg, sum(num for _, num in shards)
        wanted = num_groups(cfg, num_documents, vector_length(self._embeddings, split))
        num_queries = cfg.recall_queries + num_control_queries(wanted)
        num_held_out = num_queries + (num_calibration_documents(cfg, num_documents) if wanted > 1 else 0)
        held_out_ND, ids = sample_vectors(self._embeddings, shards[::-1], num_held_out, cfg.seed + 1)
        query_QD, query_id_Q = held_out_ND[:num_queries], ids[:num_queries]
        quantizer = Quantizer(float(np.abs(held_out_ND).max()))
        if wanted == 1:
            made = one_group(quantizer, held_out_ND.shape[1])
            return made._replace(query_QD=query_QD, query_id_Q=query_id_Q)
        held_out_ND = held_out_ND[num_queries:]  # the margin is not chosen on the queries that judge it
        num_sample = min(SAMPLES_PER_CELL * num_cells_of(wanted), num_documents // 2)
        sample_ND, _ = sample_vectors(self._embeddings, shards, num_sample, cfg.seed)
        k = max(1, round(cfg.num_neighbors * len(held_out_ND) / num_documents))
        share = 1 - _BORDER_SHARE * (1 - cfg.min_recall) / 2**attempt
        with _pool(threads_of(cfg.resources)) as pool:
            made = make_groups(quantizer.coarse(sample_ND), quantizer, wanted, cfg.seed, pool)
            margin = margin_for(made, held_out_ND, quantizer.coarse(held_out_ND), _CALIBRATION_QUERIES, k, share, pool)
        return made._replace(margin=margin, query_QD=query_QD, query_id_Q=query_id_Q)


# Step 2


class Router:
    """Puts the documents of one shard into the buckets of the groups in which they are searched."""

    def __init__(self, cfg: NeighborsConfig, embeddings: Artifact, out: Artifact) -> None:
        self._cfg, self._embeddings, self._out = cfg, embeddings, out

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard, attempt = item["split"], item["shard"], item["attempt"]
        made = read_partition(self._out, split, attempt)
        dim = made.query_QD.shape[1] if len(made.query_QD) else vector_length(self._embeddings, split)
        stats: dict[str, Any] = {"documents": 0, "copies": 0}
        num_G = np.zeros(made.num_groups, np.int64)
        name = routed_file(split, attempt, shard)
        schema, columns = routed_schema(dim), ["signature", "num_shingles", "group_hash"]
        threads = threads_of(self._cfg.resources)
        with _pool(threads) as pool, bucket_writer(self._out, name, schema, compression=None) as writer:
            exact = ExactSearch(made.query_QD, made.query_id_Q, self._cfg.num_neighbors, made.quantizer, pool)
            parts = read_vectors(self._embeddings, shard_name(split, shard), columns, dim)
            for part in read_ahead(parts):
                coarse_ND, ids = made.quantizer.coarse(part.unit_ND), ids_to_numpy(part.doc_ids)
                exact.show(part.unit_ND, coarse_ND, ids)
                gap_NG = gaps(made, coarse_ND, pool)
                document_V, group_V = np.nonzero(gap_NG <= made.margin)
                rows_N = (shard << 32) + stats["documents"] + np.arange(len(ids))
                table = _routed(part, ids, rows_N, gap_NG.argmin(axis=1), schema)
                writer.write(table if made.num_groups == 1 else table.take(pa.array(document_V)), group_V)
                stats["documents"] += len(ids)
                stats["copies"] += len(document_V)
                num_G += np.bincount(group_V, minlength=made.num_groups)
            _write_exact(self._out, exact_file(split, attempt, shard), exact.result())
            writer.finish({**stats, "group_documents": {str(group): int(num) for group, num in enumerate(num_G)}})
        return {}


def _routed(
    part: Vectors, ids: NDArray, rows_N: NDArray[np.int64], home_N: NDArray[np.int64], schema: pa.Schema
) -> pa.Table:
    columns = {
        "row": pa.array(rows_N),
        "doc_id": ids_to_arrow(ids),
        "home": pa.array(home_N.astype(np.int32)),
        "vector": column(encode(part.unit_ND)),
    }
    rest = [part.table.column(name) for name in schema.names[len(columns) :]]
    return pa.table([*columns.values(), *rest], schema=schema)


def _write_exact(out: Artifact, name: str, exact: Exact) -> None:
    stream = io.BytesIO()
    np.savez(stream, **exact._asdict())
    out.write_bytes(name, stream.getvalue())


def read_exact(out: Artifact, name: str) -> Exact:
    """What `_write_exact` wrote."""
    with np.load(io.BytesIO(out.read_bytes(name))) as arrays:
        return Exact(**arrays)


class ExactMerger:
    """Merges what the shards held of the queries' nearest documents, once for all who ask."""

    def __init__(self, cfg: NeighborsConfig, out: Artifact) -> None:
        self._cfg, self._out = cfg, out

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, attempt = item["split"], item["attempt"]
        exact = no_neighbors(len(read_partition(self._out, split, attempt).query_id_Q))
        for shard in range(item["num_shards"]):
            part = read_exact(self._out, exact_file(split, attempt, shard))
            exact = merged(exact, part, self._cfg.num_neighbors)
        _write_exact(self._out, merged_exact_file(split, attempt), exact)
        return {}


# Step 3


class GroupSearcher:
    """Finds the nearest of the documents of one group, and sorts the lists by the documents' shards."""

    def __init__(self, cfg: NeighborsConfig, out: Artifact) -> None:
        self._cfg, self._out = cfg, out

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, group, attempt = item["split"], item["group"], item["attempt"]
        refuse_small_machine(item["worker_gib"], item["vram_gib"], item["scratch_gib"])
        cfg, k = self._cfg, self._cfg.num_neighbors
        made = read_partition(self._out, split, attempt)
        dim = item["dim"]
        files = [routed_file(split, attempt, shard) for shard in range(item["num_shards"])]
        table = read_bucket(self._out, files, group, routed_schema(dim))
        with _pool(threads_of(cfg.resources)) as pool:
            coming = pool.submit(_documents, table)
            vectors_ND, documents = values(table, "vector", np.int16, dim), coming.result()
        del table, coming  # its columns share their memory
        exact = read_exact(self._out, merged_exact_file(split, attempt))
        found = search_group(
            vectors_ND,
            k,
            made.quantizer,
            _effort(cfg, item["num_documents"], dim, attempt, made.num_groups),
            _control(exact, made.query_id_Q, documents.id_N, cfg.recall_queries),
            seed=cfg.seed,
            num_threads=threads_of(cfg.resources),
            device="cuda" if cfg.resources.num_gpus else "cpu",
        )
        del vectors_ND
        name = found_file(split, attempt, group)
        with bucket_writer(self._out, name, found_schema(k), compression=None) as writer:
            for rows in _describe(documents, found, k, cfg):
                writer.write(*rows)
            writer.finish({"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})
        return {"documents": int((documents.home_N == group).sum())}


def _effort(cfg: NeighborsConfig, num_documents: int, dim: int, attempt: int, num_groups: int) -> Effort:
    """More with each attempt; a small split is one cell, and the search exact."""
    cell_documents = round(cfg.cell_documents * max(1, _SHORT_VECTOR / dim))
    if num_documents < EXACT_BELOW:
        cell_documents = num_documents
    share = _FAIR_SHARE - (_BORDER_SHARE if num_groups > 1 else 0)
    return Effort(cell_documents, cfg.probes * 2**attempt, 1 - share * (1 - cfg.min_recall) / 2**attempt)


def _control(exact: Exact, query_id_Q: NDArray, id_N: NDArray, num_judging: int) -> Control:
    """The queries after those that judge the recall, as far as they and their neighbours are in the group."""
    is_there_QK = exact.cosine_QK[num_judging:] > -np.inf
    query_M = np.repeat(query_id_Q[num_judging:], is_there_QK.sum(axis=1))
    neighbor_M = exact.id_QK[num_judging:][is_there_QK]
    place_M, other_M = _places(query_M, id_N), _places(neighbor_M, id_N)
    is_inside_M = (place_M >= 0) & (other_M >= 0)
    return Control(place_M[is_inside_M], other_M[is_inside_M])


def _places(wanted_M: NDArray, id_N: NDArray) -> NDArray[np.int64]:
    """Where each of the wanted ids is among others, -1 where it is not."""
    halves_N = np.ascontiguousarray(id_N).view(np.uint64)[::2]  # numbers, not strings: 20 times as fast
    place_P = np.flatnonzero(np.isin(halves_N, np.ascontiguousarray(wanted_M).view(np.uint64)[::2]))
    place_P = place_P[np.argsort(id_N[place_P])]
    nearest_M = np.searchsorted(id_N[place_P], wanted_M).clip(0, max(0, len(place_P) - 1))
    is_there_M = id_N[place_P][nearest_M] == wanted_M if len(place_P) else np.zeros(len(wanted_M), bool)
    return np.where(is_there_M, place_P[nearest_M] if len(place_P) else -1, -1)


class _Documents(NamedTuple):
    """What is known of the documents of a group beside their vectors."""

    signature_NH: NDArray[np.uint8]
    num_shingles_N: NDArray[np.int32]
    group_hash_N: NDArray[np.uint64]
    row_N: NDArray[np.int64]
    id_N: NDArray[np.bytes_]
    home_N: NDArray[np.int32]


def _documents(table: pa.Table) -> _Documents:
    return _Documents(
        values(table, "signature", np.uint8, SIGNATURE_BYTES),
        table.column("num_shingles").to_numpy(),
        table.column("group_hash").to_numpy(),
        table.column("row").to_numpy(),
        ids_to_numpy(table.column("doc_id")),
        table.column("home").to_numpy(),
    )


def _describe(
    documents: _Documents, found: Found, k: int, cfg: NeighborsConfig
) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
    """Rows of `found_schema`, and the shards of their documents."""
    signature_NH, shingles_N, group_N, row_N, ids_N, _ = documents

    def describe(rows: slice) -> tuple[pa.Table, NDArray[np.int64]]:
        own_R, row_RK = found.order_N[rows], found.row_NK[rows]
        other_RK = np.where(row_RK == NO_ROW, NO_ROW, found.order_N[row_RK])
        jaccard_RK = jaccard_of(equal_bytes(signature_NH, own_R, other_RK))
        num_a_RK = np.broadcast_to(shingles_N[own_R][:, None], other_RK.shape)
        columns = [
            pa.array(row_N[own_R]),
            column(ids_N[other_RK]),
            column(found.cosine_NK[rows]),
            column(jaccard_RK),
            column(estimate_containment(jaccard_RK, num_a_RK, shingles_N[other_RK])),
            column(group_N[own_R][:, None] == group_N[other_RK]),
        ]
        return pa.table(columns, schema=found_schema(k)), row_N[own_R] >> 32

    with _pool(threads_of(cfg.resources)) as pool:
        yield from pool.map(describe, blocks(len(found.order_N), BATCH_ROWS))


# Step 4


class ListMerger:
    """Merges what the groups found for the documents of one shard."""

    def __init__(self, cfg: NeighborsConfig, embeddings: Artifact, out: Artifact) -> None:
        self._cfg, self._embeddings, self._out = cfg, embeddings, out

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard, attempt = item["split"], item["shard"], item["attempt"]
        k = self._cfg.num_neighbors
        name = shard_name(split, shard)
        doc_ids = self._embeddings.read_table(name, ["doc_id"]).column("doc_id")
        files = [found_file(split, attempt, group) for group in range(item["num_groups"])]
        table = read_bucket(self._out, files, shard, found_schema(k))
        cosine_MK = values(table, "cosines", np.float32, k)
        ids_MK = values(table, "ids", ID, k)
        source_NK = _nearest(table.column("row").to_numpy() & 0xFFFFFFFF, cosine_MK, ids_MK, len(doc_ids))
        kept_M = source_NK[source_NK != NO_ROW]
        num_N = (source_NK != NO_ROW).sum(axis=1)
        offsets = pa.array(np.concatenate([[0], np.cumsum(num_N)]).astype(np.int32))
        cosine_M = cosine_MK.ravel()[kept_M]
        columns = [
            ids_to_arrow(ids_MK.ravel()[kept_M]),
            pa.array(cosine_M),
            pa.array(values(table, "jaccards", np.float32, k).ravel()[kept_M]),
            pa.array(values(table, "containments", np.float32, k).ravel()[kept_M]),
            pa.array(values(table, "same_group", np.bool_, k).ravel()[kept_M]),
        ]
        lists = [pa.ListArray.from_arrays(offsets, flat) for flat in columns]
        stats = _list_stats(len(doc_ids), cosine_M[offsets.to_numpy()[:-1][num_N > 0]], cosine_M)
        self._out.write_table(name, pa.table([doc_ids, *lists], schema=NEIGHBORS), stats={**stats, "attempt": attempt})
        return {}


def _nearest(
    row_M: NDArray[np.int64], cosine_MK: NDArray[np.float32], ids_MK: NDArray, num_documents: int
) -> NDArray[np.int64]:
    """For each document, what `merge_lists` keeps of the lists of its row: int64[N, K]."""
    list_M = np.argsort(row_M, kind="stable")
    first_N1 = np.searchsorted(row_M[list_M], np.arange(num_documents + 1))
    source_NK = np.empty((num_documents, cosine_MK.shape[1]), np.int64)
    merge_lists(first_N1, list_M, cosine_MK, id_numbers(ids_MK), source_NK)
    return source_NK


def _list_stats(num_documents: int, nearest_cosine: NDArray[np.float32], cosines: NDArray[np.float32]) -> Stats:
    return {
        "documents": num_documents,
        "documents_with_neighbors": len(nearest_cosine),
        "neighbors": len(cosines),
        "nearest_cosine_sum": float(nearest_cosine.sum(dtype=np.float64)),
        "histogram_nearest": cosine_histogram(nearest_cosine),
        "histogram_all": cosine_histogram(cosines),
    }


def read_lists(
    out: Artifact, split: Split, query_id_Q: NDArray, num_shards: int
) -> tuple[list[NDArray], list[NDArray]]:
    """Cosines and raw ids of the neighbours of some documents."""
    wanted = ids_to_arrow(query_id_Q)
    lists: dict[bytes, tuple[NDArray, NDArray]] = {}
    for shard in sorted({*shards_of(query_id_Q, num_shards).tolist()}):
        table = out.read_table(shard_name(split, shard), ["doc_id", "neighbor_ids", "cosines"])
        table = table.filter(pc.is_in(table.column("doc_id"), wanted))
        for doc_id, ids, cosines in zip(*table.columns, strict=True):
            lists[doc_id.as_py()] = cosines.values.to_numpy(), ids_to_numpy(ids.values)
    found = [lists[doc_id] for doc_id in wanted.to_pylist()]
    return [cosines for cosines, _ in found], [ids for _, ids in found]
