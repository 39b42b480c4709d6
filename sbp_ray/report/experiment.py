"""`experiment.html`: the answer first, then curves, tables, controls, costs, and how each number was made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray import __version__
from sbp_ray.report import paper, words
from sbp_ray.report.experiment_plots import HEADLINE, experiment_plots
from sbp_ray.report.page import DEGREE_ROWS, environment, mining_plots, shown_beside
from sbp_ray.report.panel_page import notes, panel_table

LABELS = {
    "held_out_nats_per_token": "Held-out documents, nats a token",
    "held_out_nats_per_byte": "Held-out documents, nats a byte",
    "answers_read_nats_per_byte": "Answers on articles it read, nats a byte",
    "answers_held_out_nats_per_byte": "Answers on held-out articles, nats a byte",
}
_NO_SHARE = "Not given: the oracle’s own gain is not distinguishable from zero, or there is no oracle."
_MAX_SHOWN = 8  # samples: each with what every synthesizer wrote


def render_experiment(results: Mapping[str, Any]) -> str:
    """The whole page: inline styles, inline SVG, no script, no request."""
    quality = results["quality"]
    return (
        environment()
        .get_template("experiment.html.j2")
        .render(
            results=results,
            version=__version__,
            words=words,
            paper=paper,
            answer=answer(results),
            tiles=tiles(results),
            remarks=remarks(results),
            gain_words=gain_words,
            labels=LABELS,
            headline=HEADLINE,
            perplexity=math.exp,
            measures=[name for name in LABELS if results["arms"] and name in results["arms"][0]["measures"]],
            plots=experiment_plots(results),
            panel=panel_table(quality["table"]) if quality else None,
            panel_notes=notes(quality) if quality else (),
            samples=_samples(quality["syntheses"]) if quality else (),
            mining=[(facts, mining_plots(facts, f"-{place}")) for place, facts in enumerate(results["mining"])],
            degree_rows=DEGREE_ROWS,
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


def best_sbp(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The arm with SBP text that gained most."""
    sbp = _comparable(results)
    return max(sbp, key=lambda arm: arm["measures"][HEADLINE]["gain"]) if sbp else None


def answer(results: Mapping[str, Any]) -> str:
    """What SBP gained, plus or minus what, at what cost, against repetition and the oracle."""
    best = best_sbp(results)
    if best is None:
        return "No arm of this experiment trained on synthetic text as SBP does, on as many tokens as repetition."
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
    names = {arm["name"] for arm in sbp}
    for row in (row for row in results["equal_cost"] if row["name"] in names):  # the table has the controls too
        found.append(_at_equal_cost(row))
    if not results["synthesizer_per_seed"]:
        found.append("All seeds share one synthesis: the intervals leave out how far another would move the result.")
    if results["dead"]:
        found.append(f"{len(results['dead'])} trainings have no result: {'; '.join(results['dead'])}.")
    return found


def _at_equal_cost(row: Mapping[str, Any]) -> str:
    against, within = row["against"], row["within"]
    best = f"Of what repeats the text for no more, {within['name']} is best: beside it {row['name']} gains "
    best += f"{gain_words(within)} nats a token."
    if against is None:
        times = f"{row['times_repetition']:.1f} times as much as repetition"
        return f"{row['name']} costs {times}, and no arm that repeats the text costs as much. {best}"
    costs = f"{row['flops']:.1e} FLOPs, {against['name']} {against['flops']:.1e}"
    spent = f"At equal cost, all of it spent ({costs}), {row['name']} gains {gain_words(against)} nats a token."
    return spent if against["name"] == within["name"] else f"{spent} {best}"


def _excludes_zero(found: Mapping[str, float] | None) -> bool:
    return found is not None and (found["low"] > 0 or found["high"] < 0)


def tiles(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answer in numbers: a title, lines of label, number and colour, and a note."""
    best = best_sbp(results)
    if best is None:
        return []
    found = best["measures"][HEADLINE]
    arms = {arm["name"]: arm for arm in results["arms"]}
    base = arms["repetition"]
    oracle = next((arm for arm in results["arms"] if arm["like"] == "oracle"), None)
    shown = [("Repetition", base, "rep"), (best["name"], best, "sbp"), ("Oracle", oracle, "third")]
    losses = [(n, words.fixed(arm["measures"][HEADLINE]["mean"]), c) for n, arm, c in shown if arm]
    costs = [(n, f"{arm['cost']['flops'] / base['cost']['flops']:.1f} ×", c) for n, arm, c in shown if arm]
    share = found["share_of_oracle"]
    share_note = f"The paper’s: {paper.SHARES_OF_ORACLE}, of the gain in QA accuracy of 3 and 6 B parameters."
    return [
        {"title": "Held-out loss, nats a token", "lines": losses, "note": f"Gain {gain_words(found)}."},
        {
            "title": "Share of the oracle’s gain",
            "lines": [(best["name"], words.percent(share and share["value"]), "sbp")],
            "note": f"{words.percent_interval(share)}. {share_note}" if share else f"{_NO_SHARE} {share_note}",
        },
        {
            "title": "Total cost, beside repetition",
            "lines": costs,
            "note": "FLOPs of all that the arm needs: embedding, tuning and generation too.",
        },
    ]


def _samples(syntheses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each synthesizer wrote for one d1: those first that most of them kept."""
    by_name: dict[str, dict[str, Mapping[str, Any]]] = {}
    for column in syntheses:
        by_name.setdefault(column["name"], {row["doc_id"]: row for row in column.get("shown", ())})
    counts: dict[str, int] = {}
    for rows in by_name.values():
        for doc_id in rows:
            counts[doc_id] = counts.get(doc_id, 0) + 1
    chosen = sorted(counts, key=lambda doc_id: -counts[doc_id])[:_MAX_SHOWN]
    found = []
    for doc_id in chosen:
        written = [(name, rows[doc_id]) for name, rows in by_name.items() if doc_id in rows]
        found.append(shown_beside(written[0][1], written))
    return found
