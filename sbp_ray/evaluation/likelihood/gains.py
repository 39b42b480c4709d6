"""What each arm learned: losses, gains over repetition, and gains at equal cost.

A loss is in nats, lower is better. A *gain* is repetition's loss minus an arm's: above zero the arm is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbp_ray.evaluation.intervals import estimate_over_groups, mean_interval, share_of_gain
from sbp_ray.evaluation.likelihood.checkpoints import Scores
from sbp_ray.evaluation.likelihood.scored_texts import ANSWERS, HELD_OUT, Texts
from sbp_ray.evaluation.study import BASELINE, ORACLE, Costs, Study, Training

# S = seeds, N = units of a set of texts

MEASURES = {
    f"{name}_nats_per_{unit}": (name, unit) for name in (HELD_OUT, *ANSWERS.values()) for unit in ("token", "byte")
}
"""Set of texts, and what the NLL is divided by."""
HEADLINE = "held_out_nats_per_token"
"""The measure that answers."""
_SAME_COST = 0.95  # of an arm's cost: near enough to be called equal

Losses = Mapping[str, Mapping[int, float]]
"""By name of the arm and seed."""


def arm_rows(study: Study, scores: Mapping[str, Scores], texts: Texts) -> list[dict[str, Any]]:
    """One row for each arm with its share and round.

    Args:
        scores: by the key of the model.
    """
    by_arm = study.by_arm()
    measures = {name: _measure_arms(by_arm, scores, texts, *MEASURES[name], study) for name in MEASURES
                if MEASURES[name][0] in texts.sets}  # fmt: skip
    rows = []
    for name, seeds in by_arm.items():
        one = next(iter(seeds.values()))
        row = {key: getattr(one, key) for key in ("name", "arm", "says", "like", "tokens", "share", "round")}
        row["seeds"] = sorted(seeds)
        row["models"] = {str(seed): training.model.key for seed, training in seeds.items()}
        row["parameters"] = scores[one.model.key].num_parameters
        row["mixture"] = one.model.stats.get("mixture")
        for key, costs in (("cost", study.costs), ("own_cost", study.own_costs)):
            row[key] = _mean_cost([costs.get(training.model.key) for training in seeds.values()])
        row["measures"] = {measure: found[name] for measure, found in measures.items()}
        rows.append(row)
    return rows


def _measure_arms(
    by_arm: Mapping[str, Mapping[int, Training]],
    scores: Mapping[str, Scores],
    texts: Texts,
    text_set: str,
    unit: str,
    study: Study,
) -> dict[str, dict[str, Any]]:
    """One measure of every arm: its losses by seed, and its gain with an interval over seeds and one over groups."""
    sizes_N = texts.sets[text_set].sizes(unit)
    nll = {arm: {s: scores[t.model.key].nll[text_set] for s, t in seeds.items()} for arm, seeds in by_arm.items()}
    losses = {arm: {s: float(nll_N.sum() / sizes_N.sum()) for s, nll_N in seeds.items()} for arm, seeds in nll.items()}
    oracle = next((t.name for seeds in by_arm.values() for t in seeds.values() if t.like == ORACLE), None)
    found = {}
    for arm in by_arm:
        found[arm] = {
            "by_seed": {str(seed): losses[arm][seed] for seed in sorted(losses[arm])},
            "mean": float(np.mean(list(losses[arm].values()))),
            "interval": over_seeds(list(losses[arm].values())),
            **gain_beside(losses, arm, BASELINE),
            "over_groups": None,
            "share_of_oracle": _share_of_oracle(losses, arm, oracle),
        }
        if both := _paired(losses, arm, BASELINE):
            gain_N = np.mean([nll[BASELINE][seed] - nll[arm][seed] for seed in both], axis=0)
            over = estimate_over_groups(gain_N, sizes_N, texts.sets[text_set].groups, seed=study.settings.eval.seed)
            found[arm]["over_groups"] = over
    return found


def over_seeds(values_S: Sequence[float]) -> dict[str, Any] | None:
    """Their mean with a 95 % t-interval; None for a single seed."""
    interval = mean_interval(values_S)
    return None if interval is None else {**interval.as_dict(), "unit": "seeds", "units": len(values_S)}


def gain_beside(losses: Losses, arm: str, other: str) -> dict[str, Any]:
    """What an arm gains over another, paired by seed."""
    gain_S = [losses[other][seed] - losses[arm][seed] for seed in _paired(losses, arm, other)]
    return {"gain": float(np.mean(gain_S)) if gain_S else None, "over_seeds": over_seeds(gain_S)}


def _paired(losses: Losses, arm: str, *others: str) -> list[int]:
    """Seeds that all of them have; none beside itself."""
    return [] if arm in others else sorted(set(losses[arm]).intersection(*(losses[other] for other in others)))


def _share_of_oracle(losses: Losses, arm: str, oracle: str | None) -> dict[str, float] | None:
    if oracle is None or arm == BASELINE or not (seeds := _paired(losses, arm, BASELINE, oracle)):
        return None
    gains = [[losses[BASELINE][seed] - losses[name][seed] for seed in seeds] for name in (arm, oracle)]
    share = share_of_gain(*gains)
    return None if share is None else share.as_dict()


def _mean_cost(costs: Sequence[Costs | None]) -> dict[str, float] | None:
    """The mean over the seeds; None where nobody counted."""
    counted = [cost for cost in costs if cost is not None]
    return {key: float(np.mean([cost[key] for cost in counted])) for key in counted[0]} if counted else None


def equal_cost_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each arm with synthetic text beside arms that repeat the real text, by the total cost of each.

    `against` is the cheapest arm like repetition that costs as much or more, to within 5 %: the same compute, all of it
    spent. `within` is the best of all arms that repeat the text and cost no more, to within 5 %: whoever has the
    compute need not spend it on passes that no longer help. `within` is chosen by the measure that it is compared by,
    which flatters it.
    """
    rows = [row for row in rows if row["cost"] and HEADLINE in row["measures"]]
    losses = {row["name"]: {int(s): x for s, x in row["measures"][HEADLINE]["by_seed"].items()} for row in rows}
    repeated = [row for row in rows if row["share"] is None and row["like"] != ORACLE]
    found = []
    for row in (row for row in rows if row["share"] is not None):
        wanted = row["cost"]["flops"]
        enough = [r for r in repeated if r["like"] == BASELINE and r["cost"]["flops"] >= _SAME_COST * wanted]
        within = [r for r in repeated if _SAME_COST * r["cost"]["flops"] <= wanted]
        against = min(enough, key=lambda r: r["cost"]["flops"], default=None)
        best = min(within, key=lambda r: r["measures"][HEADLINE]["mean"])
        [base] = [r for r in rows if r["name"] == BASELINE]
        entry = {"name": row["name"], "flops": wanted, "times_repetition": wanted / base["cost"]["flops"]}
        entry |= {"against": against and _beside(losses, row, against), "within": _beside(losses, row, best)}
        found.append(entry)
    return found


def _beside(losses: Losses, row: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    gained = gain_beside(losses, row["name"], other["name"])
    return {"name": other["name"], "flops": other["cost"]["flops"], **gained}
