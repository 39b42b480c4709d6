"""How far a generation is, how fast, and what it costs: on the terminal, and on the metrics endpoint."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sbp_ray import metrics
from sbp_ray.logs import Progress

_STAGE = "synthesize"
_EVERY_S = 2.0


def _new_tally() -> Any:
    """An actor that adds up what the workers finish. It lives on the driver's node, and with it."""

    @ray.remote(num_cpus=0)
    class Tally:  # in a function, so that its process imports none of this module: 0.2 GiB and 5 s less
        def __init__(self) -> None:
            self._counts: dict[str, int] = {}

        def add(self, counts: dict[str, int]) -> None:
            for name, count in counts.items():
                self._counts[name] = self._counts.get(name, 0) + count

        def read(self) -> dict[str, int]:
            return self._counts

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Tally.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


class Reporter:
    """Turns the tally into progress lines and metrics."""

    def __init__(self, total: int, *, done: int, dollars_per_node_hour: float) -> None:
        self.tally = _new_tally()
        self._total, self._done, self._price = total, done, dollars_per_node_hour
        self._progress = Progress(_STAGE, total, "documents", done=done)
        self._before: Counter[str] = Counter()
        self._at = time.monotonic()
        self.dollars = 0.0
        self.tokens = 0

    def report(self) -> None:
        """One line, if something was finished since the last one."""
        counts: Counter[str] = Counter(ray.get(self.tally.read.remote()))
        now = time.monotonic()
        elapsed_s, self._at = now - self._at, now
        new, self._before = counts - self._before, counts
        rate = new["tokens"] / elapsed_s
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


@contextmanager
def reported(total: int, *, done: int, dollars_per_node_hour: float) -> Iterator[Reporter]:
    """Report while the block runs, and once more when it ends."""
    reporter = Reporter(total, done=done, dollars_per_node_hour=dollars_per_node_hour)
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(_EVERY_S):
            reporter.report()
        reporter.report()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield reporter
    finally:
        stop.set()
        thread.join()
