"""Sweeps: what is tried next, when they end, what the arm then is, what it is charged, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_experiment import small_experiment, small_grid

from sbp_ray.artifacts import MANIFEST, STARTED
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.likelihood.arm_losses import is_at_equal_budget
from sbp_ray.experiment.costs import Cost, cost_of, planned_flops
from sbp_ray.experiment.descent import descend
from sbp_ray.experiment.grid import Grid
from sbp_ray.experiment.main import describe
from sbp_ray.nodes import Node

LINES = {"a": [1, 2, 3], "b": [10, 20]}
SWEEP = {"settings": {"pretrain.weight_decay": [0.3, 1.0], "pretrain.peak_lr": [0.001]}, "max_trainings": 8}
"""The base has a weight decay of 0.1 and a learning rate of 0.003."""


def _bowl(point: Mapping[str, Any]) -> float:
    """Lowest at a = 2, b = 20, for any value of the other."""
    return abs(point["a"] - 2) + abs(point["b"] - 20)


def test_one_setting_after_the_other_is_set_to_its_best_value() -> None:
    found = descend(LINES, {"a": 1, "b": 10}, 16, _bowl)
    at = [(point["a"], point["b"]) for point in found.tried]
    assert at == [(1, 10), (2, 10), (3, 10), (2, 20), (1, 20), (3, 20)]  # the last two: nothing moves in the next round
    assert found.chosen == {"a": 2, "b": 20}


def test_a_value_of_the_arms_own_that_is_in_no_list_is_tried_too() -> None:
    found = descend({"a": [1, 2]}, {"a": 7}, 16, lambda point: -point["a"])
    assert [point["a"] for point in found.tried] == [7, 1, 2]
    assert found.chosen == {"a": 7}


def test_of_equal_losses_the_earlier_stays_and_the_budget_is_never_passed() -> None:
    assert descend(LINES, {"a": 3, "b": 10}, 16, lambda _: 1.0).chosen == {"a": 3, "b": 10}
    found = descend(LINES, {"a": 1, "b": 10}, 3, _bowl)
    assert len(found.tried) == 3 and found.chosen == {"a": 2, "b": 10}


def test_a_line_whose_losses_are_missing_is_what_is_next() -> None:
    known = {(1, 10): 3.0, (2, 10): 1.0}
    found = descend(LINES, {"a": 1, "b": 10}, 16, lambda point: known.get((point["a"], point["b"])))
    assert [(point["a"], point["b"]) for point in found.tried] == [(1, 10), (2, 10), (3, 10)]
    assert found.chosen is None
    known[3, 10] = 2.0
    found = descend(LINES, {"a": 1, "b": 10}, 16, lambda point: known.get((point["a"], point["b"])))
    assert [(point["a"], point["b"]) for point in found.tried[3:]] == [(2, 20)]


# In the grid


def _finish(grid: Grid, losses: Mapping[tuple[float, float], float]) -> None:
    """Finish each open trial, with the loss at its weight decay and learning rate."""
    for node in (node for sweep in grid.sweeps if sweep.is_open for node in sweep.trials):
        made, own = node.artifact, node.config.pretrain
        made.write_json(STARTED, {"fingerprint": node.fingerprint})
        stats = {"exported": {"development_nats": losses[own.weight_decay, own.peak_lr]}}
        made.write_json(MANIFEST, {"stats": stats, "wall_s": 3600})


def _swept(folder: Path, *arms: str, **settings: Any) -> list[Grid]:
    """The plans, one after the other, of a sweep that ends at a weight decay of 1 and the learning rate of the base."""
    losses = {(0.1, 0.003): 3.0, (0.3, 0.003): 2.9, (1.0, 0.003): 2.5, (1.0, 0.001): 2.7}
    plans = [small_grid(folder, *arms, sweep=SWEEP, **settings)]
    while any(sweep.is_open for sweep in plans[-1].sweeps):
        _finish(plans[-1], losses)
        plans.append(small_grid(folder, *arms, sweep=SWEEP, **settings))
        assert len(plans) < 9
    return plans


def _tuned_at(node: Node) -> tuple[float, float, int]:
    return node.config.pretrain.weight_decay, node.config.pretrain.peak_lr, node.config.pretrain.seed


def test_the_plan_grows_by_the_losses_until_every_seed_has_the_settings_that_were_found(tmp_path: Path) -> None:
    first, second, third = _swept(tmp_path, "repetition", "tuned", seeds=[0, 1])
    assert [_tuned_at(node) for node in first.sweeps[0].trials] == [(0.1, 0.003, 0), (0.3, 0.003, 0), (1.0, 0.003, 0)]
    assert sorted(first.waiting) == ["tuned seed 0", "tuned seed 1"]
    said = describe(first).splitlines()
    assert said[-3:-1] == [
        "tuned: its sweep goes on: 3 trainings so far, 8 at most",
        "2 trainings more follow from that",
    ]
    assert [_tuned_at(node) for node in second.sweeps[0].trials[3:]] == [(1.0, 0.001, 0)]
    tuned = [training for training in third.trainings if training.arm == "tuned"]
    assert [_tuned_at(training.model) for training in tuned] == [(1.0, 0.003, 0), (1.0, 0.003, 1)]
    assert not third.waiting
    assert tuned[0].model.key == first.sweeps[0].trials[2].key  # the sweep's own is the first seed's
    tuning = tuned[1].tuning
    assert tuning is not None and len(tuning.trials) == 4
    assert tuning.chosen == {"pretrain.weight_decay": 1.0, "pretrain.peak_lr": 0.003}
    assert tuning.tried == {"pretrain.weight_decay": [0.1, 0.3, 1.0], "pretrain.peak_lr": [0.003, 0.001]}


def test_a_tuned_arm_is_charged_its_whole_sweep_for_each_seed(tmp_path: Path) -> None:
    grid = _swept(tmp_path, "repetition", "tuned", seeds=[0, 1])[-1]
    costs = {key: Cost(flops=planned_flops(node) or 0.0) for key, node in grid.nodes.items()}
    one = planned_flops(grid.trainings[0].model)
    of = {(t.arm, t.seed): cost_of(t.made_from(), costs).flops for t in grid.trainings}
    assert of == {("repetition", 0): one, ("repetition", 1): one, ("tuned", 0): 4 * one, ("tuned", 1): 5 * one}


def test_other_arms_are_swept_alike_each_on_its_own_text(tmp_path: Path) -> None:
    arms = {"repetition": {}, "tuned": {}, "sbp": {}, "sbp_tuned": {"like": "sbp", "tuned": True}}
    grid = _swept(tmp_path, arms=arms, seeds=[0, 1], shares=[0.02])[-1]
    assert {sweep.name: len(sweep.trials) for sweep in grid.sweeps} == {"tuned": 4, "sbp_tuned 2 %": 4}
    sbp, tuned = ({t.seed: t.model for t in grid.trainings if t.arm == arm} for arm in ("sbp", "sbp_tuned"))
    assert {seed: _tuned_at(node) for seed, node in tuned.items()} == {0: (1.0, 0.003, 0), 1: (1.0, 0.003, 1)}
    assert tuned[1].inputs["synthetic"].key == sbp[1].inputs["synthetic"].key  # from the same base LM


def test_a_sweep_that_ends_where_it_began_is_no_second_arm_of_the_same(tmp_path: Path) -> None:
    sweep = {"settings": {"pretrain.weight_decay": [1.0]}}
    grid = small_grid(tmp_path, "repetition", "tuned", sweep=sweep, seeds=[0])
    _finish(grid, {(0.1, 0.003): 1.0, (1.0, 0.003): 2.0})
    grid = small_grid(tmp_path, "repetition", "tuned", sweep=sweep, seeds=[0])
    assert len({training.model.key for training in grid.trainings}) == 1
    assert len(grid.trainings) == 2


def test_tokens_that_a_sweep_has_found_are_at_equal_budget(tmp_path: Path) -> None:
    sweep = {"settings": {"pretrain.total_tokens": [500_000]}}
    losses = {1_000_000: 3.0, 500_000: 2.0}
    for _ in range(2):
        grid = small_grid(tmp_path, "repetition", "tuned", sweep=sweep, seeds=[0])
        for node in (node for one in grid.sweeps for node in one.trials):
            node.artifact.write_json(STARTED, {"fingerprint": node.fingerprint})
            stats = {"exported": {"development_nats": losses[node.config.pretrain.total_tokens]}}
            node.artifact.write_json(MANIFEST, {"stats": stats, "wall_s": 1})
    repetition, tuned = grid.trainings
    assert tuned.tokens < repetition.tokens
    assert is_at_equal_budget(tuned, repetition)


# Of several models


def test_an_ensemble_is_its_own_seeds_model_and_others_and_is_charged_them_all(tmp_path: Path) -> None:
    arms = {"repetition": {}, "ensemble": {"members": 3}}
    grid = small_grid(tmp_path, arms=arms, seeds=[0, 1])
    ensembles = {t.seed: t for t in grid.trainings if t.arm == "ensemble"}
    repetition = {t.seed: t for t in grid.trainings if t.arm == "repetition"}
    assert ensembles[0].members[0].key == repetition[0].model.key
    assert [node.config.pretrain.seed for node in ensembles[1].members] == [1, 10_001, 20_001]
    assert len({one.key for one in grid.trainings}) == 4
    costs = {key: Cost(flops=planned_flops(node) or 0.0) for key, node in grid.nodes.items()}
    whole = cost_of(ensembles[0].made_from(), costs).flops
    assert whole == 3 * cost_of(repetition[0].made_from(), costs).flops


def test_the_members_of_an_ensemble_of_sbp_read_one_text(tmp_path: Path) -> None:
    arms = {"repetition": {}, "sbp": {}, "ensemble": {"of": "sbp", "members": 2}}
    grid = small_grid(tmp_path, arms=arms, seeds=[0, 1], shares=[0.02])
    [first, second] = next(t for t in grid.trainings if t.arm == "ensemble" and t.seed == 1).members
    assert first.inputs["synthetic"].key == second.inputs["synthetic"].key
    assert [t.share for t in grid.trainings if t.arm == "ensemble"] == [0.02, 0.02]


def test_a_distilled_model_is_as_its_teachers_waits_for_them_and_is_charged_them(tmp_path: Path) -> None:
    arms = {"repetition": {}, "tuned": {}, "distilled": {"of": "tuned", "members": 2}}
    first, *_, grid = _swept(tmp_path, arms=arms, seeds=[0])
    assert "distilled seed 0" in first.waiting
    distilled = next(t for t in grid.trainings if t.arm == "distilled")
    teachers = list(distilled.model.after)
    own = distilled.model.config.pretrain
    assert own.teachers == tuple(f"{node.config.run_dir}/model" for node in teachers)
    assert [_tuned_at(node) for node in teachers] == [(1.0, 0.003, 0), (1.0, 0.003, 10_000)]
    assert _tuned_at(distilled.model) == (1.0, 0.003, 0) and not distilled.members
    costs = {key: Cost(flops=planned_flops(node) or 0.0) for key, node in grid.nodes.items()}
    one = planned_flops(grid.trainings[0].model)
    # Four of the sweep, one of which teaches; another teacher; the model, which reads two forward: (6 + 2 x 2) / 6.
    assert cost_of(distilled.made_from(), costs).flops == pytest.approx((4 + 1 + 10 / 6) * one)


@pytest.mark.parametrize(
    ("arms", "sweep", "message"),
    [
        ({"tuned": {}}, None, "arms.tuned is tuned, and sweep does not say over what: add sweep.settings"),
        ({}, SWEEP, "sweep: no arm is tuned: add the arm tuned, or say `tuned: true` of others"),
        ({"tuned": {}}, {"settings": {}}, "settings: there is none: say what is swept"),
        ({"tuned": {}}, {"settings": {"pretrain.weigth_decay": [1]}}, "did you mean weight_decay?"),
        ({"tuned": {}}, {"settings": {"pretrain.seed": [1]}}, "pretrain.seed: it is no setting of pretrain that can"),
        (
            {"tuned": {}},
            {"settings": {"pretrain.batch_rows": [8]}},
            "pretrain.batch_rows: it is no setting of pretrain",
        ),
        ({"tuned": {}}, {"settings": {"tune.peak_lr": [1]}}, "tune.peak_lr: it is no setting of pretrain that can be"),
        ({"tuned": {}}, {"settings": {"pretrain.weight_decay": [1, 1]}}, "a value is there twice: take one out"),
        ({"ensemble": {"of": "sbp"}}, None, "arms.ensemble.of=sbp: there is no such arm"),
        ({"ensemble": {}, "distilled": {"of": "ensemble"}}, None, "that arm is made of several models itself"),
        ({"ensemble": {"tuned": True}}, SWEEP, "arms.ensemble.tuned: tune the arm that it is made `of`"),
        (
            {"ensemble": {"overrides": ["pretrain.z_loss=1e-4"]}},
            None,
            "arms.ensemble.overrides: it is as the arm that it is made `of`",
        ),
        ({"sbp": {"members": 3}}, None, "arms.sbp: of and members are for ensemble and distilled"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_planned(
    tmp_path: Path, arms: dict[str, Any], sweep: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(SbpError) as error:
        small_experiment(tmp_path, arms={"repetition": {}} | arms, **({} if sweep is None else {"sweep": sweep}))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_sweep_without_a_split_of_its_own_and_a_value_out_of_range_are_refused(tmp_path: Path) -> None:
    none = ("base.ingest.development_share=0", "base.pretrain.checkpoint=last", "base.tune.checkpoint=last")
    with pytest.raises(SbpError, match=r"sweep: it chooses by the development split, and base has none: raise ingest"):
        small_grid(tmp_path, "repetition", "tuned", sweep=SWEEP, overrides=none)
    below = {"settings": {"pretrain.weight_decay": [1], "pretrain.final_lr": [0.1]}}  # it would be tried last
    with pytest.raises(SbpError, match=r"arms\.tuned: pretrain: final_lr \(0\.1\) is more than peak_lr"):
        small_grid(tmp_path, "repetition", "tuned", sweep=below)


def test_a_trial_without_a_development_loss_is_refused(tmp_path: Path) -> None:
    grid = small_grid(tmp_path, "repetition", "tuned", sweep=SWEEP, seeds=[0])
    for node in grid.sweeps[0].trials:
        node.artifact.write_json(STARTED, {"fingerprint": node.fingerprint})
        node.artifact.write_json(MANIFEST, {"stats": {"exported": {"validation_nats": 1.0}}, "wall_s": 1})
    with pytest.raises(SbpError, match="is finished, and has no loss on the development split"):
        small_grid(tmp_path, "repetition", "tuned", sweep=SWEEP, seeds=[0])
