"""What the experiment found: every number of `experiment.json`, from scores, curves and costs.

A loss is in nats, lower is better; a *gain* is repetition's loss minus an arm's, so above zero the arm is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sbp_ray.evaluation.arms import Scores
from sbp_ray.evaluation.comparison import HELD_OUT
from sbp_ray.evaluation.flow import loss_curve
from sbp_ray.evaluation.intervals import Interval, bootstrap_ratio, mean_interval, share_of_gain
from sbp_ray.experiment.arms import BASELINE, ORACLE
from sbp_ray.experiment.costs import Cost, cost_of_model, planned_tokens
from sbp_ray.experiment.grid import Grid, Training
from sbp_ray.experiment.measure import ANSWERS, Texts
from sbp_ray.experiment.settings import ExperimentConfig

MEASURES = (
    ("held_out_nats_per_token", HELD_OUT, "token"),
    ("held_out_nats_per_byte", HELD_OUT, "byte"),
    *((f"{name}_nats_per_byte", name, "byte") for name in ANSWERS.values()),
)
"""Name, set of texts, and what the NLL is divided by; the first is the one that answers."""
_HEADLINE = MEASURES[0][0]
_SAME_COST = 0.95  # of an arm's cost: near enough to be called equal


def arm_table(
    experiment: ExperimentConfig,
    grid: Grid,
    trainings: Sequence[Training],
    scores: Mapping[str, Scores],
    texts: Texts,
    costs: Mapping[str, Cost],
) -> list[dict[str, Any]]:
    """One row for each arm with its share and round.

    Args:
        trainings: those that have a result.
        scores: by the key of the model.
        costs: each artifact's own, by key.
    """
    by_name: dict[str, dict[int, Training]] = {}
    for training in trainings:
        by_name.setdefault(training.name, {})[training.seed] = training
    measures = [measure for measure in MEASURES if measure[1] in texts.sets]
    losses = {
        name: {
            measure: {seed: _loss(scores[t.model], texts, of, unit) for seed, t in seeds.items()}
            for measure, of, unit in measures
        }
        for name, seeds in by_name.items()
    }
    oracle = next((t.name for t in trainings if (experiment.arms[t.arm].like or t.arm) == ORACLE), None)
    rows = []
    for name, seeds in by_name.items():
        one = next(iter(seeds.values()))
        row: dict[str, Any] = {
            "name": name,
            "arm": one.arm,
            "says": experiment.built_in(one.arm).says,
            "like": experiment.arms[one.arm].like or one.arm,
            "tokens": planned_tokens(grid.nodes[one.model]),
            "share": one.share,
            "round": one.round,
            "seeds": sorted(seeds),
            "models": {str(seed): training.model for seed, training in seeds.items()},
            "cost": _mean_cost(grid, seeds.values(), costs),
            "own_cost": _mean([costs[training.model] for training in seeds.values()]).as_dict(),
            "measures": {},
        }
        for measure, of, unit in measures:
            row["measures"][measure] = _measure(losses, name, oracle, measure) | {
                "gain_by_unit": _gain_by_unit(by_name, name, scores, texts, of, unit, experiment)
            }
        rows.append(row)
    return rows


def _loss(scores: Scores, texts: Texts, name: str, unit: str) -> float:
    sizes = texts.num_tokens if unit == "token" else texts.num_bytes
    return float(scores.nll[name].sum() / sizes[name].sum())


def _measure(
    losses: Mapping[str, Mapping[str, Mapping[int, float]]], name: str, oracle: str | None, measure: str
) -> dict[str, Any]:
    """Loss of each seed and their mean; gain over repetition paired by seed; share of the oracle's gain."""
    own, base = losses[name][measure], losses[BASELINE][measure]
    both = sorted(own.keys() & base.keys())
    gain_S = [base[seed] - own[seed] for seed in both]
    found: dict[str, Any] = {
        "by_seed": {str(seed): own[seed] for seed in sorted(own)},
        "mean": float(np.mean(list(own.values()))),
        "interval": _dict(mean_interval(list(own.values()))),
        "gain": None if name == BASELINE or not both else float(np.mean(gain_S)),
        "gain_by_seed": None if name == BASELINE else _dict(mean_interval(gain_S)),
        "share_of_oracle": None,
    }
    if oracle is not None and name not in (BASELINE, oracle):
        other = losses[oracle][measure]
        seeds = [seed for seed in both if seed in other]
        if seeds:
            whole_S = [base[seed] - other[seed] for seed in seeds]
            found["share_of_oracle"] = _dict(share_of_gain([base[s] - own[s] for s in seeds], whole_S))
    return found


def _gain_by_unit(
    by_name: Mapping[str, Mapping[int, Training]],
    name: str,
    scores: Mapping[str, Scores],
    texts: Texts,
    text_set: str,
    unit: str,
    experiment: ExperimentConfig,
) -> dict[str, float] | None:
    """The same gain with an interval over documents or questions, each paired, its NLL averaged over the seeds."""
    both = sorted(by_name[name].keys() & by_name[BASELINE].keys())
    if name == BASELINE or not both:
        return None
    sizes = texts.num_tokens if unit == "token" else texts.num_bytes
    mean_N = {
        arm: np.mean([scores[by_name[arm][seed].model].nll[text_set] for seed in both], axis=0)
        for arm in (name, BASELINE)
    }
    seed = experiment.base_config().eval.seed
    return bootstrap_ratio(mean_N[BASELINE] - mean_N[name], sizes[text_set], seed=seed).as_dict()


def _mean_cost(grid: Grid, trainings: Any, costs: Mapping[str, Cost]) -> dict[str, float]:
    """Of everything that a model was made from, the mean of its seeds: what arms share is charged to each of them."""
    return _mean([cost_of_model(grid, t.model, costs) for t in trainings]).as_dict()


def _mean(found: Sequence[Cost]) -> Cost:
    return sum(found, Cost()).times(1 / len(found))


def _dict(found: Interval | None) -> dict[str, float] | None:
    return None if found is None else found.as_dict()


# At equal cost


def equal_cost_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each arm with synthetic text beside arms of the same text repeated, all told.

    `against` is the cheapest one like repetition which costs no less, to within 5 %: the same compute, all of it spent.
    `within` is the best of all that repeat the text and cost no more, to within 5 %: who has the compute need not spend
    it on passes that no longer help. It is chosen by the measure that it is compared by, which flatters it.
    """
    [base] = [row for row in rows if row["name"] == BASELINE]
    alike = [row for row in rows if row["like"] == BASELINE]
    repeated = [row for row in rows if row["share"] is None and row["like"] != ORACLE]
    found = []
    for row in rows:
        if row["share"] is None:
            continue
        wanted = row["cost"]["flops"]
        enough = [other for other in alike if other["cost"]["flops"] >= _SAME_COST * wanted]
        within = [other for other in repeated if _SAME_COST * other["cost"]["flops"] <= wanted]
        entry: dict[str, Any] = {"name": row["name"], "flops": wanted, "against": None}
        entry["times_repetition"] = wanted / base["cost"]["flops"]
        if enough:
            entry["against"] = _beside(row, min(enough, key=lambda other: other["cost"]["flops"]))
        entry["within"] = _beside(row, min(within, key=lambda other: other["measures"][_HEADLINE]["mean"]))
        found.append(entry)
    return found


def _beside(row: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What the arm gains over another than repetition, paired by seed."""
    own, its = (one["measures"][_HEADLINE]["by_seed"] for one in (row, other))
    gain_S = [its[seed] - own[seed] for seed in sorted(own.keys() & its.keys())]
    return {
        "name": other["name"],
        "flops": other["cost"]["flops"],
        "gain": float(np.mean(gain_S)) if gain_S else None,
        "gain_by_seed": _dict(mean_interval(gain_S)),
    }


# Along the training, and what the synthesizers learned


def curves(grid: Grid, trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """Each training's loss by tokens: every held-out point, and the training loss thinned."""
    return [{"name": t.name, "seed": t.seed, "points": loss_curve(grid.nodes[t.model].artifact)} for t in trainings]


def synthesizers(grid: Grid, trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """Each synthesizer's conditional gain on held-out pairs, with intervals over the pairs, and who uses it."""
    users: dict[str, list[str]] = {}
    for training in trainings:
        for key in grid.ancestry(training.model):
            if grid.nodes[key].stage.job == "tune" and training.name not in users.setdefault(key, []):
                users[key].append(training.name)
    rows = []
    for key, names in users.items():
        manifest = grid.nodes[key].artifact.manifest() or {"stats": {}}
        rows.append({"synthesizer": key, "for": names, **manifest["stats"].get("validation", {"pairs": 0})})
    return rows


def synthetic_rows(grid: Grid, trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """What each synthesis wrote and what of it was dropped, by reason."""
    users: dict[str, list[str]] = {}
    for training in trainings:
        for key in grid.ancestry(training.model):
            if grid.nodes[key].stage.job == "synthesize" and training.name not in users.setdefault(key, []):
                users[key].append(training.name)
    rows = []
    for key, names in users.items():
        stats = (grid.nodes[key].artifact.manifest() or {"stats": {}})["stats"]
        rows.append({"synthetic": key, "for": names} | {k: stats.get(k) for k in _WRITTEN})
    return rows


_WRITTEN = ("samples", "documents", "tokens", "tokens_generated", "drops")


def artifact_rows(grid: Grid, costs: Mapping[str, Cost], is_done: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Every artifact: its stage, cost, who uses it, and the command that makes it."""
    rows = []
    for key, arms in grid.users().items():
        node = grid.nodes[key]
        cost = costs[key].as_dict() if is_done(key) else None
        command = f"python jobs/{node.stage.job}.py --config configs/{key}.yaml"
        made_by = (node.artifact.manifest() or {}).get("made_by")
        row = {"artifact": key, "stage": node.stage.name, "for": arms, "cost": cost, "command": command}
        rows.append(row | {"made_by": made_by})
    return rows
