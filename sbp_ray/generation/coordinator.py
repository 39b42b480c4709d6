"""What the workers of a generation know of one another, and how far they are, on the terminal and as metrics.

`coordinate` starts an actor (`coordinator_class`), which the workers tell of each commit, and a thread that reports
what the actor has added up (`Reporter`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sbp_ray import metrics
from sbp_ray.logs import Progress

logger = logging.getLogger(__name__)

_STAGE = "synthesize"
_EVERY_S = 2.0
_RATE_S = 60.0


def coordinator_class() -> type:
    """The class of the actor; made in a function, so that its process imports none of this module: 0.2 GiB, 5 s."""

    class Coordinator:
        """Adds up what the workers have committed, and returns to each what it needs to know of the others."""

        def __init__(self, bad: dict[int, int], num_todo: int, num_workers: int) -> None:
            """Bad samples of each finished shard, shards to do, and workers."""
            self._counts: dict[str, int] = {}
            self._bad, self._num_todo, self._num_workers = bad, num_todo, num_workers
            self._seen: set[int] = set()
            self._open: dict[int, str] = {}

        def committed(self, worker: str, shard: int, bad: int, counts: dict[str, int]) -> tuple[int, float]:
            """Count; returns the bad samples of all shards, and the worker's share of the slots, usually 1.

            Once no shard is left to open, the slots of workers that have nothing to do are shared by the others: else
            their engines would idle.
            """
            self._bad[shard] = bad  # not added: a worker that takes a shard over counts what is in its segments
            self._seen.add(shard)
            self._open[shard] = worker
            for name, count in counts.items():
                self._counts[name] = self._counts.get(name, 0) + count
            is_all_open = len(self._seen) >= self._num_todo
            share = self._num_workers / len(set(self._open.values())) if is_all_open else 1.0
            return sum(self._bad.values()), share

        def closed(self, worker: str, shard: int) -> None:
            """All samples of a shard are there."""
            if self._open.get(shard) == worker:
                del self._open[shard]

        def read(self) -> dict[str, int]:
            return self._counts

    return Coordinator


class Reporter:
    """Turns the coordinator's counts into progress lines and metrics."""

    def __init__(self, coordinator: Any, total: int, *, done: int, dollars_per_node_hour: float) -> None:
        self._coordinator = coordinator
        self._total, self._done, self._price = total, done, dollars_per_node_hour
        self._progress = Progress(_STAGE, total, "documents", done=done)
        self._before: Counter[str] = Counter()
        self._at = time.monotonic()
        self._window = deque([(self._at, 0)])
        self._has_failed = False
        self.dollars = 0.0
        self.tokens = 0

    def report(self) -> None:
        """One line, if something was finished since the last one."""
        counts: Counter[str] = Counter(ray.get(self._coordinator.read.remote()))
        now = time.monotonic()
        nodes = sum(node["Alive"] for node in ray.nodes())
        self.dollars += self._price * nodes * (now - self._at) / 3600
        new, self._at, self._before = counts - self._before, now, counts
        self.tokens = counts["tokens"]
        rate = self._rate(now)
        per_billion = self.dollars / self.tokens * 1e9 if self.tokens else 0.0
        for name in ("documents", "tokens", "prompt_tokens", "prompt_tokens_cached"):
            metrics.count(f"sbp_{name}", new[name], stage=_STAGE)
        for name, value in {
            "tokens_per_s": rate,
            "progress": (self._done + counts["documents"]) / self._total,
            "dollars_per_billion_tokens": per_billion,
            "eta_s": self._progress.eta_s(),
        }.items():
            metrics.gauge(f"sbp_{name}", value, stage=_STAGE)
        if new["documents"]:
            cost = f" | ${per_billion:,.0f} per billion tokens" if self._price else ""
            self._progress.advance(new["documents"], f"{rate:,.0f} tokens/s{cost}")

    def _rate(self, now: float) -> float:
        """Tokens a second over the last `_RATE_S`: what is committed comes in lumps."""
        self._window.append((now, self.tokens))
        while len(self._window) > 2 and now - self._window[1][0] >= _RATE_S:
            self._window.popleft()
        since, before = self._window[0]
        return (self.tokens - before) / (now - since) if now > since else 0.0

    def report_or_warn(self) -> None:
        """The same; warn of the first report that fails, and go on: no job should end for its progress."""
        try:
            self.report()
        except Exception as error:  # noqa: BLE001  whatever Ray's state, metrics or a node may raise
            if not self._has_failed:
                logger.warning(f"{_STAGE} | no progress can be shown just now: {type(error).__name__}: {error}")
            self._has_failed = True

    def report_until(self, stop: threading.Event) -> None:
        """Report every two seconds, and once more at the end."""
        while not stop.wait(_EVERY_S):
            self.report_or_warn()
        self.report_or_warn()

    def summary(self, seconds: float) -> dict[str, Any]:
        """What this run did; earlier runs of the same artifact are not in it."""
        return {
            "tokens_generated": self.tokens,
            "wall_s": round(seconds, 1),
            "tokens_per_s": round(self.tokens / seconds, 1),
            "dollars": round(self.dollars, 2),
            "dollars_per_billion_tokens": round(self.dollars / self.tokens * 1e9, 2) if self.tokens else None,
        }


@contextmanager
def coordinate(
    total: int, *, done: int, bad: dict[int, int], num_todo: int, num_workers: int, dollars_per_node_hour: float
) -> Iterator[tuple[Reporter, Any]]:
    """Report while the block runs; with the actor that the workers tell, which lives on the driver's node.

    Args:
        total: samples of the artifact.
        done: those that earlier runs have committed.
        bad: of each finished shard, samples that could not be written.
        num_todo: shards that are not finished.
        num_workers: workers that share them.
        dollars_per_node_hour: price of a node.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0)(coordinator_class()).options(scheduling_strategy=here)
    coordinator = actor.remote(bad, num_todo, num_workers)
    reporter = Reporter(coordinator, total, done=done, dollars_per_node_hour=dollars_per_node_hour)
    stop = threading.Event()
    thread = threading.Thread(target=reporter.report_until, args=(stop,), daemon=True)
    thread.start()
    try:
        yield reporter, coordinator
    finally:
        stop.set()
        thread.join()
