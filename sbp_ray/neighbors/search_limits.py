"""Searches that cannot fit are refused: before they start, before a group is read, and on the node that reads it."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs

from sbp_ray.artifacts import Artifact
from sbp_ray.cluster_limits import room
from sbp_ray.config import NeighborsConfig
from sbp_ray.errors import SbpError
from sbp_ray.neighbors.search_plan import BASE_GIB, Plan, gib, group_gib, lists_bytes, vram_gib
from sbp_ray.processor import memory_bytes
from sbp_ray.schema import Split

logger = logging.getLogger(__name__)

_UNEVEN = 1.5
"""How much more than `worker_gib` a group may take before a line of the log says so: groups are about equal."""
_REMEDIES = {
    "groups": "neighbors.recall_queries, raise neighbors.worker_gib (fewer groups)",
    "merging": "neighbors.num_neighbors, raise ingest.num_shards",
}
"""What to lower where a step takes too much; for the other steps it is the size of the groups."""


def refuse_what_cannot_fit(plans: Collection[Plan], out: Artifact) -> None:
    """Compare the plans of all splits with the machine's memory and the disk's free space.

    Raises:
        SbpError: the search does not fit; says what would.
    """
    memory_gib = _memory_gib()
    for plan in plans:
        largest = max(plan.steps, key=lambda step: step.at_once * step.worker_gib)
        remedy = _REMEDIES.get(largest.name, "neighbors.worker_gib (more and smaller groups)")
        if plan.cluster_gib > memory_gib:
            raise SbpError(
                f"neighbors wants {largest.at_once} workers of {largest.worker_gib:.1f} GiB for {largest.name}, there "
                f"are {memory_gib:.1f} GiB: lower {remedy} or neighbors.resources.num_workers"
            )
    if out.is_local:
        free_gib = shutil.disk_usage(_existing(out.path())).free / 2**30
        disk_gib, written_gib = sum(plan.disk_gib for plan in plans), gib(_written_bytes(out))
        if disk_gib - written_gib > free_gib:
            raise SbpError(
                f"neighbors wants {disk_gib:.1f} GiB of disk under {out.url}, {written_gib:.1f} GiB are written and "
                f"{free_gib:.1f} GiB are free: free some, use another run_dir, or lower neighbors.num_neighbors"
            )


def _written_bytes(out: Artifact) -> int:
    """What the search itself has committed, in this run or in the one that it goes on from."""
    selector = pafs.FileSelector(out.path(), recursive=True, allow_not_found=True)
    return sum(info.size or 0 for info in out.fs.get_file_info(selector))


def refuse_hot_spot(cfg: NeighborsConfig, split: Split, group_documents: Sequence[int], dim: int) -> None:
    """Compare the groups as they turned out with the machines' memory, before one of them is read.

    Documents that are alike cannot be parted, so a group may be much larger than planned.

    Args:
        group_documents: documents that each group has to read.

    Raises:
        SbpError: the largest groups, as many as are searched at once, do not fit; says what to set.
    """
    needed_G = sorted((group_gib(cfg, num, dim) for num in group_documents), reverse=True)
    largest = int(np.argmax(group_documents))
    fact = (
        f"group {largest} of {split} holds {group_documents[largest]:,} documents and takes {needed_G[0]:.1f} GiB, and "
        f"neighbors.worker_gib is {cfg.worker_gib}"
    )
    memory_gib = _memory_gib()
    wanted_gib = sum(needed_G[: cfg.resources.num_workers])
    if wanted_gib <= memory_gib:
        if needed_G[0] > max(cfg.worker_gib, BASE_GIB) * _UNEVEN:
            logger.warning(f"neighbors | {fact}: many of its documents are alike")
        return
    num_fitting = sum(total <= memory_gib for total in itertools.accumulate(needed_G))
    remedy = (
        f"use --redo neighbors with neighbors.resources.num_workers={num_fitting}"
        if num_fitting
        else f"give the node {math.ceil(needed_G[0])} GiB, take copies out of the corpus, or use --redo neighbors with "
        "a lower neighbors.num_neighbors"
    )
    raise SbpError(
        f"{fact}; {cfg.resources.num_workers} workers want {wanted_gib:.1f} GiB, there are {memory_gib:.1f}: {remedy}"
    )


def needs_of_group(cfg: NeighborsConfig, num_documents: int, dim: int, *, is_remote: bool) -> dict[str, float]:
    """What a worker needs of its node for a group: the arguments of `refuse_small_machine`."""
    return {
        "worker_gib": group_gib(cfg, num_documents, dim),
        "vram_gib": vram_gib(cfg, num_documents, dim),
        "scratch_gib": gib(num_documents * lists_bytes(cfg.num_neighbors)) if is_remote else 0,
    }


def refuse_small_machine(worker_gib: float, vram_gib: float, scratch_gib: float = 0) -> None:
    """In a worker, before it reads a group: nodes that the autoscaler brings up are not known to the plan.

    Args:
        worker_gib: memory that the group takes.
        vram_gib: memory that it takes on a GPU, where the worker has one.
        scratch_gib: its result, where that waits in the node's temporary folder for its upload.

    Raises:
        SbpError: this node, its GPU or its temporary folder has less.
    """
    free_gib = shutil.disk_usage(tempfile.gettempdir()).free / 2**30
    if scratch_gib > free_gib:
        raise SbpError(
            f"the result of a group of the search takes {scratch_gib:.1f} GiB of {tempfile.gettempdir()} until it is "
            f"uploaded, and {free_gib:.1f} GiB are free: free some, set TMPDIR to a larger disk, or use --redo "
            "neighbors with a lower neighbors.worker_gib"
        )
    has_gib = memory_bytes() / 2**30
    if worker_gib > has_gib:
        raise SbpError(
            f"a group of the search wants {worker_gib:.1f} GiB, and the node has {has_gib:.1f} GiB: lower "
            "neighbors.worker_gib, with --redo neighbors"
        )
    if vram_gib:
        import torch

        has_gib = torch.cuda.mem_get_info()[1] / 2**30
        if vram_gib > has_gib:
            raise SbpError(
                f"a group of the search wants {vram_gib:.1f} GiB of GPU memory, and there are {has_gib:.1f} GiB: lower "
                "neighbors.worker_gib, with --redo neighbors"
            )


def _memory_gib() -> float:
    """Of the cluster as large as it can become, or of this machine; infinite where nobody knows."""
    import ray

    return (room().get("memory", math.inf) if ray.is_initialized() else memory_bytes()) / 2**30


def _existing(path: str) -> str:
    return str(next(folder for folder in [Path(path), *Path(path).parents] if folder.exists()))
