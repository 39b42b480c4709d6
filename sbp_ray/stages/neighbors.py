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
that a split is one group, in one worker. Up to `SMALL` documents are the driver's own work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from sbp_ray.artifacts import Artifact
from sbp_ray.config import NeighborsConfig
from sbp_ray.errors import SbpError
from sbp_ray.neighbors.histogram import sorted_histogram
from sbp_ray.neighbors.listing import merge_found, search_documents
from sbp_ray.neighbors.recall import measure_recall
from sbp_ray.neighbors.routing import merge_exact, partition_split, route_shard
from sbp_ray.neighbors.search_files import Scratch, vector_length
from sbp_ray.neighbors.search_limits import needs_of_group, refuse_hot_spot, refuse_what_cannot_fit
from sbp_ray.neighbors.search_plan import Plan, log_plan, plan_search, shards_merged_at_once, threads_of
from sbp_ray.schema import Split
from sbp_ray.shards import Stats, add_stats, list_shards, read_stats, shard_name, splits_of
from sbp_ray.steps import SCRATCH, Step, make_stats_once, run_steps, working_here
from sbp_ray.threads import map_in_threads

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
"""Searches, each wider than the one before it, after which a recall that is still too low is an error."""
SMALL = 50_000
"""Documents up to which the driver searches by itself: tasks, and the libraries that they load, would take longer."""
_RECALL = f"{SCRATCH}/recall.json"

Items = list[dict[str, Any]]
Rows = dict[Split, list[int]]


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
    names = {split: list_shards(embeddings, split) for split in splits_of(embeddings)}
    rows: Rows = {split: list(map_in_threads(embeddings.num_rows, names[split])) for split in names}
    dim = vector_length(embeddings, names["train"][0])
    plans = {split: plan_search(cfg, rows[split], dim) for split in names}
    plan = plans["train"]
    log_plan(plan)
    refuse_what_cannot_fit(plans.values(), out)
    recall: dict[str, Any] = out.read_json(_RECALL) if out.exists(_RECALL) else {}
    is_small = sum(map(sum, rows.values())) <= SMALL and not cfg.resources.num_gpus
    for attempt in range(_ATTEMPTS):
        splits = [split for split in rows if not _is_enough(cfg, recall.get(split))]
        splits = [split for split in splits if recall.get(split, {}).get("attempt", -1) < attempt]
        steps = _steps(cfg, embeddings, out, {split: rows[split] for split in splits}, attempt, plan)
        with _working_in_driver() if is_small else nullcontext():
            run_steps(out, steps, cfg.resources)
        for split in splits:
            recall[split] = measure_recall(cfg, out, split, rows[split], attempt)
        if "train" in splits:
            _log_peak(out, attempt, recall["train"]["groups"], plan)
        out.write_json(_RECALL, recall)
    for split in rows:
        _refuse_low_recall(cfg, split, recall[split])
    by_split: dict[str, Stats] = {split: _split_stats(out, names[split], recall[split]) for split in names}
    return {
        "shards": len(names["train"]),
        "documents": sum(part["documents"] for part in by_split.values()),
        "drops": {},
        "plan": {"groups": plan.groups, "group_documents": plan.group_documents, "disk_gib": round(plan.disk_gib, 3)},
        **by_split,
    }


@contextmanager
def _working_in_driver() -> Iterator[None]:
    """Steps within the block are the driver's, whose torch keeps the threads that it has."""
    num_threads = torch.get_num_threads()
    try:
        with working_here():
            yield
    finally:
        torch.set_num_threads(num_threads)


def _steps(
    cfg: NeighborsConfig, embeddings: Artifact, out: Artifact, rows: Rows, attempt: int, plan: Plan
) -> Iterator[Step]:
    """Of one attempt. How many groups there are is known once the first step is done."""
    each_split: Items = [
        {"split": split, "attempt": attempt, "dim": plan.dim, "num_shards": len(rows[split])} for split in rows
    ]
    each_shard: Items = [{**item, "shard": shard} for item in each_split for shard in range(item["num_shards"])]

    def new_step(
        name: str, work: Callable[..., Stats], items: Items, file_of: Callable[[Scratch, Any], str], **settings: Any
    ) -> Step:
        def name_file(item: dict[str, Any]) -> str:
            return file_of(Scratch(item["split"], attempt), item)

        return Step(name, partial, (work, cfg, embeddings, out), items, name_file, resources=cfg.resources, **settings)

    sampled = [{**item, "shard_rows": rows[item["split"]]} for item in each_split]
    yield new_step("neighbors groups", partition_split, sampled, lambda files, _: files.partition)
    at_once = {"items_at_once": threads_of(cfg.resources)}
    yield new_step(
        "neighbors routing", route_shard, each_shard, lambda files, item: files.routed(item["shard"]), **at_once
    )
    yield new_step("neighbors control", merge_exact, each_split, lambda files, _: files.exact)
    groups = _list_groups(cfg, out, each_split)
    searched = [item for items in groups.values() for item in items]
    yield new_step("neighbors", search_documents, searched, lambda files, item: files.found(item["group"]))
    largest = max((max(shards, default=0) for shards in rows.values()), default=0)
    yield new_step(
        "neighbors merging",
        merge_found,
        [{**item, "num_groups": len(groups[item["split"]])} for item in each_shard],
        lambda files, item: shard_name(files.split, item["shard"]),
        outdated=_list_outdated(out, rows, attempt),
        items_at_once=shards_merged_at_once(cfg, largest, max(map(len, groups.values()), default=1)),
    )


def _list_groups(cfg: NeighborsConfig, out: Artifact, each_split: Items) -> dict[Split, Items]:
    """The items of the search, with what each group needs: routing has counted its documents."""
    groups: dict[Split, Items] = {}
    for item in each_split:
        split, dim, is_remote = item["split"], item["dim"], not out.is_local
        routed = [Scratch(split, item["attempt"]).routed(shard) for shard in range(item["num_shards"])]
        counted = add_stats(read_stats(out, routed))
        group_documents = list(counted["group_documents"].values())
        refuse_hot_spot(cfg, split, group_documents, dim)
        groups[split] = [
            {**item, "num_documents": counted["documents"], "group": group}
            | needs_of_group(cfg, num, dim, is_remote=is_remote)
            for group, num in enumerate(group_documents)
        ]
    return groups


def _list_outdated(out: Artifact, rows: Rows, attempt: int) -> list[str]:
    """Shards of the graph that an earlier attempt has made."""
    names = [name for split in rows for name in out.files(split, ".parquet")]
    return [name for name, stats in zip(names, read_stats(out, names), strict=True) if stats["attempt"] != attempt]


def _log_peak(out: Artifact, attempt: int, groups: int, plan: Plan) -> None:
    found = read_stats(out, [Scratch("train", attempt).found(group) for group in range(groups)])
    peak_gib = max(stats["peak_gib"] for stats in found)
    logger.info(f"neighbors | search took up to {peak_gib:.2f} GiB of a worker, {plan.worker_gib:.2f} planned")


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


def _split_stats(out: Artifact, names: list[str], recall: dict[str, Any]) -> Stats:
    total = add_stats(read_stats(out, names))
    total.pop("attempt")
    num_with, cosine_sum = total["documents_with_neighbors"], total.pop("nearest_cosine_sum")
    total["mean_nearest_cosine"] = round(cosine_sum / num_with, 4) if num_with else None
    for key in ("histogram_nearest", "histogram_all"):
        total[key] = sorted_histogram(total[key])
    return {**total, "recall": recall}
