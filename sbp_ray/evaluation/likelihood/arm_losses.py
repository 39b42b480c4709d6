"""What each arm learned: losses, gains over repetition, and gains at equal cost.

A loss is in nats, lower is better. A *gain* is repetition's loss minus an arm's: above zero the arm is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbp_ray.evaluation.intervals import share_of_gain
from sbp_ray.evaluation.likelihood.checkpoints import Scores
from sbp_ray.evaluation.likelihood.scored_texts import ANSWERS, HELD_OUT, Texts
from sbp_ray.evaluation.paired import Comparison, Values, gain_beside, paired_seeds
from sbp_ray.evaluation.study import BASELINE, CONTROLS, ORACLE, Costs, Study, Training
from sbp_ray.nodes import Node

MEASURES = {
    f"{name}_nats_per_{unit}": (name, unit) for name in (HELD_OUT, *ANSWERS.values()) for unit in ("token", "byte")
}
"""Set of texts, and what the NLL is divided by."""
HEADLINE = "held_out_nats_per_token"
"""The measure that answers."""
_SAME_COST = 0.95  # of an arm's cost: near enough to be called equal


def arm_rows(study: Study, scores: Mapping[str, Scores], texts: Texts) -> list[dict[str, Any]]:
    """One row for each arm with its share and round.

    Args:
        scores: by the key of the model.
    """
    by_arm = study.by_arm()
    measures = {}
    for measure, (name, unit) in MEASURES.items():
        if name in texts.sets:
            nll, units = {key: found.nll[name] for key, found in scores.items()}, texts.sets[name]
            measures[measure] = measure_arms(study, nll, units.sizes(unit), units.groups)
    rows = []
    for name, seeds in by_arm.items():
        one = next(iter(seeds.values()))
        row = {key: getattr(one, key) for key in ("name", "arm", "says", "like", "tokens", "share", "round")}
        row["seeds"] = sorted(seeds)
        row["models"] = {str(seed): training.key for seed, training in seeds.items()}
        row["members"] = len(one.members)
        row["parameters"] = scores[one.key].num_parameters
        row["mixture"] = one.model.stats.get("mixture")
        found = [node.stats.get("computed_in") for training in seeds.values() for node in training.models]
        row["dtypes"] = sorted({each["dtype"] for each in found if each})
        row["corpus"] = one.model.inputs["corpus"].key
        row["is_comparable"] = is_at_equal_budget(one, next(iter(by_arm[BASELINE].values())))
        row["ends"] = _both_ends([training.model.stats for training in seeds.values() if not training.members])
        row["tuning"] = _tuning(one)
        for key, costs in (("cost", study.costs), ("own_cost", study.own_costs)):
            row[key] = _mean_cost([costs.get((name, seed)) for seed in seeds])
        row["measures"] = {measure: found[name] for measure, found in measures.items()}
        rows.append(row)
    return rows


def measure_arms(
    study: Study, losses_by_model: Mapping[str, np.ndarray], sizes_N: np.ndarray, groups: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """One measure of every arm, with its share of the oracle's gain, its gain over the best control, and over each
    control whose synthetic text has the same share: what it is worth that the text was written from related documents.

    Args:
        losses_by_model: of each unit, by the key of the model.
        sizes_N: what the losses are divided by, such as tokens.
        groups: of each unit.
    """
    nll = {arm: {seed: losses_by_model[one.key] for seed, one in seeds.items()}
           for arm, seeds in study.by_arm().items()}  # fmt: skip
    compared = Comparison(nll, sizes_N, better=-1, groups=groups, seed=study.settings.eval.seed)
    losses = compared.values
    oracle = next((training.name for training in study.trainings if training.like == ORACLE), None)
    found = {}
    for arm in losses:
        controls = _controls(study, arm)
        best = min(controls, key=lambda name: float(np.mean(list(losses[name].values()))), default="")
        found[arm] = {
            **compared.describe(arm),
            "share_of_oracle": _share_of_oracle(losses, arm, oracle),
            "control": {"name": best, "of": controls, **compared.gain(arm, best)} if controls else None,
            "at_same_share": [
                {"name": other, **compared.gain(arm, other)} for other in _controls_at_same_share(study, arm)
            ],
        }
    return found


def _controls(study: Study, arm: str) -> list[str]:
    """Controls at equal budget, which the best of is compared with; none where there is only repetition.

    The best is chosen by the measure that it is compared by, which flatters the control.
    """
    arms = {name: next(iter(seeds.values())) for name, seeds in study.by_arm().items()}
    fair = [name for name, one in arms.items() if one.like in CONTROLS and is_at_equal_budget(one, arms[BASELINE])]
    is_rival = arms[arm].share is not None and arms[arm].like not in CONTROLS
    return fair if is_rival and is_at_equal_budget(arms[arm], arms[BASELINE]) and len(fair) > 1 else []


def _controls_at_same_share(study: Study, arm: str) -> list[str]:
    """Controls of the same round that train in the same way on as much text that was written in another; none of a
    control."""
    arms = {name: next(iter(seeds.values())) for name, seeds in study.by_arm().items()}
    own = arms[arm]
    if own.share is None or own.like in CONTROLS or own.members:
        return []
    like = {
        name: one
        for name, one in arms.items()
        if one.like in CONTROLS and (one.share, one.round) == (own.share, own.round)
    }
    return [name for name, one in like.items() if _training_settings(one) == _training_settings(own)]


def _training_settings(one: Training) -> dict[str, Any]:
    """All in which a gain could lie beside what the synthetic text says and was written from: order and rows are the
    mixture's, and who wrote it a base LM like the other's."""
    ancestors = one.model.ancestry().values()
    writers = [_settings_of(node) for node in ancestors if node.stage.writes == "base_lm"]
    return _settings_of(one.model) | {"mixture": one.model.config.mixture, "corpus": _corpus(one), "writers": writers}


def _settings_of(model: Node) -> dict[str, Any]:
    pretrain = model.config.pretrain.model_dump(exclude={"seed", "resources"})
    return {"pretrain": pretrain, "model": model.config.model}


def _corpus(one: Training) -> str:
    return one.model.inputs["corpus"].key


def is_at_equal_budget(one: Training, base: Training) -> bool:
    """Whether both trained a model of the same shape for as many tokens, or for as many as a sweep found best, on the
    same real text or what was made from it."""
    is_as_long = one.tokens == base.tokens or one.tuning is not None
    return is_as_long and one.model.config.model == base.model.config.model and _corpus(one) == _corpus(base)


def _share_of_oracle(losses: Values, arm: str, oracle: str | None) -> dict[str, float] | None:
    if oracle is None or arm == BASELINE or not (seeds := paired_seeds(losses, arm, BASELINE, oracle)):
        return None
    gains = [[losses[BASELINE][seed] - losses[name][seed] for seed in seeds] for name in (arm, oracle)]
    share = share_of_gain(*gains)
    return None if share is None else share._asdict()


def _both_ends(stats_S: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Held-out loss along the training at the checkpoint that was exported, and at the last; means over the seeds."""
    ends = [(stats["exported"], stats["final"]) for stats in stats_S if "validation_nats" in stats.get("exported", {})]
    if not ends:
        return None
    exported, last = (float(np.mean([end["validation_nats"] for end in column])) for column in zip(*ends, strict=True))
    after = float(np.mean([chosen["step"] / final["step"] for chosen, final in ends]))
    return {"exported": exported, "last": last, "exported_after": after}


def _tuning(one: Training) -> dict[str, Any] | None:
    if one.tuning is None:
        return None
    found = one.tuning
    settings = {name: {"tried": list(found.tried[name]), "chosen": value} for name, value in found.chosen.items()}
    return {"settings": settings, "trainings": len(found.trials), "max_trainings": found.max_trainings}


def _mean_cost(costs: Sequence[Costs | None]) -> dict[str, float] | None:
    """The mean over the seeds; None where nobody counted."""
    counted = [cost for cost in costs if cost is not None]
    return {key: float(np.mean([cost[key] for cost in counted])) for key in counted[0]} if counted else None


def equal_cost_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each arm with synthetic text beside arms that repeat the same real text, by the total cost of each.

    `against` is the cheapest arm like repetition that costs as much or more, to within 5 %: the same compute, all of it
    spent. `within` is the best of all arms that repeat the text and cost no more, to within 5 %: whoever has the
    compute need not spend it on passes that no longer help. `within` is chosen by the measure that it is compared by,
    which flatters it. Where there is none, as beside an arm that costs less than repetition, each is None.
    """
    rows = [row for row in rows if row["cost"] and HEADLINE in row["measures"]]
    losses = losses_of(rows)
    base = next((row for row in rows if row["name"] == BASELINE), {})
    repeated = [row for row in rows if row["share"] is None and row["corpus"] == base["corpus"]]
    found = []
    for row in (row for row in rows if row["share"] is not None):
        wanted = row["cost"]["flops"]
        enough = [r for r in repeated if r["like"] == BASELINE and r["cost"]["flops"] >= _SAME_COST * wanted]
        within = [r for r in repeated if _SAME_COST * r["cost"]["flops"] <= wanted]
        against = min(enough, key=lambda r: r["cost"]["flops"], default=None)
        best = min(within, key=lambda r: r["measures"][HEADLINE]["mean"], default=None)
        entry = {"name": row["name"], "flops": wanted, "times_repetition": wanted / base["cost"]["flops"]}
        entry |= {"against": against and _beside(losses, row, against), "within": best and _beside(losses, row, best)}
        found.append(entry)
    return found


def losses_of(rows: Sequence[Mapping[str, Any]]) -> Values:
    """Held-out losses, which answer."""
    return {row["name"]: {int(s): x for s, x in row["measures"][HEADLINE]["by_seed"].items()} for row in rows}


def _beside(losses: Values, row: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    gained = gain_beside(losses, row["name"], other["name"])
    return {"name": other["name"], "flops": other["cost"]["flops"], **gained}
