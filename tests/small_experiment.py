"""Experiments that are planned in a moment: one line of text, and the settings of tests/unit/small.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sbp_ray.experiment.grid import Grid, plan_grid
from sbp_ray.experiment.settings import ExperimentConfig, load_experiment

SMALL = Path(__file__).parent / "unit" / "small.yaml"


def small_experiment(folder: Path, *arms: str, overrides: tuple[str, ...] = (), **settings: Any) -> ExperimentConfig:
    """Write and load an experiment of these arms; its base keeps 100 documents."""
    (folder / "docs.jsonl").touch()
    if not (folder / "docs.jsonl").read_text():
        (folder / "docs.jsonl").write_text('{"text": "one"}\n')
    base = yaml.safe_load(SMALL.read_text())
    base["ingest"] |= {"input": [str(folder / "docs.jsonl")], "max_train_documents": 100}
    tree = {"run_dir": str(folder / "run"), "base": base, "arms": {arm: {} for arm in arms}, **settings}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_experiment(str(folder / "experiment.yaml"), list(overrides))


def small_grid(folder: Path, *arms: str, overrides: tuple[str, ...] = (), **settings: Any) -> Grid:
    """The same, planned."""
    return plan_grid(small_experiment(folder, *arms, overrides=overrides, **settings))
