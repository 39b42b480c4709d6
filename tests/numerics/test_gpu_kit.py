"""The kit's cases: at a tiny size on a CPU, which tests them; on a GPU, where they count (`pytest -m gpu`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu
from gpu_setting import Setting, Skip, make_setting

KIT = Path(__file__).parents[2] / "benchmarks"
ASSERTING = [name for piece in ("facts", "correct") for name in gpu.PIECES[piece]]
MEASURING = ["1 B, ours", "1 B, plain", "where a step's time goes, 1 B", "repetition, seed 0", "sbp, seed 0"]
MEASURING += gpu.PIECES["data"]
ABSENT = ("ray", "vllm", "pyarrow", "faiss", "lm_eval", "numba", "matplotlib")


@pytest.fixture
def setting() -> Setting:
    torch.set_num_threads(1)
    return make_setting("cpu")


@pytest.mark.parametrize("name", [*ASSERTING, *MEASURING])
def test_each_case_runs_on_a_cpu_and_measures_nothing_there(name: str, setting: Setting) -> None:
    case = next(cases[name] for cases in gpu.PIECES.values() if name in cases)
    try:
        found = case(setting)
    except Skip as skip:
        assert str(skip)
    else:
        assert not any("tokens/s" in key or key in ("tokens_per_s", "mfu") for key in found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("name", ASSERTING)
def test_on_a_gpu(name: str, tmp_path: Path) -> None:
    [line] = gpu.run_all([name], "cuda", tmp_path, 600)
    assert line["status"] in ("ok", "skipped"), line


def test_a_case_runs_in_a_process_of_its_own_on_a_bare_machine() -> None:
    missing = f"import sys; [sys.modules.__setitem__(name, None) for name in {ABSENT}]"
    code = f"{missing}; sys.argv = ['gpu.py', '--case', 'facts', '--device', 'cpu']; import gpu; gpu.main()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=KIT, check=True, capture_output=True, text=True)
    line = json.loads(ended.stdout.splitlines()[-1])
    assert (line["case"], line["status"], line["hardware"]) == ("facts", "ok", "cpu")


def test_what_is_done_is_not_run_again_and_what_fails_or_has_no_time_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_run_in_process", lambda name, device, _: gpu.run_case(name, device))
    [first] = gpu.run_all(["compiles_once"], "cpu", tmp_path, 600)
    assert (first["status"], first["reason"]) == ("skipped", "on a CPU attention stays out of the graph")
    made = {"case": "facts", "status": "ok", "reason": "", "hardware": "cpu", "found": {"tflops": 1}}
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps(made) + "\n")
    again = gpu.run_all(["facts", "compiles_once"], "cpu", tmp_path, 1)
    assert again[0] == made
    assert (again[1]["case"], again[1]["status"], again[1]["reason"]) == ("compiles_once", "left", "no time")
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    assert gpu.table(again).splitlines()[0] == "cpu"
    assert "no time" in gpu.table(again).splitlines()[2]


def test_a_gpu_that_is_not_there_is_told_by_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = gpu.run_case("facts", "cuda")
    assert (line["status"], line["reason"], line["found"]) == ("skipped", "torch finds no GPU", {})
