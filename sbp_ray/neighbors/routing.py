"""The first steps of the search over files: which groups there are, and which documents each of them gets.

`partition_split` chooses the groups of a split from a sample; `route_shard` puts the documents of a shard into the
buckets of their groups and, as it has them in memory, compares them with the queries exactly; `merge_exact` merges what
the shards held of these. Each step reads what the one before it committed, and commits its own part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import bucket_writer
from sbp_ray.config import NeighborsConfig
from sbp_ray.doc_ids import ids_to_numpy, to_column
from sbp_ray.neighbors.exact_search import Exact, ExactSearch
from sbp_ray.neighbors.partition import (
    SAMPLES_PER_CELL,
    Partition,
    choose_margin,
    make_groups,
    measure_gaps,
    num_cells_of,
    one_group,
)
from sbp_ray.neighbors.quantize import Quantizer, encode, new_pool
from sbp_ray.neighbors.search_files import (
    ROUTED_COLUMNS,
    Scratch,
    read_arrays,
    read_vectors,
    routed_schema,
    sample_vectors,
    vector_length,
    write_arrays,
)
from sbp_ray.neighbors.search_plan import (
    border_recall,
    num_calibration_documents,
    num_control_queries,
    num_groups,
    threads_of,
)
from sbp_ray.shards import Stats, shard_name
from sbp_ray.threads import read_ahead

# N = documents, D = vector length, G = groups, Q = queries

_CALIBRATION_QUERIES = 2000
"""Documents whose neighbours choose the margin."""


def partition_split(cfg: NeighborsConfig, embeddings: Artifact, out: Artifact, item: dict[str, Any]) -> Stats:
    """Choose the groups of one split, and how far into others their documents are copied."""
    split, attempt = item["split"], item["attempt"]
    shards = [(shard_name(split, shard), num) for shard, num in enumerate(item["shard_rows"]) if num]
    dim = vector_length(embeddings, shard_name(split, 0))
    made = _choose_groups(cfg, embeddings, shards, dim, attempt) if shards else one_group(Quantizer(1.0), dim)
    write_arrays(out, Scratch(split, attempt).partition, made)
    return {}


def _choose_groups(
    cfg: NeighborsConfig, embeddings: Artifact, shards: list[tuple[str, int]], dim: int, attempt: int
) -> Partition:
    num_documents = sum(num for _, num in shards)
    wanted = num_groups(cfg, num_documents, dim)
    num_queries = cfg.recall_queries + num_control_queries(wanted)
    num_held_out = num_queries + (num_calibration_documents(cfg, num_documents) if wanted > 1 else 0)
    held_out_ND, ids = sample_vectors(embeddings, shards[::-1], num_held_out, cfg.seed + 1)
    query_QD, query_id_Q = held_out_ND[:num_queries], ids[:num_queries]
    quantizer = Quantizer(float(np.abs(held_out_ND).max()))
    if wanted == 1:
        return one_group(quantizer, dim)._replace(query_QD=query_QD, query_id_Q=query_id_Q)
    held_out_ND = held_out_ND[num_queries:]  # the margin is not chosen on the queries that judge it
    num_sample = min(SAMPLES_PER_CELL * num_cells_of(wanted), num_documents // 2)
    sample_ND, _ = sample_vectors(embeddings, shards, num_sample, cfg.seed)
    k = max(1, round(cfg.num_neighbors * len(held_out_ND) / num_documents))
    share = border_recall(cfg, attempt)
    with new_pool(threads_of(cfg.resources)) as pool:
        made = make_groups(quantizer.coarse(encode(sample_ND)), quantizer, wanted, cfg.seed, pool)
        coarse_ND = quantizer.coarse(encode(held_out_ND))
        margin = choose_margin(made, held_out_ND, coarse_ND, _CALIBRATION_QUERIES, k, share, pool)
    return made._replace(margin=margin, query_QD=query_QD, query_id_Q=query_id_Q)


def route_shard(cfg: NeighborsConfig, embeddings: Artifact, out: Artifact, item: dict[str, Any]) -> Stats:
    """Put the documents of one shard into the buckets of the groups in which they are searched."""
    split, shard, dim = item["split"], item["shard"], item["dim"]
    files = Scratch(split, item["attempt"])
    made = Partition(**read_arrays(out, files.partition))
    num_documents, num_G = 0, np.zeros(made.num_groups, np.int64)
    schema, columns = routed_schema(dim), ROUTED_COLUMNS
    with (
        new_pool(threads_of(cfg.resources)) as pool,
        bucket_writer(out, files.routed(shard), schema, compression=None) as writer,
    ):
        exact = ExactSearch(made.query_QD, made.query_id_Q, cfg.num_neighbors, made.quantizer, pool)
        for part in read_ahead(read_vectors(embeddings, shard_name(split, shard), columns, dim)):
            encoded_ND = encode(part.unit_ND)
            coarse_ND = made.quantizer.coarse(encoded_ND)
            exact.show(part.unit_ND, coarse_ND, ids_to_numpy(part.table.column("doc_id")))
            gap_NG = measure_gaps(made, coarse_ND, pool)
            document_V, group_V = np.nonzero(gap_NG <= made.margin)
            row_N = (shard << 32) + num_documents + np.arange(len(coarse_ND))
            table = _routed(part.table, row_N, gap_NG.argmin(axis=1), encoded_ND, schema)
            writer.write(table if made.num_groups == 1 else table.take(pa.array(document_V)), group_V)
            num_documents += len(coarse_ND)
            num_G += np.bincount(group_V, minlength=made.num_groups)
        write_arrays(out, files.exact_of(shard), exact.result())
        group_documents = {str(group): num for group, num in enumerate(num_G.tolist())}
        writer.finish({"documents": num_documents, "copies": int(num_G.sum()), "group_documents": group_documents})
    return {}


def _routed(
    table: pa.Table,
    row_N: NDArray[np.int64],
    home_N: NDArray[np.int64],
    encoded_ND: NDArray[np.int16],
    schema: pa.Schema,
) -> pa.Table:
    columns = {"row": pa.array(row_N), "home": pa.array(home_N.astype(np.int32)), "vector": to_column(encoded_ND)}
    return pa.table([columns[name] if name in columns else table.column(name) for name in schema.names], schema=schema)


def merge_exact(cfg: NeighborsConfig, _: Artifact, out: Artifact, item: dict[str, Any]) -> Stats:
    """Merge what the shards held of the queries' nearest documents, once for all who ask."""
    files = Scratch(item["split"], item["attempt"])
    exact = Exact.nothing(len(read_arrays(out, files.partition)["query_id_Q"]))
    for shard in range(item["num_shards"]):
        exact = exact.merge(Exact(**read_arrays(out, files.exact_of(shard))), cfg.num_neighbors)
    write_arrays(out, files.exact, exact)
    return {}
