"""A training whose processes are killed at random, over and over, ends with the weights of one that was left alone."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from ranks import run_ranks, start_ranks
from safetensors.torch import load_file
from tiny import tiny_plan

from sbp_ray.training import loop
from sbp_ray.training.checkpoint import list_checkpoints
from sbp_ray.training.journal import count_attempts
from sbp_ray.training.training_plan import TrainingPlan

SEED = 10
MOST_STEPS = 3
NUM_RANKS = 2
LIMIT_S = 200.0


class Strike(NamedTuple):
    """Whom to kill, and when: so many steps after the start, or while a checkpoint is being written."""

    victims: tuple[int, ...]
    num_steps: int
    is_in_save: bool


def plan_strikes(number: int) -> list[Strike]:
    rng = random.Random(SEED)
    return [
        Strike(rng.choice([(0,), (1,), (0, 1)]), rng.randint(1, MOST_STEPS), rng.random() < 0.4) for _ in range(number)
    ]


def num_rows(plan: TrainingPlan) -> int:
    path = Path(plan.out.path("metrics.jsonl"))
    return path.read_bytes().count(b"\n") if path.exists() else 0


def unfinished_saves(plan: TrainingPlan) -> set[str]:
    found = Path(plan.out.path("checkpoints")).glob("step-*")
    return {path.name for path in found if not (path / "complete.json").exists()}


def strike_down(plan: TrainingPlan, strike: Strike, ranks: list[BaseProcess], started: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not started():
        assert time.monotonic() < limit
        time.sleep(0.001)  # only how often we look
    first, earlier = num_rows(plan), unfinished_saves(plan)
    while num_rows(plan) < first + strike.num_steps or (strike.is_in_save and unfinished_saves(plan) <= earlier):
        assert time.monotonic() < limit
        assert all(rank.is_alive() for rank in ranks), "a rank ended by itself"
        time.sleep(0.001)
    for victim in strike.victims:
        ranks[victim].kill()
    ranks[strike.victims[0]].join()
    for rank in ranks:  # the others notice, or would wait for the dead: their launcher ends them
        rank.kill()
        rank.join()


@pytest.mark.parametrize("num_strikes", [7, pytest.param(22, marks=pytest.mark.long)])
def test_after_many_strikes_the_weights_are_those_of_an_undisturbed_run(tmp_path: Path, num_strikes: int) -> None:
    strikes = plan_strikes(num_strikes)
    assert len({(strike.victims, strike.is_in_save) for strike in strikes}) == 6  # every kind is among them
    settings = {"num_workers": NUM_RANKS, "num_steps": num_strikes * (MOST_STEPS + 3)}
    undisturbed = tiny_plan(tmp_path / "undisturbed", **settings)
    killed = tiny_plan(tmp_path / "killed", **settings, checkpoint_every=2)
    run_ranks(NUM_RANKS, tmp_path, lambda: loop.train(undisturbed))
    done = 0
    for number, strike in enumerate(strikes):
        ranks = start_ranks(NUM_RANKS, tmp_path, lambda: loop.train(killed))
        strike_down(
            killed, strike, ranks, started=lambda number=number: count_attempts(killed.out)["attempts"] == number + 1
        )
        [newest, *_] = list_checkpoints(killed.out) or [(0, "")]
        assert newest[0] >= done  # nothing that was safe is lost
        done = newest[0]
    run_ranks(NUM_RANKS, tmp_path, lambda: loop.train(killed))
    ours, theirs = (load_file(plan.out.path("model/model.safetensors")) for plan in (killed, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert Path(killed.out.path("metrics.jsonl")).read_bytes().count(b"\n") == settings["num_steps"]
    lost = count_attempts(killed.out)
    assert lost["attempts"] == num_strikes + 1
    assert 0 < lost["wasted_steps"] <= num_strikes * 4  # an interval, and what was trained while the next was written
    assert multiprocessing.active_children() == []
