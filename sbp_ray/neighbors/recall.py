"""How many of the true neighbours a graph holds, measured on a sample of documents that were searched exactly."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import NeighborsConfig
from sbp_ray.doc_ids import ids_to_numpy, to_column
from sbp_ray.neighbors.exact_search import Exact
from sbp_ray.neighbors.partition import Partition
from sbp_ray.neighbors.search_files import Scratch, read_arrays
from sbp_ray.schema import Split
from sbp_ray.shards import add_stats, fetch_rows, read_stats

# Q = queries, K = neighbours

logger = logging.getLogger(__name__)

_TIE = 1e-5
"""Error of the 16-bit vectors: a neighbour as near as the last true one, but for that, is as good."""


def measure_recall(
    cfg: NeighborsConfig, out: Artifact, split: Split, shard_rows: list[int], attempt: int
) -> dict[str, Any]:
    """The certificate of a split's graph, for the manifest; a line of the log says it too."""
    files = Scratch(split, attempt)
    made = Partition(**read_arrays(out, files.partition))
    exact = Exact(**read_arrays(out, files.exact))
    judging = made.query_id_Q[: cfg.recall_queries]  # the others told the search when to end
    lists = fetch_rows(out, split, to_column(judging).to_pylist(), ["neighbor_ids", "cosines"])
    ends = np.cumsum(pc.list_value_length(lists.column("cosines")).to_numpy())[:-1]
    cosines = np.split(pc.list_flatten(lists.column("cosines")).to_numpy(), ends)[: len(judging)]
    ids = np.split(ids_to_numpy(pc.list_flatten(lists.column("neighbor_ids"))), ends)[: len(judging)]
    num_documents = sum(shard_rows)
    shares = recall_of(Exact(exact.cosine_QK[: len(judging)], exact.id_QK[: len(judging)]), cosines, ids)
    mean, low, high = interval(shares, num_documents) if len(shares) else (1.0, 1.0, 1.0)
    routed = add_stats(read_stats(out, map(files.routed, range(len(shard_rows)))))
    measured = {
        "k": cfg.num_neighbors,
        "queries": len(shares),
        "recall": round(mean, 4),
        "low": math.floor(low * 1e4) / 1e4,  # it is judged as it is shown
        "high": round(high, 4),
        "min_recall": cfg.min_recall,
        "attempt": attempt,
        "groups": made.num_groups,
        "copies": round(routed["copies"] / max(1, num_documents), 2),
    }
    logger.info(
        f"neighbors | {split}: recall@{cfg.num_neighbors} {mean:.4f} [{low:.4f}, {high:.4f}] of {len(shares):,} "
        f"queries | {measured['groups']} groups, {measured['copies']} copies of a document"
    )
    return measured


def recall_of(exact: Exact, found_cosines: list[NDArray[np.float32]], found_ids: list[NDArray]) -> NDArray[np.float64]:
    """The share of each query's true neighbours that its list holds; 1 where there are none.

    A document that is as near as the last true neighbour counts: of equally near ones, any will do.
    """
    shares = []
    for cosine_K, id_K, found, ids in zip(exact.cosine_QK, exact.id_QK, found_cosines, found_ids, strict=True):
        is_there_K = cosine_K > -np.inf
        if not is_there_K.any():
            shares.append(1.0)
            continue
        last = cosine_K[is_there_K].min()
        is_hit = np.isin(ids, id_K[is_there_K]) | (found >= last - _TIE)
        shares.append(min(1.0, is_hit.sum() / is_there_K.sum()))
    return np.array(shares)


def interval(shares: NDArray[np.float64], num_documents: int) -> tuple[float, float, float]:
    """Mean, and the limits of its 95 % confidence interval over queries drawn from `num_documents`.

    Normal, with the correction for a sample that is a large part of the whole; where all queries agree that says
    nothing, and the lower limit follows from the rule of three.
    """
    n, mean = len(shares), float(shares.mean())
    if n >= num_documents:
        return mean, mean, mean
    half = 1.96 * float(shares.std(ddof=1)) / math.sqrt(n) * math.sqrt(1 - n / num_documents) if n > 1 else 1.0
    if half == 0:
        return mean, max(0.0, mean - 3 / n), min(1.0, mean + 3 / n)
    return mean, max(0.0, mean - half), min(1.0, mean + half)
