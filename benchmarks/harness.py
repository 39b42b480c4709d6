"""What the benchmarks share: turns, one line of JSON for each comparison, the machine, peak memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from sbp_ray.cluster import MemoryMeter
from sbp_ray.processor import memory_bytes, num_cpus
from sbp_ray.provenance import cpu_line

_X86 = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_ARM = ("asimddp", "i8mm", "bf16")
"""Linux's names of what decides which arithmetic is fast."""


def alternate(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every case `rounds` times, in turn: what slows the machine for a while slows all of them.

    Args:
        cases: by name, a function that does the work once and returns what it measured.

    Returns:
        By name, the measurements in the order in which they were made. Report their median.
    """
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, measure in cases.items():
            measured[name].append(measure())
    return measured


def emit(
    benchmark: str,
    case: str,
    metric: str,
    unit: str,
    ours: float,
    peer_name: str,
    peer: float,
    *,
    higher_is_better: bool,
) -> float:
    """Print one comparison as a line of JSON.

    Returns:
        `ratio`: above 1 ours is better, whichever way the metric points.
    """
    ratio = ours / peer if higher_is_better else peer / ours
    line = {
        "benchmark": benchmark,
        "case": case,
        "metric": metric,
        "unit": unit,
        "ours": _rounded(ours),
        "peer_name": peer_name,
        "peer": _rounded(peer),
        "ratio": _rounded(ratio),
        "hardware": hardware(),
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)
    return ratio


def _rounded(value: float) -> float:
    """To 4 significant digits: the rest is noise."""
    return float(f"{value:.4g}")


def hardware() -> str:
    """CPU model, what it can do, cores that this process may use, memory, and the GPU if torch sees one."""
    parts = [
        cpu_line("model name") or "CPU",
        " ".join(_abilities()),
        f"{num_cpus()} cores",
        f"{memory_bytes() / 2**30:.0f} GiB",
    ]
    import torch

    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _abilities() -> list[str]:
    """Also those that the switches of libraries hide from them."""
    has = (cpu_line("flags") or cpu_line("Features")).split()
    return [name for name in (*_X86, *_ARM) if name in has]


class PeakMemory(MemoryMeter):
    """Looks often enough for a benchmark."""

    def __init__(self, pid: int | None = None) -> None:
        super().__init__(every_s=0.2, pid=pid)
