"""Trackers get each step once, from a process that no training depends on. With the real libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sbp_ray import tracking as module
from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.config import TrackingConfig
from sbp_ray.errors import SbpError
from sbp_ray.tracking import name_run, refuse_missing_library, track_training
from sbp_ray.training.journal import METRICS


@pytest.fixture
def out(tmp_path: Path) -> Artifact:
    artifact = Artifact("base_lm", str(tmp_path / "demo" / "5_base_lm"))
    recipe = {"settings": {"pretrain": {"seed": 3, "peak_lr": 0.01}}}
    artifact.write_json(STARTED, {"fingerprint": "f", "started_at": "now", "recipe": recipe})
    return artifact


@pytest.fixture(autouse=True)
def time_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the libraries to start and to send what there is, whatever else the machine does."""
    monkeypatch.setattr(module, "_LAST_S", 500)


def write(out: Artifact, steps: range) -> None:
    """Rows as the journal appends them, one with a held-out loss."""
    rows = [
        {"step": s, "tokens": 10 * s, "loss_nats": 5.0 - s, "mfu": None} | ({"validation_nats": 1.5} if s == 2 else {})
        for s in steps
    ]
    Path(out.url).mkdir(parents=True, exist_ok=True)
    with open(out.path(METRICS), "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_has_each_step_once_whatever_was_trained_twice(out: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracking = TrackingConfig(tensorboard=str(tmp_path / "boards"))
    with track_training(tracking, out, METRICS):
        write(out, range(1, 4))
    with track_training(tracking, out, METRICS):  # a restart from step 1
        write(out, range(2, 5))
    found = scalars(tmp_path / "boards" / "demo" / "5_base_lm")
    assert found["loss_nats"] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert found["validation_nats"] == [(2, 1.5)]
    assert found["tokens"] == [(1, 10), (2, 20), (3, 30), (4, 40)]
    assert "mfu" not in found  # of no number


def test_steps_arrive_while_the_training_goes_on_and_once_where_a_restart_writes_the_file_anew(
    out: Artifact, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    write(out, range(1, 3))
    with open(out.path(METRICS), "a") as file:
        file.write('{"step": 3, "loss_')  # as far as it is written
    with track_training(TrackingConfig(tensorboard=str(tmp_path / "boards")), out, METRICS):
        folder = tmp_path / "boards" / "demo" / "5_base_lm"
        while not folder.exists() or len(scalars(folder).get("loss_nats", [])) < 2:
            time.sleep(0.2)  # pytest's own timeout ends it
        assert scalars(folder)["loss_nats"] == [(1, 4.0), (2, 3.0)]
        Path(out.path(METRICS)).write_text("")
        write(out, range(1, 2))
        with open(out.path(METRICS), "a") as file:
            file.write('{"step": 2, "loss_nats": 3.25, "made_by": "the restart, whose lines are of another length"}\n')
        write(out, range(3, 5))
    assert scalars(folder)["loss_nats"] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]


def test_wandb_gets_the_steps_offline(out: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path))):
        monkeypatch.setenv(name, value)
    write(out, range(1, 4))
    with track_training(TrackingConfig(wandb="sbp"), out, METRICS):
        pass
    [log] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    data = log.read_bytes()
    for text in (b"loss_nats", b"validation_nats", b"peak_lr"):
        assert text in data


def test_a_tracker_that_cannot_be_opened_is_named_and_the_others_go_on(
    out: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "wandb.py").write_text("raise RuntimeError('no key')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write(out, range(1, 3))
    with track_training(TrackingConfig(tensorboard=str(tmp_path / "boards"), wandb="sbp"), out, METRICS):
        pass
    assert scalars(tmp_path / "boards" / "demo" / "5_base_lm")["loss_nats"] == [(1, 4.0), (2, 3.0)]
    assert "tracking | wandb gets nothing more: RuntimeError: no key" in capfd.readouterr().err


def test_a_tracker_that_hangs_or_dies_holds_up_nobody(
    out: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("import os, time\nwhile True: time.sleep(1)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(module, "_LAST_S", 0.5)
    with track_training(TrackingConfig(wandb="sbp"), out, METRICS):
        write(out, range(1, 3))
    (tmp_path / "wandb.py").write_text("import os\nos._exit(3)")
    with track_training(TrackingConfig(wandb="sbp"), out, METRICS):
        write(out, range(3, 4))
    assert len(Path(out.path(METRICS)).read_text().splitlines()) == 3


def test_an_error_of_the_training_passes_through(out: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with (
        pytest.raises(SbpError, match="diverged"),
        track_training(TrackingConfig(tensorboard=str(tmp_path / "boards")), out, METRICS),
    ):
        raise SbpError("diverged")


def test_a_library_that_is_not_installed_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse_missing_library(TrackingConfig())
    with pytest.raises(
        SbpError, match=r"tracking.wandb=x: wandb is not installed: in the checkout, uv pip install -e '.\[wandb\]'"
    ):
        refuse_missing_library(TrackingConfig(wandb="x"))


def test_nothing_is_started_where_nothing_is_configured(out: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.Popen", refuse)
    with track_training(TrackingConfig(), out, METRICS):
        pass


def test_a_run_is_named_by_its_folders(out: Artifact) -> None:
    assert name_run(out) == "demo/5_base_lm"
    assert name_run(Artifact("lm", f"{out.url}/artifacts/lm-1")) == "5_base_lm/lm-1"


def test_the_process_imports_no_torch(out: Artifact) -> None:
    program = "import sys; import sbp_ray.tracking; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env={**os.environ}).returncode == 0
