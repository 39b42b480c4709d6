"""Checkpoints asked on Ray: each once, kept, and put together by arm and seed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_experiment import small_experiment
from worked_on import WorkedOn

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.benchmarks.comparison import compare_on_benchmarks
from sbp_ray.evaluation.study import Study
from sbp_ray.experiment.grid import plan_grid
from sbp_ray.experiment.publish import study_of
from sbp_ray.experiment.settings import ExperimentConfig

SEEN = "a man with a very long ladder cleans all the windows of the old house"


def questions(folder: Path) -> dict[str, Any]:
    rows = [
        {"id": i, "query": f"Where is number {i}?", "choices": [f"by the river {i}", "nowhere"], "gold": i % 2}
        for i in range(6)
    ]
    rows.append({"id": "seen", "query": SEEN, "choices": ["yes", "no"], "gold": 0})
    (folder / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "text.jsonl").write_text(json.dumps({"id": "only", "text": "The river is wide. " * 40}))
    return {
        "piqa": {"file": str(folder / "choices.jsonl")},
        "other": {"like": "text", "file": str(folder / "text.jsonl")},
    }


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentConfig:
    override = f"base.benchmarks={json.dumps({'tasks': questions(tmp_path), 'context_tokens': 128})}"
    resources = "base.eval.resources={num_workers: 2, num_threads: 1}"
    return small_experiment(tmp_path, "repetition", "sbp", seeds=[0, 1], shares=[0.02], overrides=(override, resources))


@pytest.fixture
def study(experiment: ExperimentConfig, tiny_synthesizer: Artifact) -> Study:
    """Finished, every model that of `tiny_synthesizer`; one document of the corpus holds a question."""
    grid = plan_grid(experiment)
    for node in grid.nodes.values():
        node.artifact.write_json(STARTED, {"fingerprint": node.fingerprint})
        node.artifact.write_json(MANIFEST, {"stats": {}})
        if node.stage.job == "pretrain":
            shutil.copytree(tiny_synthesizer.path("model"), node.artifact.path("model"))
        if node.stage.job == "ingest":
            texts = pa.table({"text": ["One.", f"Every day {SEEN}, and more."]})
            node.artifact.write_table("train/train-00000.parquet", texts)
            node.artifact.write_table("validation/train-00000.parquet", texts)
    return study_of(experiment, grid, grid.trainings)


def test_every_model_is_asked_once_and_compared(study: Study, tmp_path: Path, in_process: WorkedOn) -> None:
    store = Artifact("scores", str(tmp_path / "scores"))
    rows = compare_on_benchmarks(study, store)
    assert rows is not None
    choices, text = rows
    assert (choices["questions"], choices["left_out"], text["questions"]) == (6, 1, 1)
    accuracy, _, likelihood = choices["measures"]
    assert likelihood["arms"].keys() == {"repetition", "sbp 2 %"}
    found = likelihood["arms"]["sbp 2 %"]
    assert found["by_seed"].keys() == {"0", "1"}
    assert found["over_seeds"] == {
        "value": 0,
        "low": 0,
        "high": 0,
        "unit": "seeds",
        "units": 2,
    }  # all are the same model
    assert 3 < found["mean"] < 6  # ln 320 = 5.77 nats a token, some of them of several bytes
    assert 0 <= accuracy["arms"]["repetition"]["mean"] <= 1
    assert text["measures"][0]["name"] == "nats_per_byte"

    written = {name: Path(store.path(name)).stat().st_mtime_ns for name in store.files()}
    assert len(written) == 2 * 4 + 1  # benchmarks x trainings, and what was seen
    assert compare_on_benchmarks(study, store) == rows
    assert {name: Path(store.path(name)).stat().st_mtime_ns for name in store.files()} == written

    [joint, _] = [one.model.artifact for one in study.trainings if one.share]
    shutil.rmtree(joint.path("model"))
    with pytest.raises(SbpError, match="holds no checkpoint"):
        compare_on_benchmarks(study, store)


def test_without_benchmarks_nothing_is_measured(study: Study, experiment: ExperimentConfig, tmp_path: Path) -> None:
    without = replace(study, settings=experiment.base_config("benchmarks={}"))
    assert compare_on_benchmarks(without, Artifact("scores", str(tmp_path))) is None


def test_benchmarks_change_no_artifact_that_an_experiment_has(tmp_path: Path, experiment: ExperimentConfig) -> None:
    with_benchmarks = plan_grid(experiment).nodes
    without = plan_grid(experiment.model_copy(update={"base": {**experiment.base, "benchmarks": {}}})).nodes  # type: ignore[dict-item]
    assert with_benchmarks.keys() == without.keys()
