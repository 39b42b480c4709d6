"""What a search will take, worked out before it starts from the number of documents and the length of their vectors.

The constants were measured on one core of an AMD EPYC (AVX-512 VNNI) at 100,000 to 1,000,000 documents of 384
dimensions; see docs/scaling.md.
"""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import NamedTuple

import psutil

from sbp_ray.artifacts import Artifact
from sbp_ray.config import NeighborsConfig, Resources
from sbp_ray.errors import SbpError
from sbp_ray.logs import duration
from sbp_ray.neighbors.group import JOINED_BYTES, num_candidates
from sbp_ray.schema import SIGNATURE_BYTES

logger = logging.getLogger(__name__)

EXACT_BELOW = 20_000  # documents: fewer are one cell, and every pair is compared
_BASE_GIB = 0.5  # a worker before it reads anything: Python, Ray, torch, Numba
_ID_BYTES = 16
_NUMBERS = 24  # bytes of row, home, number of shingles and hash of the group
_COMPARED = 4000  # documents with which one is compared: centroids, cells, and neighbours of neighbours
_PAIRS_PER_S = 1e8  # of 384 dimensions, a core
_DOCUMENT_S = 25e-6  # reading, routing, writing, merging, and the exact search of 1,000 queries, a core


class Plan(NamedTuple):
    """What the search of one split takes."""

    documents: int
    dim: int
    workers: int
    groups: int
    """Parts that are searched by themselves."""
    group_documents: int
    """Documents in one of them, visitors included."""
    worker_gib: float
    """Most memory of a worker."""
    vram_gib: float
    """Most memory of its GPU, where it has one."""
    shuffle_gib: float
    """Written and read once between the steps, and deleted at the end: disk space too."""
    output_gib: float
    """The lists."""
    tera_ops: float
    """Multiplications and additions, of 8-bit integers."""
    seconds: float
    """On the cores of `workers`."""


def threads_of(resources: Resources) -> int:
    """Threads of a worker: as many as it has CPUs, unless told otherwise."""
    return resources.num_threads or max(1, int(resources.num_cpus))


def document_bytes(dim: int, k: int) -> int:
    """Memory that a document takes in the search of its group, at the worst moment."""
    described = SIGNATURE_BYTES + _ID_BYTES + _NUMBERS
    lists = 8 * num_candidates(k)
    while_reading = 2 * (2 * dim + described)
    while_searching = 2 * dim + described + 2 * dim + lists + JOINED_BYTES
    while_ranking = 2 * 2 * dim + described + lists + 8 * k
    return max(while_reading, while_searching, while_ranking)


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


def plan_search(cfg: NeighborsConfig, documents: int, dim: int) -> Plan:
    """The plan for so many documents."""
    k, workers = cfg.num_neighbors, cfg.resources.num_workers
    groups = num_groups(cfg, documents, dim)
    searched = documents * copies(groups)
    pairs = searched * (_COMPARED if documents >= EXACT_BELOW else documents)
    group_documents = math.ceil(searched / groups)
    described = SIGNATURE_BYTES + _ID_BYTES + _NUMBERS
    shuffled = searched * (2 * dim + described + 8 + 29 * k)
    return Plan(
        documents=documents,
        dim=dim,
        workers=workers,
        groups=groups,
        group_documents=group_documents,
        worker_gib=_gib(group_documents * document_bytes(dim, k)) + _BASE_GIB,
        vram_gib=_gib(group_documents * dim),
        shuffle_gib=_gib(shuffled),
        output_gib=_gib(documents * (32 + 45 * k)),
        tera_ops=round(2 * pairs * dim / 1e12, 3),
        seconds=round(
            (pairs * dim / 384 / _PAIRS_PER_S + documents * _DOCUMENT_S) / workers / threads_of(cfg.resources), 1
        ),
    )


def _gib(num_bytes: float) -> float:
    return round(num_bytes / 2**30, 3)


def log_plan(plan: Plan) -> None:
    """One line before anything starts."""
    logger.info(
        f"neighbors | plan: {plan.documents:,} documents x {plan.dim}, {plan.groups} groups of about "
        f"{plan.group_documents:,} | {plan.workers} workers of {plan.worker_gib:.1f} GiB, {plan.vram_gib:.1f} GiB on a "
        f"GPU | disk {plan.shuffle_gib + plan.output_gib:.2f} GiB, {plan.shuffle_gib:.2f} of it shuffled | "
        f"{plan.tera_ops:,.1f} T operations | about {duration(plan.seconds)}"
    )


def refuse_what_cannot_fit(plan: Plan, out: Artifact) -> None:
    """Compare the plan with the machine's memory and the disk's free space.

    Raises:
        SbpError: it does not fit; says what would.
    """
    memory_gib = _memory_gib()
    wanted_gib = plan.workers * plan.worker_gib
    if wanted_gib > memory_gib:
        raise SbpError(
            f"neighbors wants {plan.workers} workers of {plan.worker_gib:.1f} GiB, there are {memory_gib:.1f} GiB: "
            "lower neighbors.worker_gib (more and smaller groups) or neighbors.resources.num_workers"
        )
    if out.is_local:
        free_gib = shutil.disk_usage(_existing(out.path())).free / 2**30
        wanted_gib = plan.shuffle_gib + plan.output_gib
        if wanted_gib > free_gib:
            raise SbpError(
                f"neighbors wants {wanted_gib:.1f} GiB of disk under {out.url}, {free_gib:.1f} GiB are free: free "
                "some, use another run_dir, or lower neighbors.num_neighbors"
            )


def _memory_gib() -> float:
    """Of the cluster, as Ray counts it, or of this machine."""
    import ray

    if ray.is_initialized():
        return float(ray.cluster_resources().get("memory", psutil.virtual_memory().total)) / 2**30
    return float(psutil.virtual_memory().total) / 2**30


def _existing(path: str) -> str:
    return str(next(folder for folder in [Path(path), *Path(path).parents] if folder.exists()))
