"""Noise in what a model is shown, in the loop itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from tiny import tiny_plan

from sbp_ray.text.tokenizer import SpecialIds
from sbp_ray.training import loop
from sbp_ray.training.token_noise import TokenNoise
from sbp_ray.training.training_plan import TrainingPlan


def noisy_plan(folder: Path, **settings: Any) -> TrainingPlan:
    plan = tiny_plan(folder, num_steps=4, checkpoint_every=2, **settings)
    return replace(plan, noise=TokenNoise(0.3, False, 300, SpecialIds(*plan.special), plan.config.seed))


def column(plan: TrainingPlan, name: str) -> list[float]:
    rows = [json.loads(line) for line in Path(plan.out.path("metrics.jsonl")).read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def test_two_ranks_that_stop_and_one_that_goes_on_train_on_what_one_was_shown(tmp_path: Path) -> None:
    whole, halves = noisy_plan(tmp_path / "whole"), noisy_plan(tmp_path / "halves", num_workers=2)
    run_ranks(1, tmp_path, lambda: loop.train(whole))
    run_ranks(2, tmp_path, lambda: loop.train(halves, stop_after=2))
    run_ranks(1, tmp_path, lambda: loop.train(replace(halves, config=whole.config)))
    assert column(halves, "loss_nats") == pytest.approx(column(whole, "loss_nats"), rel=1e-4)


def test_held_out_text_has_no_noise(tmp_path: Path) -> None:
    """A model that does not learn: its held-out loss is what it is without noise, and the other is not."""
    still = {"peak_lr": 0.0, "final_lr": 0.0}
    noisy, plain = noisy_plan(tmp_path / "noisy", **still), tiny_plan(tmp_path / "plain", num_steps=4, **still)
    for plan in (noisy, plain):
        run_ranks(1, tmp_path, lambda plan=plan: loop.train(plan, stop_after=1))
    assert column(noisy, "validation_nats") == column(plain, "validation_nats") != []
    assert column(noisy, "loss_nats") != column(plain, "loss_nats")
