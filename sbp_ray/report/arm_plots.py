"""Plots of the page: colours and line styles of its arms, and the numbers that each plot shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray.report import plots
from sbp_ray.report.headline import HEADLINE, TEXT_SETS
from sbp_ray.report.panel_page import REAL_TEXTS, panel_plots
from sbp_ray.report.wording import interval_of

_COLOURS = {"repetition": plots.REPETITION, "sbp": plots.SBP, "oracle": plots.THIRD}
_STYLES = ("-", "--", ":", "-.")
DEGREES = (
    ("listed_by", "In lists of others, in the band", plots.MUTED),
    ("as_d2", "As d2, after max_as_d2", plots.SBP),
    ("as_d1", "As d1, after both caps", plots.REPETITION),
)
"""How often a document appears: name, label and colour."""

Looks = dict[str, tuple[str, str]]
"""By the name of an arm: its colour and the style of its line."""


def looks_of(arms: Sequence[Mapping[str, Any]]) -> Looks:
    """SBP, repetition and oracle have colours of their own, with a line style for each variant; controls share four."""
    found: Looks = {}
    controls = [arm["arm"] for arm in arms if arm["like"] not in _COLOURS]
    order = {name: place for place, name in enumerate(dict.fromkeys(controls))}
    used: dict[str, int] = {}
    for arm in arms:
        place = order.get(arm["arm"], 0)
        colour = _COLOURS.get(arm["like"], plots.OTHERS[place % len(plots.OTHERS)])
        style = _STYLES[used.get(colour, 0) % len(_STYLES)]
        used[colour] = used.get(colour, 0) + 1
        found[arm["name"]] = colour, style
    return found


def arm_plots(results: Mapping[str, Any]) -> dict[str, Any]:
    """All but those of the pairs, by name."""
    arms, quality = results["arms"], results["quality"]
    looks = looks_of(arms)
    base = next(arm for arm in arms if arm["name"] == "repetition")
    alike = [arm for arm in arms if arm["tokens"] == base["tokens"]]  # an arm that trains on would flatten the others
    points = {(curve["name"], curve["seed"]): curve["points"] for curve in results["curves"]}
    series: list[plots.Curve] = [
        (arm["name"], *looks[arm["name"]], [points.get((arm["name"], seed), ()) for seed in results["seeds"]])
        for arm in alike
        if not arm["members"]  # an ensemble has no curve of its own
    ]
    tuned = [(", ".join(row["for"]), looks[row["for"][0]][0], "-", [row["points"]]) for row in results["synthesizers"]]
    costs = [
        (arm["name"], looks[arm["name"]][0], arm["cost"]["flops"], arm["measures"][HEADLINE]["mean"])
        for arm in alike
        if arm["cost"] and HEADLINE in arm["measures"]
    ]
    return {
        "curves": plots.loss_curves("arms", series),
        "gains_along": plots.gain_curves(series, "repetition"),
        "synthesizers": plots.loss_curves("synthesizers", tuned),
        "gains": _gains(alike, looks),
        "cost": plots.loss_by_cost(costs),
        **(panel_plots(_texts(quality, arms, looks), quality["relevance"], _mined(quality)) if quality else {}),
    }


def _gains(arms: Sequence[Mapping[str, Any]], looks: Looks) -> dict[str, Any]:
    """A plot for each set of texts; of a single arm beside repetition one plot, `all`, with a line for each set."""
    rows: dict[str, list[tuple[str, str, float, Any]]] = {}
    others = [arm for arm in arms if arm["name"] != "repetition"]
    for name, label in TEXT_SETS.items():
        for arm in others:
            measure = arm["measures"].get(f"{name}_nats_per_token")
            if measure and measure["gain"] is not None:
                is_alone = len(others) == 1
                row = (label if is_alone else arm["name"], looks[arm["name"]][0], measure["gain"], interval_of(measure))
                rows.setdefault("all" if is_alone else name, []).append(row)
    return {name: plots.arm_gains(f"gains-{name.replace('_', '-')}", found) for name, found in rows.items()}


def _texts(
    quality: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], looks: Looks
) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The first synthesis of each kind, and the real texts."""
    colours = {arm["arm"]: looks[arm["name"]][0] for arm in reversed(arms)}
    series, names = [], set[str]()
    for column in quality["syntheses"]:
        if column["documents"] and column["name"] not in names:
            names.add(column["name"])
            arm = next(arm for arm in arms if arm["name"] in column["for"])
            series.append((column["name"], colours[arm["arm"]], column))
    real = [(label, colour, quality["real"][name]) for name, label, colour in REAL_TEXTS]
    return series + [entry for entry in real if entry[2]]


def _mined(quality: Mapping[str, Any]) -> Any:
    """Relevance of the mined pairs, where they were measured."""
    return (quality["real"].get("mined") or {"d1": {"relevance": None}})["d1"]["relevance"]


def mining_plots(mining: Mapping[str, Any], suffix: str = "") -> dict[str, Any]:
    """How the neighbours lie. `suffix`: tells the plots apart from those of other pairs on the same page."""
    if not mining["bands"]:
        return dict.fromkeys(("bands", "thresholds", "degrees"))
    limits = mining["limits"]["min_cosine"], mining["limits"]["max_cosine"]
    degrees = [(label, colour, mining["degrees"][name]["histogram"]) for name, label, colour in DEGREES]
    return {
        "bands": plots.bands(mining["bands"], limits, suffix),
        "thresholds": plots.thresholds(mining["thresholds"], limits, suffix),
        "degrees": plots.degrees(degrees, suffix),
    }
