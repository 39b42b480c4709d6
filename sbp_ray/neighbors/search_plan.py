"""What a search will take, worked out before it starts from the number of documents and the length of their vectors.

The constants were measured on one core of an AMD EPYC (AVX-512 VNNI) at 100,000 to 1,000,000 documents of 384
dimensions; see docs/scaling.md.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow.fs as pafs

from sbp_ray.artifacts import Artifact
from sbp_ray.config import NeighborsConfig, Resources
from sbp_ray.errors import SbpError
from sbp_ray.logs import duration
from sbp_ray.neighbors.group import JOINED_BYTES, PROBED_BYTES, num_candidates
from sbp_ray.neighbors.partition import SAMPLES_PER_CELL, num_cells_of
from sbp_ray.schema import SIGNATURE_BYTES, SPLITS, Split

logger = logging.getLogger(__name__)

EXACT_BELOW = 20_000  # documents: fewer are one cell, and every pair is compared
_BASE_GIB = 0.55  # a worker before it reads anything: Python, Ray, torch, Numba
_SHARDS_GIB = 0.25  # what routing and merging hold of a shard, and what their libraries keep
_ID_BYTES = 16
_LISTED_NUMBERS = 13  # bytes of cosine, Jaccard, containment and whether the group is the same, of each neighbour
_UNEVEN = 1.5
"""How much more than `worker_gib` a group may take before a line of the log says so: groups are about equal."""
_VRAM = 3  # copies of the 8-bit vectors: as read, in the order of cells, and products
_NUMBERS = 24  # bytes of row, home, number of shingles and hash of the group
_CONTROL_QUERIES = 500  # beside those that judge the recall, or
_CONTROL_QUERIES_OF_GROUP = 20
_CALIBRATION_DOCUMENTS = 12_000  # at least: the nearest of a sample of N / K documents is about the K-th nearest of all
_MOST_CALIBRATION_DOCUMENTS = 250_000
_MERGED = 2.5  # of the bytes of its lists a merged shard takes: as read, in one piece, and what is kept
_COMPARED = 400
"""Documents that one document is compared with for each neighbour wanted, in a corpus of `_COMPARED_AT`."""
_COMPARED_AT = 100_000
"""Size of the corpus in which `_COMPARED` was measured."""
_COMPARED_GROWTH = 0.65
"""Power of the corpus' size with which the comparisons grow, since clusters come to fill many cells."""
_COMPARED_TO = 1_000_000
"""Size of the largest corpus measured; in a larger one the comparisons are taken to grow no further."""
_PAIRS_PER_S = 1.5e8
"""Pairs of 384 dimensions that a core compares in a second, what becomes of the product included."""
_SAMPLED_S = 20e-6
"""Seconds of a core for a document of the sample that groups are made from."""
_ROUTED_S = 15e-6
"""Seconds of a core for a document that is routed, beside the products."""
_FOUND_S = 10e-6
"""Seconds of a core to read and describe a document of a group."""
_LISTED_S = 0.5e-6
"""Seconds of a core to write or to merge a neighbour."""


class Step(NamedTuple):
    """What one step takes."""

    name: str
    worker_gib: float
    """Most memory of a worker."""
    at_once: int
    """Workers that have something to do."""
    vram_gib: float
    """Most memory of its GPU, where it has one."""
    writes_gib: float
    """Disk."""
    tera_ops: float
    """Multiplications and additions, nearly all of 8-bit integers."""
    seconds: float
    """On the cores of all workers."""


class Plan(NamedTuple):
    """What the search of one split takes."""

    documents: int
    dim: int
    workers: int
    groups: int
    """Parts that are searched by themselves."""
    group_documents: int
    """Documents in one of them, those near its border included."""
    steps: tuple[Step, ...]

    @property
    def worker_gib(self) -> float:
        """Most memory of a worker in any step."""
        return max(step.worker_gib for step in self.steps)

    @property
    def cluster_gib(self) -> float:
        """Most memory of all workers together."""
        return max(step.at_once * step.worker_gib for step in self.steps)

    @property
    def disk_gib(self) -> float:
        """All that is written; what travels between the steps is deleted at the end."""
        return sum(step.writes_gib for step in self.steps)


def threads_of(resources: Resources) -> int:
    """Threads of a worker: as many as it has CPUs, unless told otherwise."""
    return resources.num_threads or max(1, int(resources.num_cpus))


def document_bytes(dim: int, k: int) -> int:
    """Memory that a document takes in the search of its group: what was read stays with Arrow's allocator."""
    described = SIGNATURE_BYTES + _ID_BYTES + _NUMBERS
    vectors = 3 * 2 * dim + 2 * dim  # as read, in one piece and in the order of cells, 16 bits; 8 bits in both orders
    return vectors + 2 * described + 8 * num_candidates(k) + JOINED_BYTES + PROBED_BYTES + 8 * k


def copies(num_groups: int) -> float:
    """How many groups a document is searched in, as measured on vectors of texts; the margin decides how many it is."""
    return 1 + 0.6 * math.log2(num_groups)


def num_groups(cfg: NeighborsConfig, documents: int, dim: int) -> int:
    """As few as fit into a worker's memory, since documents are copied into each whose border they are near.

    They do not depend on the number of workers: that may change from run to run, and the graph may not.
    """
    if documents < EXACT_BELOW:
        return 1
    fitting = int(cfg.worker_gib * 2**30 / document_bytes(dim, cfg.num_neighbors))
    if fitting < 2 * cfg.cell_documents:
        raise SbpError(
            f"neighbors.worker_gib={cfg.worker_gib} holds {fitting} documents of {dim} dimensions, less than two "
            f"cells of {cfg.cell_documents}: raise it"
        )
    groups = 1
    while documents * copies(groups) / groups > fitting:
        groups += 1
    return groups


def num_control_queries(groups: int) -> int:
    """Documents whose true neighbours tell the search when to end; each group is to know some."""
    return max(_CONTROL_QUERIES, _CONTROL_QUERIES_OF_GROUP * groups)


def num_calibration_documents(cfg: NeighborsConfig, documents: int) -> int:
    """Documents among which the margin is chosen."""
    wanted = max(_CALIBRATION_DOCUMENTS, 4 * documents // cfg.num_neighbors)
    return min(wanted, _MOST_CALIBRATION_DOCUMENTS, documents // 4)


def shards_merged_at_once(cfg: NeighborsConfig, shard_documents: int, groups: int) -> int:
    """Shards whose lists a worker merges side by side, in its threads: as many as `worker_gib` holds."""
    fitting = (cfg.worker_gib - _BASE_GIB) / (_SHARDS_GIB + _merged_gib(cfg, shard_documents, groups))
    return max(1, min(threads_of(cfg.resources), int(fitting)))


def _merged_gib(cfg: NeighborsConfig, shard_documents: int, groups: int) -> float:
    return _gib(_MERGED * shard_documents * copies(groups) * (8 + 29 * cfg.num_neighbors))


def plan_search(cfg: NeighborsConfig, shard_rows: Sequence[int], dim: int) -> Plan:
    """The plan for shards of so many documents."""
    documents, largest = sum(shard_rows), max(shard_rows, default=0)
    k, threads = cfg.num_neighbors, threads_of(cfg.resources)
    cores = cfg.resources.num_workers * threads
    groups = num_groups(cfg, documents, dim)
    searched = documents * copies(groups)
    group_documents = math.ceil(searched / groups)
    described = SIGNATURE_BYTES + _ID_BYTES + _NUMBERS
    num_cells = num_cells_of(groups)
    sampled = SAMPLES_PER_CELL * num_cells
    num_queries = cfg.recall_queries + num_control_queries(groups)
    held_out = num_queries + (num_calibration_documents(cfg, documents) if groups > 1 else 0)
    merged_at_once = shards_merged_at_once(cfg, largest, groups)
    each = _COMPARED * max(k, 10) * (min(documents, _COMPARED_TO) / _COMPARED_AT) ** _COMPARED_GROWTH
    compared = searched * (each if documents >= EXACT_BELOW else documents)
    small_gib = _BASE_GIB + threads * _SHARDS_GIB

    def step(
        name: str, worker_gib: float, tasks: int, written: float, pairs: float, other_s: float, vram: float = 0
    ) -> Step:
        at_once = min(cfg.resources.num_workers, max(1, tasks))
        seconds = (pairs * dim / 384 / _PAIRS_PER_S + other_s) / min(cores, at_once * threads)
        tera_ops = round(2 * pairs * dim / 1e12, 3)
        return Step(name, worker_gib, at_once, _gib(vram), _gib(written), tera_ops, round(seconds, 1))

    return Plan(
        documents=documents,
        dim=dim,
        workers=cfg.resources.num_workers,
        groups=groups,
        group_documents=group_documents,
        steps=(
            step(
                "groups",
                small_gib + _gib(12 * dim * (sampled + held_out)),
                len(SPLITS),
                0,
                sampled * num_cells * 4,
                sampled * _SAMPLED_S,
            ),
            step(
                "routing",
                small_gib,
                len(shard_rows),
                searched * (2 * dim + described) + len(shard_rows) * num_queries * 20 * k,
                documents * (num_queries + num_cells),
                documents * _ROUTED_S,
            ),
            step(
                "search",
                group_gib(cfg, group_documents, dim),
                groups,
                searched * (8 + 29 * k),
                compared,
                searched * (_FOUND_S + k * _LISTED_S),
                _VRAM * group_documents * dim if cfg.resources.num_gpus else 0,
            ),
            step(
                "merging",
                _BASE_GIB + merged_at_once * (_SHARDS_GIB + _merged_gib(cfg, largest, groups)),
                math.ceil(len(shard_rows) / merged_at_once),
                documents * (_ID_BYTES + (_ID_BYTES + _LISTED_NUMBERS) * k),
                0,
                searched * k * _LISTED_S,
            ),
        ),
    )


def _gib(num_bytes: float) -> float:
    return round(num_bytes / 2**30, 3)


def log_plan(plan: Plan) -> None:
    """A line for each step before anything starts."""
    logger.info(
        f"neighbors | plan: {plan.documents:,} documents x {plan.dim}, {plan.groups} groups of about "
        f"{plan.group_documents:,} | {plan.workers} workers | disk {plan.disk_gib:.2f} GiB | "
        f"about {duration(sum(step.seconds for step in plan.steps))}"
    )
    for step in plan.steps:
        on_gpu = f", {step.vram_gib:.1f} GiB on a GPU" if step.vram_gib else ""
        logger.info(
            f"neighbors | plan: {step.name}: {step.at_once} x {step.worker_gib:.1f} GiB{on_gpu}, "
            f"writes {step.writes_gib:.2f} GiB, {step.tera_ops:,.1f} T operations, about {duration(step.seconds)}"
        )


def refuse_what_cannot_fit(plans: Collection[Plan], out: Artifact) -> None:
    """Compare the plans of all splits with the machine's memory and the disk's free space.

    Raises:
        SbpError: the search does not fit; says what would.
    """
    memory_gib = _memory_gib()
    for plan in plans:
        largest = max(plan.steps, key=lambda step: step.at_once * step.worker_gib)
        if memory_gib is not None and plan.cluster_gib > memory_gib:
            raise SbpError(
                f"neighbors wants {largest.at_once} workers of {largest.worker_gib:.1f} GiB for {largest.name}, there "
                f"are {memory_gib:.1f} GiB: lower {_remedy(largest)} or neighbors.resources.num_workers"
            )
    if out.is_local:
        free_gib = shutil.disk_usage(_existing(out.path())).free / 2**30
        disk_gib, written_gib = sum(plan.disk_gib for plan in plans), _gib(_written_bytes(out))
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
        cfg: settings.
        split: named in the message.
        group_documents: documents that each group has to read.
        dim: length of the vectors.

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
    if memory_gib is None or wanted_gib <= memory_gib:
        if needed_G[0] > max(cfg.worker_gib, _BASE_GIB) * _UNEVEN:
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


def group_gib(cfg: NeighborsConfig, num_documents: int, dim: int) -> float:
    """Memory of a worker that searches a group of so many documents."""
    return _BASE_GIB + _gib(num_documents * document_bytes(dim, cfg.num_neighbors))


def needs_of_group(cfg: NeighborsConfig, num_documents: int, dim: int, *, is_remote: bool) -> dict[str, float]:
    """What a worker needs of its node for a group: the arguments of `refuse_small_machine`."""
    return {
        "worker_gib": group_gib(cfg, num_documents, dim),
        "vram_gib": _gib(_VRAM * num_documents * dim) if cfg.resources.num_gpus else 0,
        "scratch_gib": _gib(num_documents * (8 + 29 * cfg.num_neighbors)) if is_remote else 0,
    }


def _remedy(step: Step) -> str:
    return {
        "groups": "neighbors.recall_queries, raise neighbors.worker_gib (fewer groups)",
        "merging": "neighbors.num_neighbors, raise ingest.num_shards",
    }.get(step.name, "neighbors.worker_gib (more and smaller groups)")


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
    has_gib = psutil.virtual_memory().total / 2**30
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


def _memory_gib() -> float | None:
    """Of the cluster, as Ray counts it, or of this machine; None where nodes are yet to come."""
    import ray

    if "SBP_RAY_AUTOSCALER_CONFIG" in os.environ:
        return None
    if ray.is_initialized():
        return float(ray.cluster_resources().get("memory", psutil.virtual_memory().total)) / 2**30
    return float(psutil.virtual_memory().total) / 2**30


def _existing(path: str) -> str:
    return str(next(folder for folder in [Path(path), *Path(path).parents] if folder.exists()))
