"""Steps over shards: what a stage does to its files, said as data, and the one runner for all of it.

A stage names its steps (`Step`): a worker, the items of work, and the file that says an item is done. `run_steps` lists
what is there, gives the rest to Ray Data, and reports progress. A worker commits its result itself, so a stage that
dies goes on where it was. What travels through Ray is a shard's number and the counts of what was done.

`call_each` is for functions that return a value instead; `make_stats_once` ends a stage that has a scratch folder.
"""

from __future__ import annotations

import itertools
import json
import logging
import posixpath
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow.fs as pafs

from sbp_ray import metrics
from sbp_ray.artifacts import Artifact
from sbp_ray.config import Resources, TrainingResources
from sbp_ray.errors import Outcome, SbpError, call_for_outcome
from sbp_ray.logs import Progress
from sbp_ray.object_stores import ask_again
from sbp_ray.shards import Stats

if TYPE_CHECKING:
    from ray.data import Dataset

logger = logging.getLogger(__name__)

Item = Mapping[str, Any]
"""A unit of work in JSON's types, such as `{"split": "train", "shard": 3}`."""
T = TypeVar("T")
Call = TypeVar("Call")

SCRATCH = "scratch"
"""Folder of an artifact whose files only its own stage reads; removed at the end."""
STATS = "stats.json"
"""File that says that a stage with a scratch folder has done all its steps."""
_SMALL_BYTES = 4 << 20
"""Input that one process reads and works on in less time than Ray Data takes to start, some two seconds."""
_MOST_DEATHS = 7
"""Processes that a task may lose, to nodes that leave or to a lack of memory, before it is held to kill them itself.
Ray Data would repeat it without end."""
ACTOR_RETRIES = 3 * _MOST_DEATHS
"""The same for what an actor works on. A death takes up to three retries: an actor that is started again cannot be
reached for a moment."""
_WORKING_HERE: ContextVar[bool] = ContextVar("working_here", default=False)
_CALLS_AT_ONCE = 64
"""Calls whose results are not yet taken in. This bounds the object store, not the cluster."""


@dataclass(frozen=True)
class Step:
    """What one worker does to each of its items, until the file of each is there."""

    name: str
    """Named in progress lines, metrics and on Ray's dashboard."""
    worker: Callable[..., Callable[[Any], Stats]]
    """A class, whose `__init__` builds what is expensive, or `partial`, whose first argument is a function. What it
    makes takes one item, commits its result and returns counts, of which `documents`, `tokens`, `padding_tokens`,
    `pairs` and `drops` (reason to number) are exported as metrics."""
    arguments: tuple[Any, ...]
    """For the constructor; anything that pickles."""
    items: Sequence[Item]
    file_of: Callable[[Any], str]
    """The file that a worker commits last for an item: the item is done when that file is there."""
    outdated: Collection[str] = ()
    """Files that do not count although they are there: an earlier attempt made them."""
    resources: Resources | None = None
    """What the step takes of the cluster. Without it, one CPU for each worker and never a GPU, and as many workers at
    once as the stage has."""
    keeps_worker: bool = False
    """Whether a worker is built once in each of so many actors, as one that holds a model must be; otherwise it is
    built anew in each task."""
    items_at_once: int = 1
    """Items that a task works on in as many threads, for workers that keep no state and spend their time outside of
    Python. Not for steps that keep their worker."""
    reads: Sequence[tuple[Artifact, str]] = ()
    """Folders whose files the items read, all together. Where they hold less than 4 MiB, the driver does the step
    itself, which is quicker than to start Ray Data and ends in the same files; where the items read little each, a task
    takes several."""


def run_steps(out: Artifact, steps: Iterable[Step], resources: Resources) -> None:
    """Run the steps one after the other, each on the items that an earlier run has not done.

    A worker that needs no Ray runs in this process: where `resources` say so, within `working_here`, where this process
    has joined no Ray, and for steps that read little (`Step.reads`).

    Args:
        out: the artifact that the steps' files lie in.
        steps: may be a generator. A step is asked for when the one before it is done, so its items may depend on that.
        resources: of the stage.

    Raises:
        SbpError: the first one that a worker raised; what other workers committed by then stays.
    """
    for step in steps:
        todo = _items_to_do(out, step)
        num_done = len(step.items) - len(todo)
        if num_done:
            logger.info(f"{step.name} | {num_done} of {len(step.items)} shards are there already")
        if todo:
            alone = resources.num_workers, min(1.0, resources.num_cpus)
            taken = step.resources or Resources(num_workers=alone[0], num_cpus=alone[1])
            outcomes = _work_here(step, todo) if _is_for_driver(step, resources) else _work_on_ray(step, todo, taken)
            _report(step.name, outcomes, len(todo), num_done)


def _items_to_do(out: Artifact, step: Step) -> list[Item]:
    names = [step.file_of(item) for item in step.items]
    there = {name for folder in {posixpath.dirname(name) for name in names} for name in out.files(folder)}
    there -= set(step.outdated)
    return [item for item, name in zip(step.items, names, strict=True) if name not in there]


@contextmanager
def working_here() -> Iterator[None]:
    """Within the block all steps and calls are worked on in this process, although it may have joined a Ray."""
    token = _WORKING_HERE.set(True)
    try:
        yield
    finally:
        _WORKING_HERE.reset(token)


def _does_without_ray(resources: Resources | None) -> bool:
    is_told = isinstance(resources, TrainingResources) and resources.in_process
    return is_told or _WORKING_HERE.get() or not metrics.ray_is_running()


def _is_for_driver(step: Step, resources: Resources) -> bool:
    if _does_without_ray(resources):
        return True
    return step.resources is None and bool(step.reads) and _num_bytes(step.reads) < _SMALL_BYTES


def _num_bytes(folders: Iterable[tuple[Artifact, str]]) -> int:
    """Of all files right under the folders."""
    selected = [(made, pafs.FileSelector(made.path(folder), allow_not_found=True)) for made, folder in folders]
    return sum(info.size or 0 for made, selector in selected for info in made.fs.get_file_info(selector))


def _work_here(step: Step, todo: Sequence[Item]) -> Iterator[Outcome]:
    work = WorkOnItems(step.name, step.worker, step.arguments) if step.keeps_worker else None
    for item in todo:
        yield from (work or WorkOnItems(step.name, step.worker, step.arguments)).outcomes([item])


def _work_on_ray(step: Step, todo: Sequence[Item], taken: Resources) -> Iterator[Outcome]:
    import ray

    each = _items_per_task(step, len(todo), taken.num_workers)
    rows = [{"items": json.dumps(todo[start : start + each])} for start in range(0, len(todo), each)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    num_workers = min(taken.num_workers, len(rows))
    arguments = (step.name, step.worker, step.arguments, step.items_at_once)
    amount: dict[str, Any] = {"num_cpus": taken.num_cpus, "num_gpus": taken.num_gpus}
    if step.keeps_worker:
        pool = ray.data.ActorPoolStrategy(size=num_workers)
        amount |= {"max_task_retries": ACTOR_RETRIES}
        dataset = dataset.map(WorkOnItems, fn_constructor_args=arguments, compute=pool, **amount)
    else:
        tasks = ray.data.TaskPoolStrategy(size=num_workers)
        dataset = dataset.map(work_on_items, fn_args=arguments, compute=tasks, **amount)
    dataset.set_name(step.name)  # as the dashboard lists it
    for row in read_dataset(dataset, step.name):
        yield from (Outcome(*outcome) for outcome in json.loads(row["outcomes"]))


def read_dataset(dataset: Dataset, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a dataset whose actors work on shards.

    Raises:
        SbpError: the actors that worked on an item have died again and again.
    """
    from ray.exceptions import RayActorError

    try:
        yield from dataset.iter_rows()
    except RayActorError as error:
        raise SbpError(_describe_deaths(name, "the processes that worked on one of its shards")) from error


def _describe_deaths(name: str, who: str) -> str:
    return (
        f"{name}: {who} have died: see Ray's logs, give the stage more memory, and run the same command again to go on"
    )


def _items_per_task(step: Step, num_todo: int, num_workers: int) -> int:
    """Short items go together until a task reads 4 MiB, since Ray Data spends 20 ms on a task; but each worker has four
    tasks at least."""
    if not step.reads:
        return step.items_at_once
    together = _SMALL_BYTES * len(step.items) // max(1, _num_bytes(step.reads))
    return max(step.items_at_once, min(together, num_todo // (4 * num_workers)))


class WorkOnItems:
    """Adapts a worker to Ray Data's rows, and an error that the user can fix to what crosses between processes."""

    def __init__(self, name: str, worker: Callable[..., Any], arguments: tuple[Any, ...], at_once: int = 1) -> None:
        self._name, self._built, self._at_once = name, call_for_outcome(worker, *arguments), at_once

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """One string for all: drops have other reasons from row to row."""
        return {"outcomes": json.dumps(self.outcomes(json.loads(row["items"])))}

    def outcomes(self, items: Sequence[Item]) -> list[Outcome]:
        """Work on the items, so many at once."""
        if self._at_once == 1:
            return [self._work(item) for item in items]
        with ThreadPoolExecutor(self._at_once) as pool:
            return list(pool.map(self._work, items))

    def _work(self, item: Item) -> Outcome:
        logger.debug("%s | begins with %s", self._name, item)
        return self._built if self._built.message else call_for_outcome(ask_again, self._built.value, item)


def work_on_items(row: dict[str, Any], *arguments: Any) -> dict[str, Any]:
    """`WorkOnItems` as a task. Those that Ray kills for want of memory are none of its retries, so they are counted."""
    if (deaths := _count_deaths()) > _MOST_DEATHS:
        message = _describe_deaths(arguments[0], f"{deaths} processes that worked on {row['items']}")
        return {"outcomes": json.dumps([Outcome(None, message)])}
    return WorkOnItems(*arguments)(row)


def _count_deaths() -> int:
    """Earlier attempts at the task that this process runs; nothing public of Ray's tells."""
    from ray._private.worker import global_worker

    return int(global_worker.core_worker.get_current_task_attempt_number())


def _report(stage: str, outcomes: Iterable[Outcome], num_items: int, num_done: int) -> None:
    """Report each finished item's counts as metrics and progress; raise the first error."""
    total = num_done + num_items
    progress = Progress(stage, total, "shards", done=num_done)
    documents, start = 0, time.monotonic()
    for finished, outcome in enumerate(outcomes, start=num_done + 1):
        stats = outcome.get()
        for name in ("documents", "tokens", "padding_tokens", "pairs"):
            metrics.count(f"sbp_{name}", stats.get(name, 0), stage=stage)
        metrics.count_drops(stats.get("drops", {}), stage=stage)
        documents += stats.get("documents", 0)
        metrics.gauge("sbp_documents_per_s", documents / (time.monotonic() - start), stage=stage)
        metrics.gauge("sbp_progress", finished / total, stage=stage)
        progress.advance()


def make_stats_once(out: Artifact, make: Callable[[], Stats]) -> Stats:
    """The stats of a stage that has a scratch folder: made by `make`, unless an earlier run has; then scratch goes."""
    stats: Stats = out.write_json_once(STATS, make)
    remove_scratch(out)
    return stats


def remove_scratch(out: Artifact) -> None:
    """Remove what only the stage itself has read."""
    if out.exists(SCRATCH):
        out.fs.delete_dir(out.path(SCRATCH))


# Calls that return values


def call_each(
    function: Callable[..., T],
    calls: Sequence[Call],
    *shared: Any,
    resources: Resources | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[Call, T]]:
    """`function(call, *shared)` of each call, as they end: in Ray tasks where this process has joined a Ray, else here.

    Args:
        function: anything that pickles.
        calls: the first argument of each call.
        shared: sent to the cluster once for all calls.
        resources: of each task, and how many run at once; without it one CPU, and 64.
        environment: variables of the processes of Ray's tasks, which libraries read when they are imported.

    Raises:
        SbpError: the first one that a call raised.
    """
    if _does_without_ray(resources):
        for call in calls:
            yield call, call_for_outcome(function, call, *shared).get()
        return
    import ray

    taken = resources or Resources(num_workers=_CALLS_AT_ONCE)
    options: dict[str, Any] = {"runtime_env": {"env_vars": dict(environment)}} if environment else {}
    task = ray.remote(num_cpus=taken.num_cpus, num_gpus=taken.num_gpus, **options)(call_for_outcome)
    stored = [ray.put(value) for value in (function, *shared)]
    waiting, running = iter(calls), dict[Any, Call]()
    while True:
        for call in itertools.islice(waiting, taken.num_workers - len(running)):
            running[task.remote(stored[0], call, *stored[1:])] = call
        if not running:
            return
        [ready], _ = ray.wait(list(running), num_returns=1)
        yield running.pop(ready), ray.get(ready).get()
