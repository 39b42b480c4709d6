"""How far a generation is, how fast, and what it costs: on the terminal, and on the metrics endpoint."""

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


def tally_class() -> type:
    """The class of the actor; made in a function, so that its process imports none of this module: 0.2 GiB, 5 s."""

    class Tally:
        """Adds up what the workers have committed, and tells each what it needs to know of the others."""

        def __init__(self, bad: dict[int, int], num_todo: int, num_workers: int) -> None:
            """Bad samples of each finished shard, shards to do, and workers."""
            self._counts: dict[str, int] = {}
            self._bad, self._num_todo, self._num_workers = bad, num_todo, num_workers
            self._seen: set[int] = set()
            self._open: dict[int, str] = {}

        def committed(self, worker: str, shard: int, bad: int, counts: dict[str, int]) -> tuple[int, float]:
            """Count; returns the bad samples of all shards, and the worker's share of the slots, usually 1.

            Once no shard is left to open, the slots of those who have nothing to do are shared by the others: else
            their engines would idle.
            """
            self._bad[shard] = bad  # not added: a worker that takes a shard over says what is in its ledger
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
            """All counts."""
            return self._counts

    return Tally


def _new_tally(bad: dict[int, int], num_todo: int, num_workers: int) -> Any:
    """It lives on the driver's node, and with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0)(tally_class())
    return actor.options(scheduling_strategy=here).remote(bad, num_todo, num_workers)


class Reporter:
    """Turns the tally into progress lines and metrics."""

    def __init__(self, tally: Any, total: int, *, done: int, dollars_per_node_hour: float) -> None:
        self._tally = tally
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
        counts: Counter[str] = Counter(ray.get(self._tally.read.remote()))
        now = time.monotonic()
        elapsed_s, self._at = now - self._at, now
        new, self._before = counts - self._before, counts
        rate = self._rate(now, counts["tokens"])
        nodes = sum(node["Alive"] for node in ray.nodes())
        self.dollars += self._price * nodes * elapsed_s / 3600
        self.tokens = counts["tokens"]
        per_billion = self.dollars / self.tokens * 1e9 if self.tokens else 0.0
        for name in ("documents", "tokens", "prompt_tokens", "prompt_tokens_cached"):
            metrics.count(f"sbp_{name}", new[name], stage=_STAGE)
        share = (self._done + counts["documents"]) / self._total
        metrics.gauge("sbp_tokens_per_s", rate, stage=_STAGE)
        metrics.gauge("sbp_progress", share, stage=_STAGE)
        metrics.gauge("sbp_dollars_per_billion_tokens", per_billion, stage=_STAGE)
        metrics.gauge("sbp_eta_s", self._progress.eta_s(), stage=_STAGE)
        if new["documents"]:
            cost = f" | ${per_billion:,.0f} per billion tokens" if self._price else ""
            self._progress.advance(new["documents"], f"{rate:,.0f} tokens/s{cost}")

    def _rate(self, now: float, tokens: int) -> float:
        """Tokens a second over the last `_RATE_S`: what is committed comes in lumps."""
        self._window.append((now, tokens))
        while len(self._window) > 2 and now - self._window[1][0] >= _RATE_S:
            self._window.popleft()
        since, before = self._window[0]
        return (tokens - before) / (now - since) if now > since else 0.0

    def report_or_warn(self) -> None:
        """The same; a report that fails is said once, and the next one tried: no job should end for its progress."""
        try:
            self.report()
        except Exception as error:  # noqa: BLE001  whatever Ray's state, metrics or a node may raise
            if not self._has_failed:
                logger.warning(f"{_STAGE} | progress cannot be told just now: {type(error).__name__}: {error}")
            self._has_failed = True


@contextmanager
def reported(
    total: int, *, done: int, bad: dict[int, int], num_todo: int, num_workers: int, dollars_per_node_hour: float
) -> Iterator[tuple[Reporter, Any]]:
    """Report while the block runs, and once more when it ends; with the actor that the workers tell.

    Args:
        total: samples of the artifact.
        done: those that earlier runs have committed.
        bad: of each finished shard, samples that were never drawn.
        num_todo: shards that are not finished.
        num_workers: workers that share them.
        dollars_per_node_hour: price of a node.
    """
    tally = _new_tally(bad, num_todo, num_workers)
    reporter = Reporter(tally, total, done=done, dollars_per_node_hour=dollars_per_node_hour)
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(_EVERY_S):
            reporter.report_or_warn()
        reporter.report_or_warn()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield reporter, tally
    finally:
        stop.set()
        thread.join()
