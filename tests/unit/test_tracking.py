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

from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.config import TrackingConfig
from sbp_ray.errors import SbpError
from sbp_ray.training import tracking as module
from sbp_ray.training.journal import METRICS
from sbp_ray.training.tracking import flat, refuse_missing_library, run_of, tracked


@pytest.fixture
def out(tmp_path: Path) -> Artifact:
    artifact = Artifact("base_lm", str(tmp_path / "demo" / "5_base_lm"))
    recipe = {"settings": {"pretrain": {"seed": 3, "peak_lr": 0.01}}}
    artifact.write_json(STARTED, {"fingerprint": "f", "started_at": "now", "recipe": recipe})
    return artifact


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
    with tracked(tracking, out, METRICS):
        write(out, range(1, 4))
    with tracked(tracking, out, METRICS):  # a restart from step 1
        write(out, range(2, 5))
    found = scalars(tmp_path / "boards" / "demo" / "5_base_lm")
    assert found["loss_nats"] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert found["validation_nats"] == [(2, 1.5)]
    assert found["tokens"] == [(1, 10), (2, 20), (3, 30), (4, 40)]
    assert "mfu" not in found  # of no number


def test_steps_arrive_while_the_training_goes_on(out: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(out, range(1, 3))
    with tracked(TrackingConfig(tensorboard=str(tmp_path / "boards")), out, METRICS):
        folder = tmp_path / "boards" / "demo" / "5_base_lm"
        while not folder.exists() or "loss_nats" not in scalars(folder):
            time.sleep(0.2)  # pytest's own timeout ends it
        assert scalars(folder)["loss_nats"] == [(1, 4.0), (2, 3.0)]


def test_wandb_gets_the_steps_offline(out: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path))):
        monkeypatch.setenv(name, value)
    write(out, range(1, 4))
    with tracked(TrackingConfig(wandb="sbp"), out, METRICS):
        pass
    [log] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert run_of(out).id in log.name
    data = log.read_bytes()
    for text in (b"loss_nats", b"validation_nats", b"pretrain.seed"):
        assert text in data


def test_mlflow_gets_the_steps_once_and_goes_on_with_its_run(
    out: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    tracking = TrackingConfig(mlflow=uri)
    for steps in (range(1, 4), range(2, 5)):
        write(out, steps)
        with tracked(tracking, out, METRICS):
            pass
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("sbp_ray")
    [run] = client.search_runs([experiment.experiment_id])
    assert [(e.step, e.value) for e in client.get_metric_history(run.info.run_id, "loss_nats")] == [
        (1, 4.0),
        (2, 3.0),
        (3, 2.0),
        (4, 1.0),
    ]
    assert run.data.params["pretrain.seed"] == "3"
    assert (run.info.run_name, run.info.status) == ("demo/5_base_lm", "FINISHED")


def test_a_tracker_that_cannot_be_opened_is_named_and_the_others_go_on(
    out: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "wandb.py").write_text("raise RuntimeError('no key')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write(out, range(1, 3))
    with tracked(TrackingConfig(tensorboard=str(tmp_path / "boards"), wandb="sbp"), out, METRICS):
        pass
    assert scalars(tmp_path / "boards" / "demo" / "5_base_lm")["loss_nats"] == [(1, 4.0), (2, 3.0)]
    assert "tracking | wandb gets nothing: RuntimeError: no key" in capfd.readouterr().err


def test_a_tracker_that_hangs_or_dies_holds_up_nobody(
    out: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("import os, time\nwhile True: time.sleep(1)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(module, "_LAST_S", 0.5)
    with tracked(TrackingConfig(wandb="sbp"), out, METRICS):
        write(out, range(1, 3))
    (tmp_path / "wandb.py").write_text("import os\nos._exit(3)")
    with tracked(TrackingConfig(wandb="sbp"), out, METRICS):
        write(out, range(3, 4))
    assert len(Path(out.path(METRICS)).read_text().splitlines()) == 3


def test_an_error_of_the_training_passes_through(out: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with (
        pytest.raises(SbpError, match="diverged"),
        tracked(TrackingConfig(tensorboard=str(tmp_path / "boards")), out, METRICS),
    ):
        raise SbpError("diverged")


def test_a_library_that_is_not_installed_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    refuse_missing_library(TrackingConfig())
    with pytest.raises(SbpError, match=r"tracking.mlflow=x: mlflow is not installed: pip install 'sbp-ray\[mlflow\]'"):
        refuse_missing_library(TrackingConfig(mlflow="x"))


def test_nothing_is_started_where_nothing_is_configured(out: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(module.subprocess, "Popen", refuse)
    with tracked(TrackingConfig(), out, METRICS):
        pass


def test_a_run_is_named_by_its_folders_and_is_another_when_it_is_begun_anew(out: Artifact) -> None:
    run = run_of(out)
    assert (run.name, run.settings) == ("demo/5_base_lm", {"pretrain.seed": 3, "pretrain.peak_lr": 0.01})
    assert run_of(out) == run
    out.write_json(STARTED, {"fingerprint": "f", "started_at": "later"})
    assert run_of(out).id != run.id
    node = Artifact("lm", f"{out.url}/artifacts/lm-1")
    node.write_json(STARTED, {"fingerprint": "f"})
    assert run_of(node).name == "5_base_lm/lm-1"
    assert flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def test_the_process_imports_no_torch(out: Artifact) -> None:
    program = "import sys; import sbp_ray.training.tracking; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env={**os.environ}).returncode == 0
