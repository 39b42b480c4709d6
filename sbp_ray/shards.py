"""Run a function over shards with Ray Data, commit by commit.

What travels is the shard's number; the worker reads its files and commits its result. A shard whose result is there
is not run again, so a stage that dies goes on where it was.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sbp_ray import metrics
from sbp_ray.config import Resources, TrainingResources
from sbp_ray.errors import SbpError, out_of_room
from sbp_ray.logs import Progress

logger = logging.getLogger(__name__)

Stats = dict[str, Any]
T = TypeVar("T")


def shard_name(folder: str, shard: int) -> str:
    """`train/part-00003.parquet`."""
    return f"{folder}/part-{shard:05d}.parquet"


def map_shards(
    stage: str,
    worker: type,
    arguments: tuple[Any, ...],
    todo: Iterable[dict[str, Any]],
    *,
    num_done: int,
    resources: Resources,
) -> None:
    """Call `worker(*arguments)(item)` for each item of `todo` in a pool of Ray Data actors.

    Args:
        stage: named in progress lines and metrics.
        worker: a class; its `__init__` builds what is expensive, its `__call__` takes one item, commits its result and
            returns counts, of which `documents`, `tokens`, `padding_tokens`, `pairs` and `drops` (reason to number)
            are exported as metrics.
        arguments: for the constructor; anything that pickles.
        todo: one small dict for each unit of work, such as `{"split": "train", "shard": 3}`.
        num_done: units that an earlier run committed.
        resources: size of the pool.

    Raises:
        SbpError: the first one that a worker raised; what other workers committed by then stays.
    """
    items = list(todo)
    if not _announce(stage, num_done, items) or _done_here(stage, worker, arguments, items, num_done, resources):
        return
    import ray

    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _OnItem,
        fn_constructor_args=(worker, arguments),
        compute=ray.data.ActorPoolStrategy(size=min(resources.num_workers, len(items))),
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus,
    )
    dataset.set_name(stage)  # as the dashboard lists it
    _follow(stage, dataset.iter_rows(), len(items), num_done)


def run_tasks(
    stage: str,
    worker: type,
    arguments: tuple[Any, ...],
    todo: Iterable[dict[str, Any]],
    *,
    num_done: int,
    resources: Resources,
    at_once: int = 1,
) -> None:
    """The same as `map_shards` with Ray tasks: for workers that are cheap to build.

    A pool of Ray Data takes seconds to start; a stage of many short steps would spend its time on that. A task whose
    process dies is run again, three times. A task takes `at_once` items and works on them in as many threads: for
    workers that keep no state and spend their time outside of Python.
    """
    items = list(todo)
    if not _announce(stage, num_done, items) or _done_here(stage, worker, arguments, items, num_done, resources):
        return
    import ray

    task = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus)(_run_items)
    shared = ray.put((worker, arguments))
    waiting = iter([items[i : i + at_once] for i in range(0, len(items), at_once)])

    def finished() -> Iterator[dict[str, Any]]:
        running = [task.remote(shared, some) for some in itertools.islice(waiting, resources.num_workers)]
        while running:
            [done], running = ray.wait(running, num_returns=1)
            running += [task.remote(shared, some) for some in itertools.islice(waiting, 1)]
            yield from ray.get(done)

    _follow(stage, finished(), len(items), num_done)


def call_each(function: Callable[..., T], items: Sequence[Any], *shared: Any) -> list[T]:
    """`function(item, *shared)` of each, in order: in Ray tasks where this process has joined a Ray, else here."""
    if not metrics.ray_is_running():
        return [function(item, *shared) for item in items]
    import ray

    task, stored = ray.remote(num_cpus=1)(function), [ray.put(one) for one in shared]
    return ray.get([task.remote(item, *stored) for item in items])  # type: ignore[no-any-return]


def _done_here(
    stage: str,
    worker: type,
    arguments: tuple[Any, ...],
    items: list[dict[str, Any]],
    num_done: int,
    resources: Resources,
) -> bool:
    """Do it all in this process where `resources` say so; whether they did."""
    if not (isinstance(resources, TrainingResources) and resources.in_process):
        return False
    _follow(stage, map(_OnItem(worker, arguments), items), len(items), num_done)
    return True


def _run_items(shared: tuple[type, tuple[Any, ...]], items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(_OnItem(*shared), items))


def _announce(stage: str, num_done: int, items: list[dict[str, Any]]) -> bool:
    if num_done:
        logger.info(f"{stage} | {num_done} of {num_done + len(items)} shards are there already")
    return bool(items)


def _follow(stage: str, rows: Iterable[dict[str, Any]], num_items: int, num_done: int) -> None:
    """Report each finished item's counts as metrics and progress; raise the first error."""
    total = num_done + num_items
    progress = Progress(stage, total, "shards", done=num_done)
    finished = num_done
    documents, start = 0, time.monotonic()
    for row in rows:
        finished += 1
        if row["error"]:
            raise SbpError(row["error"])
        stats = json.loads(row["stats"])
        for name in ("documents", "tokens", "padding_tokens", "pairs"):
            metrics.count(f"sbp_{name}", stats.get(name, 0), stage=stage)
        metrics.count_drops(stats.get("drops", {}), stage=stage)
        documents += stats.get("documents", 0)
        metrics.gauge("sbp_documents_per_s", documents / (time.monotonic() - start), stage=stage)
        metrics.gauge("sbp_progress", finished / total, stage=stage)
        progress.advance()


class _OnItem:
    """Adapts a worker to Ray Data's rows. An error the user can fix travels as a row, since Ray would wrap it."""

    def __init__(self, worker: Callable[..., Callable[[dict[str, Any]], Stats]], arguments: tuple[Any, ...]) -> None:
        self._error = ""
        try:
            self._worker = worker(*arguments)
        except SbpError as error:
            self._error = str(error)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        if not self._error:
            try:  # one string: reasons differ from row to row
                return {"stats": json.dumps(self._worker(item)), "error": ""}
            except SbpError as error:
                return {"stats": "", "error": str(error)}
            except OSError as error:
                if not (said := out_of_room(error)):
                    raise
                return {"stats": "", "error": said}
        return {"stats": "", "error": self._error}


def add_stats(parts: Iterable[Stats]) -> Stats:
    """Add up counts key by key; nested dicts too."""
    total: Stats = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, dict):
                total[key] = add_stats([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return total
