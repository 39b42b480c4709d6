"""The steps of the search over files: each worker reads what the one before it committed, and commits its own part."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import bucket_writer, read_bucket
from sbp_ray.config import NeighborsConfig
from sbp_ray.doc_ids import bytes_to_ids, digits_to_bytes, hex_digits
from sbp_ray.errors import SbpError
from sbp_ray.neighbors import codebook as cells
from sbp_ray.neighbors.codebook import Codebook
from sbp_ray.neighbors.group import search_group
from sbp_ray.neighbors.histogram import cosine_histogram
from sbp_ray.neighbors.kernels import NO_ROW, equal_bytes
from sbp_ray.neighbors.plan import EXACT_BELOW, ROUTING_ROWS, num_groups
from sbp_ray.neighbors.quantize import encode
from sbp_ray.neighbors.recall import ID, Exact, merged, nearest, no_neighbors
from sbp_ray.schema import NEIGHBORS, SIGNATURE_BYTES, Split, shard_of
from sbp_ray.shards import Stats, shard_name
from sbp_ray.text.minhash import estimate_containment, jaccard_of

# N = documents, D = vector length, K = neighbours, M = neighbours of all lists, one list after the other

SCRATCH = "scratch"
_CALIBRATION_QUERIES = 3000
_CALIBRATION_DOCUMENTS = 12_000
_FAIR_SHARE = 0.8  # of the misses that `min_recall` allows: the first attempt is calibrated to these


def _folder(split: Split, attempt: int) -> str:
    return f"{SCRATCH}/{split}-{attempt}"


def cells_file(split: Split, attempt: int) -> str:
    """Where the `Codebook` lies."""
    return f"{_folder(split, attempt)}/cells.npz"


def routed_file(split: Split, attempt: int, shard: int) -> str:
    """Where the documents of a shard lie, in a bucket for each group."""
    return f"{_folder(split, attempt)}/routed-{shard:05d}.arrow"


def _exact_file(split: Split, attempt: int, shard: int) -> str:
    return f"{_folder(split, attempt)}/exact-{shard:05d}.npz"


def found_file(split: Split, attempt: int, group: int) -> str:
    """Where the lists that a group found lie, in a bucket for each shard."""
    return f"{_folder(split, attempt)}/found-{group:05d}.arrow"


def read_cells(out: Artifact, split: Split, attempt: int) -> Codebook:
    """What `CellMaker` made."""
    return Codebook.from_bytes(out.read_bytes(cells_file(split, attempt)))


# Columns of fixed width, one value after the other


def _column(values_ND: NDArray) -> pa.Array:
    """[N, …] as binary of the width of a row."""
    values_ND = np.ascontiguousarray(values_ND)
    width = values_ND.dtype.itemsize * int(np.prod(values_ND.shape[1:]))
    return pa.Array.from_buffers(pa.binary(width), len(values_ND), [None, pa.py_buffer(values_ND)])


def _values(table: pa.Table, name: str, dtype: Any, width: int) -> NDArray:
    """The inverse of `_column`: [N, width]."""
    chunks = [
        np.frombuffer(chunk.buffers()[1], dtype).reshape(-1, width)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in table.column(name).chunks
        if len(chunk)
    ]
    return np.concatenate(chunks) if chunks else np.empty((0, width), dtype)


def _raw_ids(ids: pa.Array) -> NDArray[np.bytes_]:
    return digits_to_bytes(hex_digits(ids)).view(ID)[:, 0]


def _use_threads(cfg: NeighborsConfig) -> None:
    import faiss

    faiss.omp_set_num_threads(cfg.resources.num_threads or 1)
    torch.set_num_threads(cfg.resources.num_threads or 1)


# Vectors


def vector_length(embeddings: Artifact, split: Split) -> int:
    """As the split's first shard declares it."""
    with embeddings.fs.open_input_file(embeddings.path(shard_name(split, 0))) as file:
        return pq.read_schema(file).field("vector").type.list_size


class _Vectors(NamedTuple):
    """Documents of a shard."""

    doc_ids: pa.Array
    unit_ND: NDArray[np.float32]
    table: pa.Table


def _read_vectors(embeddings: Artifact, name: str, columns: list[str], dim: int = 0) -> Iterator[_Vectors]:
    """A shard, `ROUTING_ROWS` documents at a time.

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
        for batch in file.iter_batches(ROUTING_ROWS, columns=["doc_id", "vector", *columns], use_threads=False):
            vectors_ND = batch.column("vector").flatten().to_numpy().reshape(-1, width).astype(np.float32)
            length_N = np.linalg.norm(vectors_ND, axis=1)
            bad = np.flatnonzero(~(np.isfinite(length_N) & (length_N > 0)))
            if len(bad):
                raise SbpError(
                    f"{embeddings.url}: {name}: the vector of document {batch.column('doc_id')[int(bad[0])]} is zero "
                    "or not finite: make it again with --redo embed"
                )
            yield _Vectors(batch.column("doc_id"), vectors_ND / length_N[:, None], pa.Table.from_batches([batch]))


def _sample(
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
        for part in _read_vectors(embeddings, name, [], vectors[0].shape[1] if vectors else 0):
            chosen = rng.random(len(part.doc_ids)) < num / num_there
            vectors.append(part.unit_ND[chosen])
            ids.append(_raw_ids(part.doc_ids)[chosen])
    order = rng.permutation(sum(map(len, ids)))
    return np.concatenate(vectors)[order], np.concatenate(ids)[order]


# Step 1


class CellMaker:
    """Chooses the cells of one split, how far its documents visit, and which cells are searched together."""

    def __init__(self, cfg: NeighborsConfig, embeddings: Artifact, out: Artifact, rows: dict[Split, list[int]]) -> None:
        self._cfg, self._embeddings, self._out, self._rows = cfg, embeddings, out, rows
        _use_threads(cfg)

    def __call__(self, item: dict[str, Any]) -> Stats:
        cfg, split, attempt = self._cfg, item["split"], item["attempt"]
        rows = self._rows[split]
        shards = [(shard_name(split, shard), num) for shard, num in enumerate(rows) if num]
        num_documents = sum(rows)
        if num_documents == 0:
            empty = np.zeros((1, vector_length(self._embeddings, split)), np.int16)
            made = Codebook(1.0, empty, empty, np.array([0, 1]))
        elif num_documents < EXACT_BELOW:
            sample_ND, ids = _sample(self._embeddings, shards, num_documents, cfg.seed)
            made = cells.train(sample_ND, 1, cfg.seed)
            made = made._replace(query_QD=sample_ND[: cfg.recall_queries], query_id_Q=ids[: cfg.recall_queries])
        else:
            made = self._many(shards, num_documents, attempt)
        self._out.write_bytes(cells_file(split, attempt), made.to_bytes())
        return {}

    def _many(self, shards: list[tuple[str, int]], num_documents: int, attempt: int) -> Codebook:
        cfg = self._cfg
        num_cells = num_documents // cfg.cell_documents
        num_held_out = min(_CALIBRATION_DOCUMENTS, num_documents // 4)
        num_held_out += cfg.recall_queries
        held_out_ND, held_out_ids = _sample(self._embeddings, shards[::-1], num_held_out, cfg.seed + 1)
        query_QD, query_id_Q = held_out_ND[: cfg.recall_queries], held_out_ids[: cfg.recall_queries]
        held_out_ND = held_out_ND[cfg.recall_queries :]  # the margin is not chosen on the queries that judge it
        num_sample = min(cells.SAMPLES_PER_CELL * num_cells, num_documents // 2)
        sample_ND, _ = _sample(self._embeddings, shards, num_sample, cfg.seed)
        made = cells.train(sample_ND, num_cells, cfg.seed)
        k = max(1, round(cfg.num_neighbors * len(held_out_ND) / num_documents))
        misses = _FAIR_SHARE * (1 - cfg.min_recall) / 2**attempt
        margin = cells.calibrate(made, held_out_ND, _CALIBRATION_QUERIES, k, cfg.max_visits, 1 - misses)
        margin = min(margin, cells.WHOLE)
        groups = num_groups(cfg, num_documents, sample_ND.shape[1])
        assigned = cells.assign(made, encode(held_out_ND), 0, 0.0)
        return made._replace(
            margin=margin,
            group_C=cells.in_groups(assigned.home_N, len(made.cell_CD), groups),
            query_QD=query_QD,
            query_id_Q=query_id_Q,
        )


# Step 2


def _routed_schema(dim: int, max_visits: int) -> pa.Schema:
    return pa.schema(
        [
            ("row", pa.int64()),  # shard << 32 | row in the shard
            ("doc_id", pa.binary(16)),
            ("home", pa.int32()),
            ("visits", pa.binary(4 * max_visits)),  # int32 each, -1 after the last
            ("vector", pa.binary(2 * dim)),  # int16 each
            ("signature", pa.binary(SIGNATURE_BYTES)),
            ("num_shingles", pa.int32()),
            ("group_hash", pa.int64()),
        ]
    )


class Router:
    """Puts the documents of one shard into the buckets of the groups in which they are searched."""

    def __init__(self, cfg: NeighborsConfig, embeddings: Artifact, out: Artifact) -> None:
        self._cfg, self._embeddings, self._out = cfg, embeddings, out
        _use_threads(cfg)

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard, attempt = item["split"], item["shard"], item["attempt"]
        made = read_cells(self._out, split, attempt)
        schema = _routed_schema(made.cell_CD.shape[1], self._cfg.max_visits)
        exact = no_neighbors(len(made.query_id_Q))
        stats = {"documents": 0, "visits": 0, "copies": 0}
        name = routed_file(split, attempt, shard)
        columns = ["signature", "num_shingles", "group_hash"]
        with bucket_writer(self._out, name, schema, compression=None) as writer:
            for part in _read_vectors(self._embeddings, shard_name(split, shard), columns, made.cell_CD.shape[1]):
                ids = _raw_ids(part.doc_ids)
                exact = nearest(exact, made.query_QD, made.query_id_Q, part.unit_ND, ids, self._cfg.num_neighbors)
                rows_N = (shard << 32) + stats["documents"] + np.arange(len(ids))
                table, document_V, group_V = self._routed(made, part, ids, rows_N, schema)
                writer.write(table.take(pa.array(document_V)), group_V)
                stats["documents"] += len(ids)
                stats["visits"] += int((_values(table, "visits", np.int32, self._cfg.max_visits) != NO_ROW).sum())
                stats["copies"] += len(document_V)
            self._write_exact(exact, _exact_file(split, attempt, shard))
            writer.finish(stats)
        return {}

    def _routed(
        self, made: Codebook, part: _Vectors, ids: NDArray, rows_N: NDArray[np.int64], schema: pa.Schema
    ) -> tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]:
        """Rows, and which of them go into which group."""
        encoded_ND = encode(part.unit_ND)
        found = cells.assign(made, encoded_ND, self._cfg.max_visits, made.margin)
        visits_NP = np.full((len(ids), self._cfg.max_visits), NO_ROW, np.int32)
        visits_NP[:, : found.visits_NP.shape[1]] = found.visits_NP
        columns = {
            "row": pa.array(rows_N),
            "doc_id": _column(ids.view(np.uint8).reshape(-1, 16)),
            "home": pa.array(found.home_N),
            "visits": _column(visits_NP),
            "vector": _column(encoded_ND),
        }
        rest = [part.table.column(name) for name in schema.names[len(columns) :]]
        cells_NP = np.concatenate([found.home_N[:, None], found.visits_NP], axis=1)
        document_V, place_V = np.nonzero(cells_NP != NO_ROW)
        pairs = np.unique(document_V * made.num_groups + made.group_C[cells_NP[document_V, place_V]])
        return pa.table([*columns.values(), *rest], schema=schema), pairs // made.num_groups, pairs % made.num_groups

    def _write_exact(self, exact: Exact, name: str) -> None:
        stream = io.BytesIO()
        np.savez(stream, **exact._asdict())
        self._out.write_bytes(name, stream.getvalue())


def read_exact(out: Artifact, split: Split, attempt: int, shards: Iterable[int], num_queries: int, k: int) -> Exact:
    """The nearest documents of the queries, of all shards."""
    exact = no_neighbors(num_queries)
    for shard in shards:
        with np.load(io.BytesIO(out.read_bytes(_exact_file(split, attempt, shard)))) as arrays:
            exact = merged(exact, Exact(**arrays), k)
    return exact


# Step 3


def _found_schema(k: int) -> pa.Schema:
    numbers = [(name, pa.binary(4 * k)) for name in ("cosines", "jaccards", "containments")]
    return pa.schema([("row", pa.int64()), ("ids", pa.binary(16 * k)), *numbers, ("same_group", pa.binary(k))])


class GroupSearcher:
    """Compares the documents of one group, and sorts what it found by the documents' shards."""

    def __init__(self, cfg: NeighborsConfig, out: Artifact) -> None:
        self._cfg, self._out = cfg, out
        _use_threads(cfg)

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, group, attempt = item["split"], item["group"], item["attempt"]
        k = self._cfg.num_neighbors
        made = read_cells(self._out, split, attempt)
        dim = made.cell_CD.shape[1]
        schema = _routed_schema(dim, self._cfg.max_visits)
        files = [routed_file(split, attempt, shard) for shard in range(item["num_shards"])]
        table = read_bucket(self._out, files, group, schema)
        order = np.argsort(table.column("home").to_numpy(), kind="stable")
        home_N = table.column("home").to_numpy()[order]
        owned = np.flatnonzero(made.group_C == group).astype(np.int32)
        found = search_group(
            _values(table, "vector", np.int16, dim)[order],
            home_N,
            _values(table, "visits", np.int32, self._cfg.max_visits)[order],
            owned,
            k,
            made.quantizer,
            device="cuda" if self._cfg.resources.num_gpus else "cpu",
        )
        with bucket_writer(self._out, found_file(split, attempt, group), _found_schema(k), compression=None) as writer:
            for start in range(0, len(order), ROUTING_ROWS):
                rows = np.arange(start, min(start + ROUTING_ROWS, len(order)))
                writer.write(*_described(table, order, found.cosine_NK, found.row_NK, rows, k))
            writer.finish({})
        return {"documents": int(np.isin(home_N, owned).sum())}


def _described(
    table: pa.Table,
    order: NDArray[np.int64],
    cosine_NK: NDArray[np.float32],
    row_NK: NDArray[np.int32],
    rows: NDArray[np.int64],
    k: int,
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Rows of `_found_schema` for `rows` of the sorted group, and their shards."""
    signature_NH = _values(table, "signature", np.uint8, SIGNATURE_BYTES)
    shingles_N, group_N = (table.column(name).to_numpy() for name in ("num_shingles", "group_hash"))
    ids_N = _values(table, "doc_id", ID, 1)[:, 0]
    own_R = order[rows]
    other_RK = np.where(row_NK[rows] == NO_ROW, NO_ROW, order[row_NK[rows]]).astype(np.int32)
    jaccard_RK = jaccard_of(equal_bytes(signature_NH, own_R, other_RK))
    num_a_RK = np.broadcast_to(shingles_N[own_R][:, None], other_RK.shape)
    row_R = table.column("row").to_numpy()[own_R]
    columns = [
        pa.array(row_R),
        _column(ids_N[other_RK]),
        _column(cosine_NK[rows]),
        _column(jaccard_RK),
        _column(estimate_containment(jaccard_RK, num_a_RK, shingles_N[other_RK])),
        _column(group_N[own_R][:, None] == group_N[other_RK]),
    ]
    return pa.table(columns, schema=_found_schema(k)), row_R >> 32


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
        num_groups = read_cells(self._out, split, attempt).num_groups
        files = [found_file(split, attempt, group) for group in range(num_groups)]
        table = read_bucket(self._out, files, shard, _found_schema(k))
        cosine_M = _values(table, "cosines", np.float32, k).ravel()
        row_M = np.repeat(table.column("row").to_numpy() & 0xFFFFFFFF, k)
        ids_M = _values(table, "ids", ID, k).ravel()
        kept_M = _k_nearest(row_M, cosine_M, ids_M, k)
        num_N = np.bincount(row_M[kept_M], minlength=len(doc_ids))
        offsets = pa.array(np.concatenate([[0], np.cumsum(num_N)]).astype(np.int32))
        values = [
            bytes_to_ids(ids_M[kept_M].view(np.uint8).reshape(-1, 16)),
            pa.array(cosine_M[kept_M]),
            pa.array(_values(table, "jaccards", np.float32, k).ravel()[kept_M]),
            pa.array(_values(table, "containments", np.float32, k).ravel()[kept_M]),
            pa.array(_values(table, "same_group", np.bool_, k).ravel()[kept_M]),
        ]
        lists = [pa.ListArray.from_arrays(offsets, column) for column in values]
        nearest_cosine = cosine_M[kept_M][offsets.to_numpy()[:-1][num_N > 0]]
        stats = _list_stats(len(doc_ids), nearest_cosine, cosine_M[kept_M])
        self._out.write_table(name, pa.table([doc_ids, *lists], schema=NEIGHBORS), stats={**stats, "attempt": attempt})
        return {}


def _k_nearest(row_M: NDArray[np.int64], cosine_M: NDArray[np.float32], ids_M: NDArray, k: int) -> NDArray[np.int64]:
    """Places of the `k` nearest of each row, row by row, nearest first; of equally near ones the lower id."""
    there_M = np.flatnonzero(cosine_M > -np.inf)
    tie_M = np.ascontiguousarray(ids_M[there_M]).view(">u8").reshape(-1, 2)[:, 0]
    there_M = there_M[np.lexsort((tie_M, -cosine_M[there_M], row_M[there_M]))]
    rows = row_M[there_M]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    rank = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    return there_M[rank < k]


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
    text = bytes_to_ids(np.ascontiguousarray(query_id_Q).view(np.uint8).reshape(-1, 16)).to_pylist()
    lists: dict[str, tuple[NDArray, NDArray]] = {}
    for shard in sorted({shard_of(doc_id, num_shards) for doc_id in text}):
        table = out.read_table(shard_name(split, shard), ["doc_id", "neighbor_ids", "cosines"])
        table = table.filter(pc.is_in(table.column("doc_id"), pa.array(text)))
        for doc_id, ids, cosines in zip(*table.columns, strict=True):
            lists[doc_id.as_py()] = cosines.values.to_numpy(), _raw_ids(ids.values)
    return [lists[doc_id][0] for doc_id in text], [lists[doc_id][1] for doc_id in text]
