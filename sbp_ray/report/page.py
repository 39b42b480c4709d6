"""`report.html`: one page that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sbp_ray import __version__
from sbp_ray.logs import duration
from sbp_ray.report import paper, plots, words
from sbp_ray.report.panel_page import REAL_TEXTS, notes, panel_plots, panel_table

_TEXT_SAMPLES = (("synthetic", "Synthetic", plots.SBP), *REAL_TEXTS)
"""Column of the quality panel, its label and its colour."""


def render_page(report: Mapping[str, Any]) -> str:
    """The whole page: inline styles, inline SVG, no script, no request."""
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            version=__version__,
            words=words,
            paper=paper,
            comparisons=_comparisons(report),
            plots=_plots(report),
            panel=panel_table(report["quality"]["table"]),
            panel_notes=notes(report["quality"]),
            samples=_samples(report["quality"]),
            degree_rows=DEGREE_ROWS,
            settings=json.dumps(report["settings"], indent=2, ensure_ascii=False),
        )
    )


def environment() -> Environment:
    """Of the pages' templates, with the numbers' formats as filters."""
    made = Environment(
        loader=PackageLoader("sbp_ray.report", "."),
        autoescape=True,  # documents are other people's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "scaled": words.scaled,
        "fixed": words.fixed,
        "signed": words.signed,
        "percent": words.percent,
        "interval": words.interval,
        "percent_interval": words.percent_interval,
        "cell": _cell,
        "duration": lambda seconds: "–" if seconds is None else duration(seconds),
    }
    return made


def _cell(text: str) -> Markup:
    """A number, and its interval apart, where the page can set it below on a phone."""
    value, space, rest = text.partition(" [" if " [" in text else " (")
    if not space:
        return Markup.escape(value)
    return Markup('{}<span class="ci">{}</span>').format(value, space[1] + rest)


_NATS = (("nats_per_token", "Nats a token", 3), ("nats_per_byte", "Nats a byte", 3))
_PERPLEXITY = (("perplexity", "Perplexity", 1), ("bits_per_byte", "Bits a byte", 3))


def _comparisons(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What both arms were scored on: a label, the unit, the measures to show with their digits, and the numbers."""
    rows = []
    if report["held_out"]:
        measures = (*_PERPLEXITY, *_NATS)
        rows.append({"label": "Held-out documents", "unit": "documents", "measures": measures, **report["held_out"]})
    if report["questions"]:
        for split, table in report["questions"]["splits"].items():
            label = f"Answers, {words.SPLIT_WORDS[split]}"
            rows.append({"label": label, "unit": "questions", "measures": _NATS, **table})
    return rows


def _samples(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Synthetic documents beside their d1 and the nearest real document."""
    column = quality["texts"]["synthetic"]
    return [shown_beside(row, [("Synthetic", row)]) for row in (column or {}).get("shown", ())]


def shown_beside(first: Mapping[str, Any], written: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """A d1, what was written for it, and the real document that the first of these is nearest to.

    Args:
        first: a row of `shown`.
        written: a label, and such a row, of each synthesizer.
    """
    return {
        "group": first["group"],
        "d1": first["d1"],
        "nearest": None if first["nearest_id"] == first["d1_id"] else first["nearest"],
        "nearest_cosine": first["nearest_cosine"],
        "written": [{"label": label, **row} for label, row in written],
    }


def _plots(report: Mapping[str, Any]) -> dict[str, Markup | None]:
    curves, quality = report["curves"], report["quality"]
    rows = [(row["label"], row["difference"]["nats_per_token"]) for row in _comparisons(report)]
    texts = [(label, colour, quality["texts"][name]) for name, label, colour in _TEXT_SAMPLES]
    arms = [("Repetition", plots.REPETITION, curves["repetition"]), ("SBP", plots.SBP, curves["sbp"])]
    mined = (quality["texts"]["mined"] or {"d1": {"relevance": None}})["d1"]["relevance"]
    return {
        "differences": plots.differences(rows) if rows else None,
        "arms": plots.curves("arms", arms),
        "synthesizer": plots.curves("synthesizer", [("Synthesizer", plots.THIRD, curves["synthesizer"])]),
        **panel_plots([entry for entry in texts if entry[2]], quality["relevance"], mined),
        **mining_plots(report["mining"]),
    }


_DEGREES = (
    ("listed_by", "In lists of others, in the band", plots.MUTED),
    ("as_d2", "As d2, after max_as_d2", plots.SBP),
    ("as_d1", "As d1, after both caps", plots.REPETITION),
)


DEGREE_ROWS = [(label, name) for name, label, _ in _DEGREES]


def mining_plots(mining: Mapping[str, Any] | None, suffix: str = "") -> dict[str, Markup | None]:
    """How the neighbours lie. `suffix`: tells the plots apart from those of other pairs on the same page."""
    if mining is None or not mining["bands"]:
        return dict.fromkeys(("bands", "thresholds", "degrees"))
    limits = mining["limits"]["min_cosine"], mining["limits"]["max_cosine"]
    degrees = [(label, colour, mining["degrees"][name]["histogram"]) for name, label, colour in _DEGREES]
    return {
        "bands": plots.bands(mining["bands"], limits, suffix),
        "thresholds": plots.thresholds(mining["thresholds"], limits, suffix),
        "degrees": plots.degrees(degrees, suffix),
    }
