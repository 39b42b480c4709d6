"""embeddings -> neighbors: the nearest documents of each document, within its split

    cells       a worker for each split: centroids from a sample, and which groups a document is searched in
    routed      worker of a shard of embeddings: each document into the bucket of every group of cells that it lives in
                or is near to; on the way, the nearest documents of the recall's queries, exactly
    exact       a worker for each split: these, merged
    found       worker of a group: all documents in its buckets are compared; the nearest of each go into the
                bucket of its shard
    train, validation
                worker of a shard: the nearest of what all groups found
    recall      the queries' lists beside the exact ones; too low, and all starts again with a wider margin

A worker holds a shard with all lists of its documents, or a group of `neighbors.worker_gib`; with fewer documents than
that a split is one group, in one worker.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import NeighborsConfig
from sbp_ray.errors import SbpError
from sbp_ray.neighbors.histogram import sorted_histogram
from sbp_ray.neighbors.recall import Exact, interval, recall_of
from sbp_ray.neighbors.search_files import (
    found_file,
    merged_exact_file,
    partition_file,
    read_partition,
    routed_file,
    vector_length,
)
from sbp_ray.neighbors.search_plan import (
    Plan,
    log_plan,
    needs_of_group,
    plan_search,
    refuse_hot_spot,
    refuse_what_cannot_fit,
    shards_merged_at_once,
    threads_of,
)
from sbp_ray.neighbors.steps import (
    ExactMerger,
    GroupSearcher,
    ListMerger,
    Partitioner,
    Router,
    read_exact,
    read_lists,
)
from sbp_ray.schema import SPLITS, Split
from sbp_ray.shards import SCRATCH, Stats, Step, add_stats, make_stats_once, read_stats, run_steps, shard_name

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_RECALL = f"{SCRATCH}/recall.json"


def find_neighbors(cfg: NeighborsConfig, *, embeddings: Artifact, out: Artifact) -> Stats:
    """Find the nearest documents of each document of both splits.

    Returns:
        Documents, mean cosine of the nearest neighbour, histograms of cosines and the measured recall, of each split.

    Raises:
        SbpError: a shard is missing, vectors of different lengths or without a direction, more than the machines can
            hold, or a recall below `neighbors.min_recall` however wide the search.
    """
    return make_stats_once(out, partial(_search_both, cfg, embeddings, out))


def _search_both(cfg: NeighborsConfig, embeddings: Artifact, out: Artifact) -> Stats:
    rows = {split: _shard_rows(embeddings, split) for split in SPLITS}
    dim = vector_length(embeddings, "train")
    plans = {split: plan_search(cfg, rows[split], dim) for split in SPLITS}
    plan = plans["train"]
    log_plan(plan)
    refuse_what_cannot_fit(plans.values(), out)
    recall: dict[str, Any] = out.read_json(_RECALL) if out.exists(_RECALL) else {}
    for attempt in range(_ATTEMPTS):
        splits = [split for split in SPLITS if not _is_enough(cfg, recall.get(split))]
        splits = [split for split in splits if recall.get(split, {}).get("attempt", -1) < attempt]
        wanted = {split: rows[split] for split in splits}
        run_steps(out, _steps(cfg, embeddings, out, wanted, attempt, plans), cfg.resources)
        if "train" in splits:
            _log_peak(out, attempt, plan)
        for split in splits:
            recall[split] = _measure_recall(cfg, out, split, rows[split], attempt)
        out.write_json(_RECALL, recall)
    for split in SPLITS:
        _refuse_low_recall(cfg, split, recall[split])
    by_split: dict[str, Stats] = {split: _split_stats(out, split, recall[split]) for split in SPLITS}
    return {
        "documents": sum(part["documents"] for part in by_split.values()),
        "drops": {},
        "plan": {"groups": plan.groups, "group_documents": plan.group_documents, "disk_gib": round(plan.disk_gib, 3)},
        **by_split,
    }


def _shard_rows(embeddings: Artifact, split: Split) -> list[int]:
    """Documents of each shard.

    Raises:
        SbpError: a shard is missing.
    """
    names = embeddings.files(split, ".parquet")
    for shard, name in enumerate(names):
        if name != shard_name(split, shard):
            raise _missing(embeddings, shard_name(split, shard))
    if not names:
        raise _missing(embeddings, shard_name(split, 0))
    rows = [embeddings.num_rows(name) for name in names]
    manifest = embeddings.manifest()
    if manifest and sum(rows) != manifest["stats"][split]["documents"]:
        raise _missing(embeddings, f"a shard of {split} after {names[-1]}")
    return rows


def _missing(embeddings: Artifact, what: str) -> SbpError:
    return SbpError(f"{embeddings.url}: {what} is missing: make it again with --redo embed")


# The steps

Items = list[dict[str, Any]]
Rows = dict[Split, list[int]]


def _steps(
    cfg: NeighborsConfig, embeddings: Artifact, out: Artifact, rows: Rows, attempt: int, plans: dict[Split, Plan]
) -> Iterator[Step]:
    """Of one attempt. How many groups there are is known once the first step is done."""

    def new_step(name: str, worker: type, arguments: tuple[Any, ...], items: Items, **settings: Any) -> Step:
        return Step(name, worker, (cfg, *arguments), items, resources=cfg.resources, **settings)

    each_split: Items = [{"split": split, "attempt": attempt, "num_shards": len(rows[split])} for split in rows]
    each_shard: Items = [{**item, "shard": shard} for item in each_split for shard in range(item["num_shards"])]
    yield new_step(
        "neighbors groups",
        Partitioner,
        (embeddings, out, rows),
        each_split,
        file_of=lambda item: partition_file(item["split"], attempt),
    )
    yield new_step(
        "neighbors routing",
        Router,
        (embeddings, out),
        each_shard,
        file_of=lambda item: routed_file(item["split"], attempt, item["shard"]),
        items_at_once=threads_of(cfg.resources),
    )
    yield new_step(
        "neighbors control", ExactMerger, (out,), each_split, file_of=lambda i: merged_exact_file(i["split"], attempt)
    )
    num_groups = {split: read_partition(out, split, attempt).num_groups for split in rows}
    yield new_step(
        "neighbors",
        GroupSearcher,
        (out,),
        _groups(cfg, out, each_split, rows, plans),
        file_of=lambda item: found_file(item["split"], attempt, item["group"]),
    )
    largest = max((max(shards, default=0) for shards in rows.values()), default=0)
    yield new_step(
        "neighbors merging",
        ListMerger,
        (embeddings, out),
        [{**item, "num_groups": num_groups[item["split"]]} for item in each_shard],
        file_of=lambda item: shard_name(item["split"], item["shard"]),
        outdated=_of_other_attempts(out, rows, attempt),
        items_at_once=shards_merged_at_once(cfg, largest, max(num_groups.values(), default=1)),
    )


def _groups(cfg: NeighborsConfig, out: Artifact, each_split: Items, rows: Rows, plans: dict[Split, Plan]) -> Items:
    """The items of the search, with what each group needs: routing has counted its documents."""
    items: Items = []
    for item in each_split:
        split = item["split"]
        dim = plans[split].dim
        routed = read_stats(out, [routed_file(split, item["attempt"], shard) for shard in range(len(rows[split]))])
        group_documents = list(add_stats(routed)["group_documents"].values())
        refuse_hot_spot(cfg, split, group_documents, dim)
        described = {**item, "num_documents": sum(rows[split]), "dim": dim}
        items += [
            {**described, "group": group, **needs_of_group(cfg, num, dim, is_remote=not out.is_local)}
            for group, num in enumerate(group_documents)
        ]
    return items


def _of_other_attempts(out: Artifact, rows: Rows, attempt: int) -> list[str]:
    """Merged shards of an earlier, narrower attempt."""
    names = [name for split in rows for name in out.files(split, ".parquet")]
    made_by = read_stats(out, names)
    return [name for name, stats in zip(names, made_by, strict=True) if stats["attempt"] != attempt]


def _log_peak(out: Artifact, attempt: int, plan: Plan) -> None:
    names = [found_file("train", attempt, group) for group in range(read_partition(out, "train", attempt).num_groups)]
    peak_gib = max(out.read_stats(name)["peak_gib"] for name in names)
    logger.info(f"neighbors | search took up to {peak_gib:.2f} GiB of a worker, {plan.worker_gib:.2f} planned")


# Recall


def _measure_recall(cfg: NeighborsConfig, out: Artifact, split: Split, rows: list[int], attempt: int) -> dict[str, Any]:
    made = read_partition(out, split, attempt)
    exact = read_exact(out, merged_exact_file(split, attempt))
    judging = made.query_id_Q[: cfg.recall_queries]  # the others told the search when to end
    cosines, ids = read_lists(out, split, judging, len(rows))
    num_documents = sum(rows)
    shares = recall_of(Exact(exact.cosine_QK[: len(judging)], exact.id_QK[: len(judging)]), cosines, ids)
    mean, low, high = interval(shares, num_documents) if len(shares) else (1.0, 1.0, 1.0)
    routed = add_stats(out.read_stats(routed_file(split, attempt, shard)) for shard in range(len(rows)))
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


def _is_enough(cfg: NeighborsConfig, recall: dict[str, Any] | None) -> bool:
    return recall is not None and recall["low"] >= cfg.min_recall


def _refuse_low_recall(cfg: NeighborsConfig, split: Split, recall: dict[str, Any]) -> None:
    if not _is_enough(cfg, recall):
        raise SbpError(
            f"{split}: recall@{recall['k']} is {recall['recall']} [{recall['low']}, {recall['high']}] after "
            f"{_ATTEMPTS} attempts, and neighbors.min_recall is {cfg.min_recall}: use --redo neighbors with a higher "
            f"neighbors.probes ({cfg.probes}), more neighbors.recall_queries ({cfg.recall_queries}) or a lower "
            "neighbors.min_recall"
        )


def _split_stats(out: Artifact, split: Split, recall: dict[str, Any]) -> Stats:
    total = add_stats(out.read_stats(name) for name in out.files(split, ".parquet"))
    if not total:
        return {"documents": 0, "documents_with_neighbors": 0, "neighbors": 0, "recall": recall}
    total.pop("attempt")
    num_with, cosine_sum = total["documents_with_neighbors"], total.pop("nearest_cosine_sum")
    total["mean_nearest_cosine"] = round(cosine_sum / num_with, 4) if num_with else None
    for key in ("histogram_nearest", "histogram_all"):
        total[key] = sorted_histogram(total[key])
    return {**total, "recall": recall}
