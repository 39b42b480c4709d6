"""`dtype: auto` of a training: what it comes to, who decides, and that deciding leaves no trace in the numbers."""

import json
import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from tiny import tiny_plan, weights_of

from sbp_ray.training import dtype_choice
from sbp_ray.training.dtype_choice import SETTLED, read_settled
from sbp_ray.training.launch import run_plan
from sbp_ray.training.loop import train
from sbp_ray.training.packed import read_packed


def _pretend(monkeypatch: pytest.MonkeyPatch, *seconds_of_ranks: dict[str, float]) -> None:
    """Steps take so long, as each rank sees it."""
    monkeypatch.setattr(
        dtype_choice, "_time_steps", lambda plan, device: seconds_of_ranks[dist.get_rank()][plan.config.dtype]
    )


def test_the_first_rank_decides_and_who_goes_on_keeps_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed `auto` has the weights of bfloat16 by name, though rank 1, and later both, say float32."""
    fast, slow = {"float32": 1.5, "bfloat16": 1.0}, {"float32": 1.0, "bfloat16": 3.0}
    auto, named, other = (
        tiny_plan(tmp_path / dtype, num_workers=2, dtype=dtype, checkpoint_every=2)
        for dtype in ("auto", "bfloat16", "float32")
    )
    _pretend(monkeypatch, fast, slow)
    run_ranks(2, tmp_path, lambda: train(auto, stop_after=2))
    _pretend(monkeypatch, slow, slow)
    for plan in (auto, named, other):
        run_ranks(2, tmp_path, lambda plan=plan: train(plan))
    torch.testing.assert_close(weights_of(auto), weights_of(named), rtol=0, atol=0)
    assert any(not torch.equal(weight, weights_of(other)[name]) for name, weight in weights_of(named).items())
    assert json.loads(auto.out.read_bytes(SETTLED)) == {"dtype": "bfloat16", "step_s": fast} == read_settled(auto)
    assert read_settled(other) == {"dtype": "float32"}
    assert "| dtype | bfloat16 |" in auto.out.read_bytes("model/README.md").decode()


def test_measuring_whole_steps_changes_no_number(tmp_path: Path) -> None:
    """Nothing is pretended: whatever is faster here, the weights are those of the type by its name."""
    auto = tiny_plan(tmp_path / "auto", num_workers=2, dtype="auto", dropout=0.1, micro_batch_rows=1)
    run_ranks(2, tmp_path, lambda: train(auto))
    settled = read_settled(auto)
    assert settled["step_s"].keys() == {"float32", "bfloat16"} and min(settled["step_s"].values()) > 0
    named = tiny_plan(tmp_path / "named", num_workers=2, dtype=settled["dtype"], dropout=0.1, micro_batch_rows=1)
    run_ranks(2, tmp_path, lambda: train(named))
    torch.testing.assert_close(weights_of(auto), weights_of(named), rtol=0, atol=0)


@pytest.mark.parametrize(("bfloat16_s", "dtype", "tolerance"), [(0.5, "bfloat16", 0.25), (1.0, "float32", 1e-3)])
def test_a_manifest_says_what_it_came_to_and_the_export_is_checked_in_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bfloat16_s: float, dtype: str, tolerance: float
) -> None:
    step_s = {"float32": 1.0, "bfloat16": bfloat16_s}
    _pretend(monkeypatch, step_s)
    plan = tiny_plan(tmp_path, dtype="auto", num_steps=2, in_process=True)
    stats = run_plan(plan, {"real": read_packed(plan.out, "real")})
    assert stats["computed_in"] == {"dtype": dtype, "step_s": step_s}
    assert stats["export"]["tolerance_nats"] == tolerance


@pytest.mark.parametrize(("bfloat16_s", "chosen"), [(0.83, "bfloat16"), (0.84, "float32"), (2.0, "float32")])
def test_bfloat16_must_be_a_fifth_faster_and_a_line_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    bfloat16_s: float,
    chosen: str,
) -> None:
    """1 / 0.83 is 1.205, and 1 / 0.84 is 1.190."""
    monkeypatch.setattr(logging.getLogger("sbp_ray"), "propagate", True)
    _pretend(monkeypatch, {"float32": 1.0, "bfloat16": bfloat16_s})
    with caplog.at_level(logging.INFO, logger=dtype_choice.__name__):
        train(tiny_plan(tmp_path, dtype="auto"), stop_after=1)
    [line] = [line for line in caplog.messages if "dtype=auto" in line]
    times = f"1 s in float32 and {bfloat16_s:g} s in bfloat16"
    assert line == f"tiny | computes in {chosen} (dtype=auto): a step was measured to take {times}"


def test_steps_too_short_for_the_clock_are_done_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, {"float32": 0.0, "bfloat16": 0.0})
    plan = tiny_plan(tmp_path, dtype="auto")
    [found] = run_ranks(1, tmp_path, lambda: dtype_choice.settle_dtype(plan, torch.device("cpu")).config.dtype)
    assert found == "float32"


@pytest.mark.parametrize(("has_bfloat16", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_on_a_gpu_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    plan = tiny_plan(tmp_path, dtype="auto")
    [found] = run_ranks(1, tmp_path, lambda: dtype_choice.settle_dtype(plan, torch.device("cuda")).config.dtype)
    assert found == dtype and read_settled(plan) == {"dtype": dtype, "step_s": None}
