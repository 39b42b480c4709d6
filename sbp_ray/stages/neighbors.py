"""embeddings -> neighbors: the nearest documents of each document, within its split

Each worker takes the vectors of one shard and streams the shards of the database past them, so it holds two shards
whatever the size of the corpus.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import NeighborsConfig
from sbp_ray.errors import SbpError
from sbp_ray.neighbors.histogram import cosine_histogram, sorted_histogram
from sbp_ray.neighbors.search import NO_ROW, TopK, empty_top_k, merge_top_k, search_block, without_row
from sbp_ray.schema import NEIGHBORS, SPLITS, Split
from sbp_ray.shards import Stats, add_stats, map_shards

# Q = queries, B = vectors of a database shard, D = vector length, K = neighbours

_SHARD_BITS = 32  # a document's row number is its shard's number, shifted, plus its place there


def find_neighbors(cfg: NeighborsConfig, *, embeddings: Artifact, out: Artifact) -> Stats:
    """Find the nearest documents of each document of both splits.

    Returns:
        Documents, mean cosine of the nearest neighbour, and histograms of cosines, of each split.

    Raises:
        SbpError: vectors of different lengths.
    """
    names = {split: embeddings.files(split, ".parquet") for split in SPLITS}
    todo = [
        {"split": split, "name": name, "shard": shard}
        for split in SPLITS
        for shard, name in enumerate(names[split])
        if not out.exists(name)
    ]
    num_done = sum(map(len, names.values())) - len(todo)
    arguments = (cfg, embeddings, out, names)
    map_shards("neighbors", ShardSearcher, arguments, todo, num_done=num_done, resources=cfg.resources)
    by_split: dict[str, Stats] = {split: _split_stats(out, names[split]) for split in SPLITS}
    return {"documents": sum(part["documents"] for part in by_split.values()), "drops": {}, **by_split}


def _split_stats(out: Artifact, names: list[str]) -> Stats:
    total = add_stats(out.read_stats(name) for name in names)
    num_with, cosine_sum = total["documents_with_neighbors"], total.pop("nearest_cosine_sum")
    total["mean_nearest_cosine"] = round(cosine_sum / num_with, 4) if num_with else None
    for key in ("histogram_nearest", "histogram_all"):
        total[key] = sorted_histogram(total[key])
    return total


class ShardSearcher:
    """Finds the neighbours of one shard's documents."""

    def __init__(
        self, cfg: NeighborsConfig, embeddings: Artifact, out: Artifact, names: dict[Split, list[str]]
    ) -> None:
        self._k, self._embeddings, self._out, self._names = cfg.num_neighbors, embeddings, out, names
        if cfg.resources.num_threads:
            import faiss

            faiss.omp_set_num_threads(cfg.resources.num_threads)

    def __call__(self, item: dict[str, Any]) -> Stats:
        database = self._names[item["split"]]
        query_QD = self._read_vectors(item["name"])
        own_row_Q = (item["shard"] << _SHARD_BITS) + np.arange(len(query_QD), dtype=np.int64)
        found = empty_top_k(len(query_QD))
        for shard, name in enumerate(database):
            block_BD = self._read_vectors(name)
            if query_QD.size and block_BD.size:
                self._require_same_length(item["name"], query_QD, name, block_BD)
                part = search_block(query_QD, block_BD, self._k + 1, shard << _SHARD_BITS)
                found = merge_top_k(found, part, self._k + 1)
        found = without_row(found, own_row_Q, self._k)
        table = self._to_table(item["name"], found, database)
        stats = _search_stats(found)
        self._out.write_table(item["name"], table, stats=stats)
        return {"documents": stats["documents"]}

    def _read_vectors(self, name: str) -> NDArray[np.float32]:
        """Unit vectors, float32 [N, D]; rounding to float16 has left them a hair longer or shorter."""
        column = self._embeddings.read_table(name, ["vector"]).column("vector").combine_chunks()
        vectors_ND = column.flatten().to_numpy().astype(np.float32).reshape(len(column), column.type.list_size)
        return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)

    def _require_same_length(
        self, query: str, query_QD: NDArray[np.float32], block: str, block_BD: NDArray[np.float32]
    ) -> None:
        if query_QD.shape[1] != block_BD.shape[1]:
            raise SbpError(
                f"{self._embeddings.url}: {query} holds {query_QD.shape[1]}-d vectors and {block} "
                f"{block_BD.shape[1]}-d ones: make them again with --redo embed"
            )

    def _to_table(self, own: str, found: TopK, database: list[str]) -> pa.Table:
        """Rows of `NEIGHBORS`: row numbers become ids, one shard of ids at a time."""
        is_there_QK = found.row_QK != NO_ROW
        rows_M = found.row_QK[is_there_QK]  # M = neighbours of all lists, one list after the other
        ids_M = np.empty(len(rows_M), "S32")
        for shard, name in enumerate(database):
            chosen_M = rows_M >> _SHARD_BITS == shard
            if chosen_M.any():
                ids = np.array(self._read_ids(name).to_numpy(zero_copy_only=False), "S32")
                ids_M[chosen_M] = ids[rows_M[chosen_M] & (2**_SHARD_BITS - 1)]
        offsets = np.concatenate([[0], np.cumsum(is_there_QK.sum(axis=1))]).astype(np.int32)
        neighbor_ids = pa.ListArray.from_arrays(offsets, pa.array(ids_M.astype(str), pa.string()))
        cosines = pa.ListArray.from_arrays(offsets, pa.array(found.cosine_QK[is_there_QK], pa.float32()))
        return pa.table([self._read_ids(own), neighbor_ids, cosines], schema=NEIGHBORS)

    def _read_ids(self, name: str) -> pa.Array:
        return self._embeddings.read_table(name, ["doc_id"]).column("doc_id").combine_chunks()


def _search_stats(found: TopK) -> Stats:
    is_there_QK = found.row_QK != NO_ROW
    nearest = found.cosine_QK[:, 0][is_there_QK[:, 0]] if found.row_QK.shape[1] else np.empty(0, np.float32)
    return {
        "documents": len(found.row_QK),
        "documents_with_neighbors": len(nearest),
        "neighbors": int(is_there_QK.sum()),
        "nearest_cosine_sum": float(nearest.sum(dtype=np.float64)),
        "histogram_nearest": cosine_histogram(nearest),
        "histogram_all": cosine_histogram(found.cosine_QK[is_there_QK]),
    }
