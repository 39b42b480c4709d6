"""Recipes and fingerprints, worked out before anything runs: what decides them, and that every planner agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_experiment import SMALL, small_experiment

from sbp_ray.config_file import load_config
from sbp_ray.experiment.grid import plan_grid
from sbp_ray.plan import plan_run, state_of
from sbp_ray.recipes import deciding_settings
from sbp_ray.stage_table import FOLDERS, STAGES

FREE = (".max_bad_share", ".max_damaged_files", ".max_unknown_share")
"""The settings outside `resources`, of any section, that change no result."""
JUDGE = "benchmarks.judge={base_url: u, model: m}"


def _leaves(tree: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= _leaves(value, f"{name}.") if isinstance(value, dict) and value else {name}
    return found


def test_every_setting_of_a_stage_decides_its_result_but_those_of_resources() -> None:
    config = load_config(SMALL, [JUDGE])
    for stage in STAGES:
        sections = {name: config.model_dump(mode="json")[name] for name in stage.sections}
        free = _leaves(sections) - _leaves(deciding_settings(stage, config))
        assert free == {name for name in _leaves(sections) if ".resources." in name or name.endswith(FREE)}
        assert not any(".resources." in name for name in _leaves(deciding_settings(stage, config)))


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
