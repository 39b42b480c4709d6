"""`experiment.html`: the answer first, then curves, tables, controls, costs, and how each number was made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray import __version__
from sbp_ray.report import plots, words
from sbp_ray.report.page import environment

HEADLINE = "held_out_nats_per_token"
"""The measure that answers."""
LABELS = {
    "held_out_nats_per_token": "Held-out documents, nats a token",
    "held_out_nats_per_byte": "Held-out documents, nats a byte",
    "answers_read_nats_per_byte": "Answers on articles it read, nats a byte",
    "answers_held_out_nats_per_byte": "Answers on held-out articles, nats a byte",
}
_COLOURS = {"repetition": plots.REPETITION, "sbp": plots.SBP, "oracle": plots.THIRD}
_STYLES = ("-", "--", ":", "-.")


def render_experiment(results: Mapping[str, Any]) -> str:
    """The whole page: inline styles, inline SVG, no script, no request."""
    arms = results["arms"]
    return (
        environment()
        .get_template("experiment.html.j2")
        .render(
            results=results,
            version=__version__,
            words=words,
            answer=answer(results),
            remarks=remarks(results),
            labels=LABELS,
            headline=HEADLINE,
            perplexity=math.exp,
            measures=[name for name in LABELS if arms and name in arms[0]["measures"]],
            plots={
                "curves": plots.arm_curves(_curve_series(results)),
                "gains": plots.arm_gains(_gain_rows(arms)),
                "cost": plots.loss_by_cost(
                    [(a["name"], _colour(a), a["cost"]["flops"], a["measures"][HEADLINE]["mean"]) for a in arms]
                ),
            },
            settings=json.dumps(results["settings"], indent=2, ensure_ascii=False),
        )
    )


def render_table(results: Mapping[str, Any]) -> str:
    """The answer and the arms for the terminal."""
    lines = [answer(results), ""]
    rows = [("arm", "held-out loss", "gain over repetition", "of the oracle's gain", "FLOPs in all")]
    for arm in results["arms"]:
        found = arm["measures"][HEADLINE]
        share = found["share_of_oracle"]
        rows.append(
            (
                arm["name"],
                words.fixed(found["mean"]),
                gain_words(found),
                "–" if share is None else words.percent_interval(share),
                f"{arm['cost']['flops']:.1e}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *remarks(results)])


def gain_words(found: Mapping[str, Any]) -> str:
    """A gain with its interval over seeds; without one where there is but one seed."""
    if found["gain"] is None:
        return "–"
    if found["gain_by_seed"] is None:
        return f"{words.signed(found['gain'])} (one seed: no interval)"
    return words.interval(found["gain_by_seed"])


# What the page says first


def answer(results: Mapping[str, Any]) -> str:
    """What SBP gained, plus or minus what, at what cost, against repetition and the oracle."""
    sbp = _comparable(results)
    if not sbp:
        return "No arm of this experiment trained on synthetic text as SBP does, on as many tokens as repetition."
    best = max(sbp, key=lambda arm: arm["measures"][HEADLINE]["gain"])
    found = best["measures"][HEADLINE]
    [base] = [arm for arm in results["arms"] if arm["name"] == "repetition"]
    times = best["cost"]["flops"] / base["cost"]["flops"]
    return f"{_verdict(best['name'], found)}, at {times:.1f} times its cost{_beside_oracle(found)}."


def _comparable(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Arms with SBP text that trained on as many tokens as repetition."""
    [base] = [arm for arm in results["arms"] if arm["name"] == "repetition"]
    return [arm for arm in results["arms"] if arm["like"] == "sbp" and arm["tokens"] == base["tokens"]]


def _verdict(name: str, found: Mapping[str, Any]) -> str:
    gained = f"{gain_words(found)} nats a token over repetition on held-out text"
    interval = found["gain_by_seed"]
    if interval is None:
        return f"{name}: {gained}"
    if interval["low"] > 0:
        return f"{name} gained {gained}"
    if interval["high"] < 0:
        return f"{name} lost: {gained}"
    return f"{name} shows no difference: {gained}"


def _beside_oracle(found: Mapping[str, Any]) -> str:
    share = found["share_of_oracle"]
    return "" if share is None else f"; that is {words.percent_interval(share)} of what the oracle gained"


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know to believe the answer, or not."""
    found = []
    sbp = _comparable(results)
    if len(sbp) > 1:
        found.append(
            f"The best of {len(sbp)} arms with SBP text is named, chosen by this same measure, which flatters SBP."
        )
    [base] = [arm for arm in results["arms"] if arm["name"] == "repetition"]
    for arm in results["arms"]:
        if arm["tokens"] != base["tokens"]:
            found.append(
                f"{arm['name']} trained on {words.scaled(arm['tokens'])} tokens and repetition on "
                f"{words.scaled(base['tokens'])}: its gain is not one at equal tokens."
            )
    oracle = [arm for arm in results["arms"] if arm["like"] == "oracle"]
    if oracle and not _excludes_zero(oracle[0]["measures"][HEADLINE]["gain_by_seed"]):
        found.append(
            "The oracle's own gain is not distinguishable from zero with these seeds, so no share of it is given."
        )
    for row in results["equal_cost"]:
        if row["against"] is None:
            found.append(
                f"{row['name']} costs {row['times_repetition']:.1f} times as much as repetition, and no arm that "
                "repeats the text costs as much: at equal cost it is not compared."
            )
        else:
            found.append(
                f"At equal cost ({row['flops']:.1e} FLOPs, {row['against']} {row['against_flops']:.1e}) {row['name']} "
                f"gains {gain_words(row)} nats a token."
            )
    if not results["synthesizer_per_seed"]:
        found.append("All seeds share one synthesis: the intervals leave out how far another would move the result.")
    if results["dead"]:
        found.append(f"{len(results['dead'])} trainings have no result: {'; '.join(results['dead'])}.")
    return found


def _excludes_zero(found: Mapping[str, float] | None) -> bool:
    return found is not None and (found["low"] > 0 or found["high"] < 0)


# Plots


def _colour(arm: Mapping[str, Any]) -> str:
    return _COLOURS.get(arm["like"], plots.MUTED)


def _gain_rows(arms: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float, Mapping[str, float] | None]]:
    found = [(arm["name"], _colour(arm), arm["measures"][HEADLINE]) for arm in arms]
    return [(name, colour, m["gain"], m["gain_by_seed"]) for name, colour, m in found if m["gain"] is not None]


def _curve_series(
    results: Mapping[str, Any],
) -> list[tuple[str, str, str, list[tuple[float, float, float, float]]]]:
    by_name: dict[str, dict[float, list[float]]] = {}
    for curve in results["curves"]:
        losses_at = by_name.setdefault(curve["name"], {})
        for point in curve["points"]:
            if "validation_nats" in point:
                losses_at.setdefault(point["tokens"], []).append(point["validation_nats"])
    series, used = [], dict.fromkeys(_VARIABLES, 0)
    for arm in results["arms"]:
        colour = _colour(arm)
        style = _STYLES[used[colour] % len(_STYLES)]
        used[colour] += 1
        losses = sorted(by_name.get(arm["name"], {}).items())
        points = [(tokens, sum(found) / len(found), min(found), max(found)) for tokens, found in losses]
        series.append((arm["name"], colour, style, points))
    return series


_VARIABLES = (plots.REPETITION, plots.SBP, plots.THIRD, plots.MUTED)
