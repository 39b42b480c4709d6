"""What this machine's processor does fast, and how much of it this process may use.

Names of abilities do not tell which arithmetic is fast: a Xeon with bfloat16 instructions and without AMX multiplies
bfloat16 half as fast as float32, and PyTorch's product of 8-bit integers is a plain loop where oneDNN has no kernel for
the processor. So speeds are measured, which takes some milliseconds once in each process. They are measured by the time
that this process had, so that what else runs on the machine changes no choice.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

SETTLED = "dtype.json"
"""Where an artifact has the type that `auto` came to, in which it is gone on with wherever that is."""
_ROWS, _COLUMNS, _DEPTH = 64, 256, 384
"""Shape of the product that is measured: 0.1 ms in float32, 6 ms in the plain loop of 8-bit integers."""
_TURNS, _RUNS = 3, 5
"""Turns of both types, and runs of a turn. The fastest counts: the others may have shared a core or its caches."""
_FASTER = 1.2
"""How many times as fast as float32 another type must be to be worth its rounding or its conversions."""
_LOCK = threading.Lock()
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def num_cpus() -> int:
    """CPUs that the affinity and the cgroups of this process leave to it."""
    import joblib

    quotas = [_share(folder) for folder in _cgroup_folders("cpu")]
    return min([int(joblib.cpu_count()), *(max(1, math.ceil(quota)) for quota in quotas if math.isfinite(quota))])


def memory_bytes() -> int:
    """Memory that this machine and the cgroups of this process leave to it."""
    import psutil

    limits = []
    for folder in _cgroup_folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = _words(folder / name)
            if words and words[0].isdigit():
                limits.append(int(words[0]))
    return min([int(psutil.virtual_memory().total), *limits])


def _cgroup_folders(controller: str) -> Iterator[Path]:
    """Of this process's group and of those that it is in, of both versions: each may set a limit."""
    for line in _OWN_CGROUPS.read_text(encoding="utf-8").splitlines() if _OWN_CGROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = _CGROUPS / controller if controllers else _CGROUPS
            group = root / path.lstrip("/")
            yield from [folder for folder in [group, *group.parents] if folder.is_relative_to(root) and folder.is_dir()]


def _share(folder: Path) -> float:
    """CPUs' worth of time that a cgroup may use."""
    quota = _words(folder / "cpu.max") or [
        *_words(folder / "cpu.cfs_quota_us"),
        *_words(folder / "cpu.cfs_period_us"),
    ]
    is_limited = len(quota) == 2 and quota[0].isdigit()  # else "max", or -1
    return int(quota[0]) / int(quota[1]) if is_limited else math.inf


def _words(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split() if file.is_file() else []


def choose_dtype(use: str, dtype: torch.dtype) -> torch.dtype:
    """`dtype` where this processor multiplies it clearly faster than float32, else float32.

    Measured once in each process for each use, which a line of the log tells.

    Args:
        use: begins the line of the log.
        dtype: `torch.int8` or a floating type.
    """
    with _LOCK:
        return _choose_dtype(use, dtype)


@functools.cache
def _choose_dtype(use: str, dtype: torch.dtype) -> torch.dtype:
    import torch

    speed, float_speed = compare_with_float32(dtype)
    chosen = dtype if is_worth(speed, float_speed) else torch.float32
    logger.info(
        f"{use} | products in {name_dtype(chosen)}: this processor does {speed:,.0f} billion operations a second in "
        f"{name_dtype(dtype)}, {float_speed:,.0f} in float32"
    )
    return chosen


def is_worth(speed: float, float_speed: float) -> bool:
    """Whether another type than float32 is taken, by how much of the same work each does in a second."""
    return speed >= _FASTER * float_speed


def choose_gpu_dtype() -> torch.dtype:
    """bfloat16 where this process's GPU computes in it, else float32."""
    import torch

    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32


def compare_with_float32(dtype: torch.dtype) -> tuple[float, float]:
    """Billion multiplications and additions a second of one thread in a product of matrices: in `dtype`, in float32."""
    import torch

    turns = [(measure_products(dtype), measure_products(torch.float32)) for _ in range(_TURNS)]
    return max(speed for speed, _ in turns), max(speed for _, speed in turns)


def measure_products(dtype: torch.dtype) -> float:
    """Billion multiplications and additions a second of one thread in a product of matrices.

    Of two threads one would wait for the other wherever a processor has less than two cores for them, and be measured
    as slow in every type.
    """
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure_in_one_thread(dtype)
    finally:
        torch.set_num_threads(num_threads)


def _measure_in_one_thread(dtype: torch.dtype) -> float:
    import torch

    rows, columns = torch.ones(_ROWS, _DEPTH, dtype=dtype), torch.ones(_COLUMNS, _DEPTH, dtype=dtype)
    multiply = torch._int_mm if dtype == torch.int8 else torch.matmul
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + _RUNS):
            start, number, spent = time.thread_time(), 0, 0.0
            while not spent:  # where this clock goes in ticks, as in some sandboxes, many products fit into one
                multiply(rows, columns.t())
                number, spent = number + 1, time.thread_time() - start
            seconds.append(spent / number)
    return 2 * _ROWS * _COLUMNS * _DEPTH / min(seconds[1:]) / 1e9  # the first one has kernels generated


def name_dtype(dtype: torch.dtype) -> str:
    """As settings have it."""
    return str(dtype).removeprefix("torch.")
