"""Ray tasks over shards: so many at a time, each one's result as it ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import call_for_outcome
from sbp_ray.schema import Split, shard_of
from sbp_ray.shards import shard_name

Key = TypeVar("Key")

AT_ONCE = 64
"""Tasks whose results are not yet taken in; bounds the object store, not the cluster."""
_TASKS = 64  # into which a scan of the whole corpus is cut: what each sends back is as large as the samples


def results(calls: Sequence[tuple[Key, Callable[[], Any]]], at_once: int = AT_ONCE) -> Iterator[tuple[Key, Any]]:
    """Start tasks, at most `at_once` at a time, and yield each one's key and result as it ends."""
    import ray

    waiting = list(reversed(calls))
    running: dict[Any, Key] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            key, start = waiting.pop()
            running[start()] = key
        [ready], _ = ray.wait(list(running), num_returns=1)
        yield running.pop(ready), call_for_outcome(ray.get, ready).get()


def shard_calls(
    function: Callable[..., Any], artifact: Artifact, by_shard: dict[str, Any], **options: Any
) -> list[tuple[str, Callable[[], Any]]]:
    """For each shard, a task `function(artifact, shard, its value, **options)` on one CPU."""
    import ray

    task = ray.remote(num_cpus=1)(function)
    return [(name, partial(task.remote, artifact, name, value, **options)) for name, value in by_shard.items()]


def in_parts(names: Sequence[str]) -> list[list[str]]:
    """The shards cut into so many parts that their results are few and all cores have something to do."""
    each = -(-len(names) // _TASKS)
    return [list(names[start : start + each]) for start in range(0, len(names), each)] if names else []


def by_shard(doc_ids: Iterable[bytes], artifact: Artifact, split: Split) -> dict[str, list[bytes]]:
    """Ids of a split's documents by the shard that holds them."""
    num_shards = len(artifact.files(split, ".parquet"))
    found = defaultdict(list)
    for doc_id in sorted(doc_ids):
        found[shard_name(split, shard_of(doc_id, num_shards))].append(doc_id)
    return dict(found)
