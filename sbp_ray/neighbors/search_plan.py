"""What a search will take, worked out before it starts from the number of documents and the length of their vectors.

`plan_search` describes the four steps of a split's search, each by `_plan_step`. The constants were measured on one
core of an AMD EPYC (AVX-512 VNNI) at 100,000 to 1,000,000 documents of 384 dimensions; see docs/scaling.md. What does
not fit is refused by `search_limits`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sbp_ray.config import NeighborsConfig, Resources
from sbp_ray.errors import SbpError
from sbp_ray.logs import duration
from sbp_ray.neighbors.group import Effort, num_candidates
from sbp_ray.neighbors.joining import JOINED_BYTES
from sbp_ray.neighbors.partition import SAMPLES_PER_CELL, num_cells_of
from sbp_ray.neighbors.probing import PROBED_BYTES
from sbp_ray.schema import SIGNATURE_BYTES, SPLITS

logger = logging.getLogger(__name__)

# How thorough

EXACT_BELOW = 20_000
"""Documents below which a split is one cell, and every pair is compared."""
BORDER_SHARE = 0.3
"""Share of the misses that `min_recall` allows which may be neighbours that meet in no group."""
_FAIR_SHARE = 0.7
"""Share of the misses that `min_recall` allows at which the first attempt aims."""
_SHORT_VECTOR = 128
"""Dimensions below which products are cheap, and larger cells find more in the same time."""
_CONTROL_QUERIES = 500
"""Documents at least whose true neighbours tell the search when to end; others judge the recall."""
_CONTROL_QUERIES_OF_GROUP = 20
"""Documents of this kind that each group is to know, where there are many groups."""
_CALIBRATION_DOCUMENTS = 12_000
"""Documents at least among which the margin is chosen. The nearest in a sample of N / K documents is about the K-th
nearest of all N."""
_MOST_CALIBRATION_DOCUMENTS = 250_000
"""Documents at most among which the margin is chosen."""

# Memory and disk

BASE_GIB = 0.55
"""Memory of a worker before it reads anything: Python, Ray, torch, Numba."""
_SHARDS_GIB = 0.25
"""Memory that routing and merging hold of a shard, and that their libraries keep."""
_VRAM_COPIES = 3
"""Copies of the 8-bit vectors on a GPU: as read, in the order of cells, and products."""
_DESCRIBED_BYTES = 2 * SIGNATURE_BYTES + 16 + 28
"""Bytes of a document beside its vector: signatures, id, and numbers of its row, home, shingles, words and group."""
_NEIGHBOR_BYTES = 33
"""Bytes of a neighbour on its way to a shard, and in the graph: id, cosine, three overlaps and a truth value."""
_MERGED = 2.5
"""Memory that a merged shard takes, in sizes of its lists: as read, in one piece, and what is kept."""

# Time

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


# Groups, and how thoroughly they are searched


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
    while documents * _copies(groups) / groups > fitting:
        groups += 1
    return groups


def _copies(num_groups: int) -> float:
    """How many groups a document is searched in, as measured on vectors of texts; the margin decides how many it is."""
    return 1 + 0.6 * math.log2(num_groups)


def num_control_queries(groups: int) -> int:
    """Documents whose true neighbours tell the search when to end; each group is to know some."""
    return max(_CONTROL_QUERIES, _CONTROL_QUERIES_OF_GROUP * groups)


def num_calibration_documents(cfg: NeighborsConfig, documents: int) -> int:
    """Documents among which the margin is chosen."""
    wanted = max(_CALIBRATION_DOCUMENTS, 4 * documents // cfg.num_neighbors)
    return min(wanted, _MOST_CALIBRATION_DOCUMENTS, documents // 4)


def border_recall(cfg: NeighborsConfig, attempt: int) -> float:
    """Share of the neighbours that are to meet in a group; more with each attempt."""
    return 1 - BORDER_SHARE * (1 - cfg.min_recall) / 2**attempt


def plan_effort(cfg: NeighborsConfig, documents: int, dim: int, attempt: int, groups: int) -> Effort:
    """How thorough the search of a group is: more with each attempt. A small split is one cell, searched exactly."""
    cell_documents = round(cfg.cell_documents * max(1, _SHORT_VECTOR / dim))
    if documents < EXACT_BELOW:
        cell_documents = documents
    share = _FAIR_SHARE - (BORDER_SHARE if groups > 1 else 0)
    return Effort(cell_documents, cfg.probes * 2**attempt, 1 - share * (1 - cfg.min_recall) / 2**attempt)


# What that takes


def threads_of(resources: Resources) -> int:
    """Threads of a worker: as many as it has CPUs, unless told otherwise."""
    return resources.num_threads or max(1, int(resources.num_cpus))


def document_bytes(dim: int, k: int) -> int:
    """Memory that a document takes in the search of its group: what was read stays with Arrow's allocator."""
    vectors = 3 * 2 * dim + 2 * dim  # as read, in one piece and in the order of cells, 16 bits; 8 bits in both orders
    return vectors + 2 * _DESCRIBED_BYTES + 8 * num_candidates(k) + JOINED_BYTES + PROBED_BYTES + 8 * k


def lists_bytes(k: int) -> int:
    """Of a document and its neighbours on their way from a group to a shard."""
    return 8 + _NEIGHBOR_BYTES * k


def group_gib(cfg: NeighborsConfig, num_documents: int, dim: int) -> float:
    """Memory of a worker that searches a group of so many documents."""
    return BASE_GIB + gib(num_documents * document_bytes(dim, cfg.num_neighbors))


def vram_gib(cfg: NeighborsConfig, num_documents: int, dim: int) -> float:
    """Memory of the worker's GPU, where it has one."""
    return gib(_VRAM_COPIES * num_documents * dim) if cfg.resources.num_gpus else 0


def shards_merged_at_once(cfg: NeighborsConfig, shard_documents: int, groups: int) -> int:
    """Shards whose lists a worker merges side by side, in its threads: as many as `worker_gib` holds."""
    fitting = (cfg.worker_gib - BASE_GIB) / _merged_gib(cfg, shard_documents, groups)
    return max(1, min(threads_of(cfg.resources), int(fitting)))


def _merged_gib(cfg: NeighborsConfig, shard_documents: int, groups: int) -> float:
    return _SHARDS_GIB + gib(_MERGED * shard_documents * _copies(groups) * lists_bytes(cfg.num_neighbors))


def gib(num_bytes: float) -> float:
    """Rounded as it is shown."""
    return round(num_bytes / 2**30, 3)


def plan_search(cfg: NeighborsConfig, shard_rows: Sequence[int], dim: int) -> Plan:
    """The plan for shards of so many documents."""
    documents = sum(shard_rows)
    groups = num_groups(cfg, documents, dim)
    group_documents = math.ceil(documents * _copies(groups) / groups)
    steps = tuple(_plan_steps(cfg, shard_rows, dim, groups, group_documents))
    return Plan(documents, dim, cfg.resources.num_workers, groups, group_documents, steps)


def _plan_steps(
    cfg: NeighborsConfig, shard_rows: Sequence[int], dim: int, groups: int, group_documents: int
) -> Iterator[Step]:
    documents, largest = sum(shard_rows), max(shard_rows, default=0)
    k, searched = cfg.num_neighbors, documents * _copies(groups)
    num_cells = num_cells_of(groups)
    sampled = SAMPLES_PER_CELL * num_cells
    num_queries = cfg.recall_queries + num_control_queries(groups)
    held_out = num_queries + (num_calibration_documents(cfg, documents) if groups > 1 else 0)
    small_gib = BASE_GIB + threads_of(cfg.resources) * _SHARDS_GIB
    sample_gib = small_gib + gib(12 * dim * (sampled + held_out))
    yield _plan_step(cfg, dim, "groups", sample_gib, len(SPLITS), 0, sampled * num_cells * 4, sampled * _SAMPLED_S)
    routed = searched * (2 * dim + _DESCRIBED_BYTES) + len(shard_rows) * num_queries * 20 * k
    routed_pairs = documents * (num_queries + num_cells)
    yield _plan_step(cfg, dim, "routing", small_gib, len(shard_rows), routed, routed_pairs, documents * _ROUTED_S)
    compared = _COMPARED * max(k, 10) * (min(documents, _COMPARED_TO) / _COMPARED_AT) ** _COMPARED_GROWTH
    pairs = searched * (compared if documents >= EXACT_BELOW else documents)
    other_s = searched * (_FOUND_S + k * _LISTED_S)
    search_gib, found = group_gib(cfg, group_documents, dim), searched * lists_bytes(k)
    search = _plan_step(cfg, dim, "search", search_gib, groups, found, pairs, other_s)
    yield search._replace(vram_gib=vram_gib(cfg, group_documents, dim))
    at_once = shards_merged_at_once(cfg, largest, groups)
    merging_gib = BASE_GIB + at_once * _merged_gib(cfg, largest, groups)
    tasks, kept = math.ceil(len(shard_rows) / at_once), documents * (16 + _NEIGHBOR_BYTES * k)
    yield _plan_step(cfg, dim, "merging", merging_gib, tasks, kept, 0, searched * k * _LISTED_S)


def _plan_step(
    cfg: NeighborsConfig,
    dim: int,
    name: str,
    worker_gib: float,
    tasks: int,
    written: float,
    pairs: float,
    other_s: float,
) -> Step:
    """A step of so many tasks, which write so many bytes, compare so many pairs and take other seconds of a core."""
    threads = threads_of(cfg.resources)
    at_once = min(cfg.resources.num_workers, max(1, tasks))
    seconds = (pairs * dim / 384 / _PAIRS_PER_S + other_s) / (at_once * threads)
    return Step(name, worker_gib, at_once, 0, gib(written), round(2 * pairs * dim / 1e12, 3), round(seconds, 1))


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
