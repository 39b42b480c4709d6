"""How fast training could be, how fast it is, and how much memory it takes."""

from __future__ import annotations

import resource
import time

import torch

from sbp_ray.config import Dtype

PEAK_TFLOPS = {"B200": 2250.0, "H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10G": 70.0, "L4": 121.0}
"""Dense bfloat16 with float32 sums, from NVIDIA's data sheets (SXM where there are several); by part of the name."""
_MATRIX = 1024  # rows and columns of the products that a CPU is measured with
_ROUNDS = 5


def peak_flops(device: torch.device, dtype: Dtype) -> float | None:
    """FLOP/s of one rank's device that MFU refers to; None for a GPU that is not in the table.

    A GPU's from its data sheet, whatever `dtype` is. A CPU's is measured: the best of a few large matrix products in
    `dtype` on this process' threads.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((tflops * 1e12 for part, tflops in PEAK_TFLOPS.items() if part in name), None)
    left, right = torch.ones(2, _MATRIX, _MATRIX, dtype=getattr(torch, dtype))
    best_s = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        left @ right
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * _MATRIX**3 / best_s


def memory_gib(device: torch.device) -> float:
    """The most memory that this rank has held: of its GPU, or of its process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
