"""Recipes and fingerprints, worked out before anything runs: what decides them, and that every planner agrees."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from small_experiment import SMALL, small_experiment

from sbp_ray import recipes
from sbp_ray.artifacts import MANIFEST, STARTED
from sbp_ray.config_file import load_config
from sbp_ray.errors import SbpError
from sbp_ray.experiment.grid import plan_grid
from sbp_ray.plan import follow, plan_run, require_ready, state_of
from sbp_ray.recipes import deciding_settings
from sbp_ray.stage_table import FOLDERS, STAGES

FREE = (".max_bad_share", ".max_damaged_files", ".max_unknown_share")
"""The settings outside `resources`, of any section, that change no result."""
JUDGE = "benchmarks.judge={base_url: u, model: m}"


def _values(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= _values(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return found


def _leaves(tree: dict[str, Any]) -> set[str]:
    return set(_values(tree))


def test_every_setting_of_a_stage_decides_its_result_but_those_of_resources() -> None:
    config = load_config(SMALL, [JUDGE])
    for stage in STAGES:
        sections = {name: config.model_dump(mode="json")[name] for name in stage.sections}
        free = _leaves(sections) - _leaves(deciding_settings(stage, config))
        off = {name for name, value in _values(sections).items() if value in (None, [], {}) or value is False}
        assert free == {name for name in _leaves(sections) if ".resources." in name or name.endswith(FREE)} | off
        assert not any(".resources." in name for name in _leaves(deciding_settings(stage, config)))


def test_a_setting_that_is_off_leaves_no_mark_and_zero_is_not_off() -> None:
    [tune] = [stage for stage in STAGES if stage.job == "tune"]
    config = load_config(SMALL, ["tune.z_loss=0", "tune.float8=false", "tune.max_pair_len=null"])
    settings = deciding_settings(tune, config)["tune"]
    assert settings["z_loss"] == settings["seed"] == 0
    assert not {"float8", "max_pair_len"} & settings.keys()
    on = deciding_settings(
        tune, load_config(SMALL, ["tune.float8=true", "tune.dtype=bfloat16", "tune.max_pair_len=64"])
    )
    assert (on["tune"]["float8"], on["tune"]["max_pair_len"]) == (True, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs.jsonl").write_text('{"text": "one"}\n')
    return tmp_path


def test_a_run_and_an_experiment_plan_the_same_fingerprint_for_the_same_stage(folder: Path) -> None:
    experiment = small_experiment(folder, "repetition", "sbp", seeds=[0], shares=[0.1])
    grid = {node.stage.writes: node for node in plan_grid(experiment).nodes.values()}
    run = plan_run(experiment.base_config("mixture.synthetic_share=0.1"))
    assert {noun: node.fingerprint for noun, node in grid.items()} == {
        noun: node.fingerprint for noun, node in run.items() if noun != "report"
    }


def test_a_fingerprint_follows_from_all_that_was_made_before(folder: Path) -> None:
    tree = yaml.safe_load(SMALL.read_text()) | {"run_dir": str(folder / "run")}
    tree["ingest"]["input"] = [str(folder / "docs.jsonl")]
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))

    def planned(*overrides: str) -> dict[str, str]:
        nodes = plan_run(load_config(folder / "run.yaml", list(overrides)))
        assert {state_of(node) for node in nodes.values()} == {"absent"}
        return {noun: node.fingerprint for noun, node in nodes.items()}

    base = planned()
    assert list(base) == list(FOLDERS)
    assert planned("pretrain.resources.micro_batch_rows=1") == base
    changed = planned("pair.min_cosine=0.7")
    assert {noun for noun in base if changed[noun] != base[noun]} == {
        "pairs", "synthesizer", "synthetic", "lm", "report",
    }  # fmt: skip
    assert not set(planned("ingest.seed=1").values()) & set(base.values())


def test_a_run_reads_what_its_settings_ask_for_and_says_what_is_not_there_yet(folder: Path) -> None:
    tree = yaml.safe_load(SMALL.read_text()) | {"run_dir": str(folder / "run")}
    tree["ingest"]["input"] = [str(folder / "docs.jsonl")]
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(folder / "run.yaml", ["pretrain.in_context=true"])
    nodes = plan_run(config, ["base_lm"])
    assert [*nodes] == ["corpus", "embeddings", "neighbors", "pairs", "base_lm"]
    assert [*nodes["base_lm"].inputs] == ["corpus", "pairs"]
    assert "base_lm" in follow(config, "pair")
    nodes["corpus"].artifact.write_json(STARTED, {"fingerprint": nodes["corpus"].fingerprint, "recipe": {}})
    nodes["corpus"].artifact.write_json(MANIFEST, {})
    with pytest.raises(SbpError, match=r"4_pairs is not there yet: run jobs/pair.py first"):
        require_ready(nodes["base_lm"])
    outside = ["synthesize.rephrase={model: m, of: pair, resources: {base_url: u}}"]
    assert [*plan_run(load_config(folder / "run.yaml", outside))["synthetic"].inputs] == [
        *("corpus", "embeddings", "pairs")
    ]


def test_a_file_on_a_store_counts_by_its_etag_and_not_by_when_it_was_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened(BytesIO):
        def metadata(self) -> dict[bytes, bytes]:
            return etag

    class Store:
        def open_input_stream(self, path: str) -> Opened:
            return Opened()

        def get_file_info(self, path: str) -> SimpleNamespace:
            return SimpleNamespace(mtime_ns=uploaded)

    monkeypatch.setattr(recipes, "open_file_system", lambda url: (Store(), "bucket/a.jsonl"))
    etag, uploaded = {b"ETag": b"abc"}, 1
    first = recipes._fingerprint_of_files([("s3://bucket/a.jsonl", 3)])
    uploaded = 2
    assert recipes._fingerprint_of_files([("s3://bucket/a.jsonl", 3)]) == first
    etag = {b"ETag": b"abd"}
    assert recipes._fingerprint_of_files([("s3://bucket/a.jsonl", 3)]) != first
    etag = {}
    without = recipes._fingerprint_of_files([("s3://bucket/a.jsonl", 3)])
    uploaded = 3
    assert recipes._fingerprint_of_files([("s3://bucket/a.jsonl", 3)]) != without


def test_a_file_that_cannot_be_read_is_one_line(folder: Path) -> None:
    """A folder in its place, since the superuser may read any file."""
    with pytest.raises(SbpError, match=f"^{folder}: cannot be read: Is a directory: give this user the right to read"):
        recipes._fingerprint_of_files([(str(folder), 3)])


def test_files_beside_a_dataset_of_the_hub_count_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_dataset_revision", lambda name: "one")
    overrides = [f"ingest.input=[{folder}/docs.jsonl, hf:some/name]", "run_dir=x"]
    config = load_config(SMALL, overrides)
    [stage] = [stage for stage in STAGES if stage.job == "ingest"]
    before = recipes.input_files(stage, config, {})
    assert set(before) == {"datasets", "files"}
    (folder / "docs.jsonl").write_text('{"text": "two"}\n')
    after = recipes.input_files(stage, config, {})
    assert after["datasets"] == before["datasets"]
    assert after["files"] != before["files"]


@pytest.mark.parametrize("setting", ["eval.truth", "eval.questions", "eval.found_elsewhere", "benchmarks.tasks"])
def test_what_models_are_measured_by_is_told_apart_by_what_it_holds(folder: Path, setting: str) -> None:
    """Only the report follows from it, and a file that is not there is one line."""
    name = "questions.jsonl" if setting == "eval.questions" else "file.json"
    file = folder / name
    value = f"{{sciq: {{file: {file}}}}}" if setting == "benchmarks.tasks" else file
    tree = yaml.safe_load(SMALL.read_text()) | {"run_dir": str(folder / "run")}
    tree["ingest"]["input"] = [str(folder / "docs.jsonl")]
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    config = load_config(folder / "config.yaml", [f"{setting}={value}"])
    with pytest.raises(SbpError, match=name):
        plan_run(config)
    file.write_text('{"a": 1}\n')
    before = plan_run(config)
    file.write_text('{"a": 2}\n')
    after = plan_run(config)
    changed = {noun for noun, node in before.items() if node.fingerprint != after[noun].fingerprint}
    assert changed == {"report"}
