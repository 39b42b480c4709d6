"""Plots of an experiment's page: colours and line styles of its arms, and the numbers that each plot shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray.report import plots
from sbp_ray.report.panel_page import REAL_TEXTS, panel_plots

HEADLINE = "held_out_nats_per_token"
"""The measure that answers."""
_COLOURS = {"repetition": plots.REPETITION, "sbp": plots.SBP, "oracle": plots.THIRD}
_STYLES = ("-", "--", ":", "-.")

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


def experiment_plots(results: Mapping[str, Any]) -> dict[str, Any]:
    """All but those of the pairs, by name."""
    looks = looks_of(results["arms"])
    arms = results["arms"]
    [base] = [arm for arm in arms if arm["name"] == "repetition"]
    alike = [arm for arm in arms if arm["tokens"] == base["tokens"]]  # one that trains on would flatten the others
    series = _curve_series(results, alike, looks)
    quality = results["quality"]
    return {
        "curves": plots.arm_curves(series),
        "gains_along": plots.gain_curves(
            [entry for entry in series if entry[0] != "repetition"],
            next((seeds for name, _, _, seeds in series if name == "repetition"), ()),
        ),
        "gains": plots.arm_gains(_gain_rows(alike, looks)),
        "cost": plots.loss_by_cost(
            [(a["name"], looks[a["name"]][0], a["cost"]["flops"], a["measures"][HEADLINE]["mean"]) for a in alike]
        ),
        **(panel_plots(_text_series(quality, arms, looks), quality["relevance"]) if quality else {}),
    }


def _gain_rows(
    arms: Sequence[Mapping[str, Any]], looks: Looks
) -> list[tuple[str, str, float, Mapping[str, float] | None]]:
    found = [(arm["name"], looks[arm["name"]][0], arm["measures"][HEADLINE]) for arm in arms]
    return [(name, colour, m["gain"], m["gain_by_seed"]) for name, colour, m in found if m["gain"] is not None]


def _curve_series(results: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], looks: Looks) -> list[plots.ArmCurve]:
    """Of each of the arms the held-out loss of each seed, in the order of the seeds."""
    curves = {(curve["name"], curve["seed"]): curve["points"] for curve in results["curves"]}
    series: list[plots.ArmCurve] = []
    for arm in arms:
        seeds = [
            {p["tokens"]: p["validation_nats"] for p in curves.get((arm["name"], seed), ()) if "validation_nats" in p}
            for seed in results["seeds"]
        ]
        series.append((arm["name"], *looks[arm["name"]], seeds))
    return series


def _text_series(
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
    for name, label, colour in REAL_TEXTS:
        if quality["real"][name]:
            series.append((label, colour, quality["real"][name]))
    return series
