"""What is measured of the processor."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import joblib
import pytest
import torch

from sbp_ray import processor


@pytest.mark.parametrize(("speed", "chosen"), [(500.0, torch.int8), (95.0, torch.float32), (2.6, torch.float32)])
def test_a_type_is_chosen_where_it_is_clearly_faster_and_a_line_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, speed: float, chosen: torch.dtype
) -> None:
    monkeypatch.setattr(processor, "measure_products", lambda dtype: {torch.int8: speed, torch.float32: 82.0}[dtype])
    monkeypatch.setattr(logging.getLogger("sbp_ray"), "propagate", True)
    use = f"test at {speed}"  # what is measured once in a process is measured anew for another use
    with caplog.at_level(logging.INFO, logger=processor.__name__):
        assert {processor.choose_dtype(use, torch.int8) for _ in range(3)} == {chosen}
    [line] = caplog.messages
    assert line.startswith(f"{use} | products in {str(chosen)[6:]}: ") and f"{speed:,.0f} billion" in line


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32])
def test_every_type_can_be_measured(dtype: torch.dtype) -> None:
    assert processor.measure_products(dtype) > 0


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
def test_a_processor_is_as_fast_while_others_have_it(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """A process that has to wait loses wall time, not the time that it had."""
    for name in ("matmul", "_int_mm"):
        multiply = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *matrices, own=multiply: (time.sleep(0.1), own(*matrices))[1])
    by_the_clock = 2 * 64 * 256 * 384 / 0.1 / 1e9
    assert processor.measure_products(dtype) > 2 * by_the_clock


def test_a_clock_that_goes_in_ticks_measures_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a product that takes a thousandth of a second, ten fit into a tick of a hundredth."""
    num_products = 0

    def multiply(*_: torch.Tensor) -> None:
        nonlocal num_products
        num_products += 1

    monkeypatch.setattr(torch, "matmul", multiply)
    monkeypatch.setattr(time, "thread_time", lambda: num_products // 10 / 100)
    assert processor.measure_products(torch.float32) == pytest.approx(2 * 64 * 256 * 384 / 0.001 / 1e9)


def test_measuring_leaves_the_number_of_threads_as_it_was() -> None:
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        processor.compare_with_float32(torch.bfloat16)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(num_threads)


def test_a_process_bound_to_one_cpu_has_one() -> None:
    bound_to = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(bound_to)})
        assert processor.num_cpus() == 1
    finally:
        os.sched_setaffinity(0, bound_to)


@pytest.mark.parametrize(
    ("files", "own"),
    [
        # Version 2: the process is two groups deep, and the one above it has the limit; its own has none.
        ({"job/cpu.max": "150000 100000", "job/memory.max": str(3 * 2**30), "job/step/cpu.max": "max 100000"},
         "0::/job/step"),
        # Version 1, one hierarchy for each controller.
        ({"cpu/job/cpu.cfs_quota_us": "150000", "cpu/job/cpu.cfs_period_us": "100000",
          "memory/job/memory.limit_in_bytes": str(3 * 2**30), "memory/memory.limit_in_bytes": str(2**63 - 1)},
         "4:memory:/job\n1:cpu,cpuacct:/job"),
    ],
)  # fmt: skip
def test_the_smallest_limit_of_the_groups_that_a_process_is_in_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], own: str
) -> None:
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    (tmp_path / "cgroup/job/step").mkdir(parents=True, exist_ok=True)
    (tmp_path / "own").write_text(f"{own}\n")
    monkeypatch.setattr(processor, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(processor, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(joblib, "cpu_count", lambda: 64)
    assert (processor.num_cpus(), processor.memory_bytes()) == (2, 3 * 2**30)
