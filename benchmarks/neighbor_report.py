"""What benchmarks/neighbors.py says in the end: a table for people, one line of JSON for each comparison."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness import emit
from neighbor_methods import OURS

MIN_RECALL = 0.95
_BENCHMARK = "neighbors"
_GROWTH = ("clustered-100000", "clustered-1000000")
_MAX_GROWTH = 1.3  # of the time for a vector, from the first of these sets to the second: the goal

Measurement = dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """Medians of the rounds of one method on one case."""

    num: int
    dim: int
    rounds: int
    seconds: float
    cpu_s: float | None
    """Of all CPUs together; earlier measurements lack it."""
    build_s: float | None
    recall: float
    peak_gib: float
    params: dict[str, Any]

    @property
    def counts(self) -> bool:
        """Whether it reached the recall, and so may be compared."""
        return self.recall >= MIN_RECALL

    @property
    def vector_ms(self) -> float:
        """Time for a vector."""
        return self.seconds / self.num * 1e3


def report(results: list[Measurement], cases: Sequence[str], methods: Sequence[str]) -> None:
    """Print the table to stderr, then the lines to stdout."""
    found = {
        (case, method): _medians(rows)
        for case in cases
        for method in methods
        if (rows := [row for row in results if row["case"] == case and row["method"] == method])
    }
    for line in _table(found):
        print(line, file=sys.stderr)
    for case in cases:
        _compare(case, {method: found[case, method] for method in methods if (case, method) in found})
    small, large = (found.get((case, OURS)) for case in _GROWTH)
    if small and large and small.counts and large.counts:
        growth = large.vector_ms / small.vector_ms
        case = f"{_GROWTH[1]} beside {_GROWTH[0]}"
        emit(_BENCHMARK, case, "growth of time a vector", "x", growth, "goal", _MAX_GROWTH, higher_is_better=False)


def _medians(rows: list[Measurement]) -> Figures:
    """Of the newest settings, and for ours code, on the newest hardware alone: others are other methods."""
    rows = [row for row in rows if all(row[key] == rows[-1][key] for key in ("params", "hardware"))]

    def median(key: str) -> float:
        return statistics.median(row[key] for row in rows)

    return Figures(
        num=rows[-1]["num"],
        dim=rows[-1]["dim"],
        rounds=len(rows),
        seconds=median("seconds"),
        cpu_s=median("cpu_s") if all("cpu_s" in row for row in rows) else None,
        build_s=median("build_s") if "build_s" in rows[-1] else None,
        recall=median("recall"),
        peak_gib=median("peak_gib"),
        params=rows[-1]["params"],
    )


def _compare(case: str, by_method: dict[str, Figures]) -> None:
    """Time and memory beside each peer, the fastest peer last."""
    ours = by_method.pop(OURS, None)
    if ours is None or not ours.counts:
        return
    peers = [(name, peer) for name, peer in by_method.items() if peer.counts]
    for name, peer in sorted(peers, key=lambda item: -item[1].seconds):
        emit(_BENCHMARK, case, "peak memory", "GiB", ours.peak_gib, name, peer.peak_gib, higher_is_better=False)
        emit(_BENCHMARK, case, "time", "s", ours.seconds, name, peer.seconds, higher_is_better=False)


def _table(found: dict[tuple[str, str], Figures]) -> list[str]:
    heads = "vectors|method|time, s|CPU, s|of it building|ms a vector|recall@10|memory, GiB|beside ours|rounds|settings"
    lines = [f"| {heads.replace('|', ' | ')} |", "|---" * (heads.count("|") + 1) + "|"]
    for (case, method), figures in found.items():
        ours = found.get((case, OURS))
        beside = f"{figures.seconds / ours.seconds:.2f} x the time" if ours and method != OURS else ""
        recall = f"{figures.recall:.4f}" + ("" if figures.counts else f" < {MIN_RECALL}: not compared")
        build = "" if figures.build_s is None else f"{figures.build_s:.1f}"
        settings = ", ".join(f"{name} {value}" for name, value in figures.params.items() if value is not None)
        cells = (
            f"{case}: {figures.num:,} x {figures.dim}",
            method,
            f"{figures.seconds:.1f}",
            "" if figures.cpu_s is None else f"{figures.cpu_s:.1f}",
            build,
            f"{figures.vector_ms:.3f}",
            recall,
            f"{figures.peak_gib:.2f}",
            beside,
            str(figures.rounds),
            settings,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines
