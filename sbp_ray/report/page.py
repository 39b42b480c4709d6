"""The page of a run or of an experiment: it needs nothing but itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sbp_ray import __version__
from sbp_ray.logs import duration
from sbp_ray.report import headline, paper, wording
from sbp_ray.report.arm_plots import DEGREES, arm_plots, mining_plots
from sbp_ray.report.fact_tables import fact_tables
from sbp_ray.report.panel_page import notes, panel_table

_MAX_SHOWN = 12  # samples: each with what every synthesizer wrote


def render_page(results: Mapping[str, Any]) -> str:
    """The whole page: inline styles, inline SVG, no script, no request.

    Args:
        results: as `evaluation.measure.measure_study` returns them, with `run_dir` and `settings`; of an experiment
            also `synthesizer_per_seed` and `dead`.
    """
    quality = results["quality"]
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            results=results,
            version=__version__,
            wording=wording,
            paper=paper,
            answer=headline.answer(results),
            tiles=headline.tiles(results),
            remarks=headline.remarks(results),
            gain_words=wording.gain_words,
            times_words=headline.times_words,
            text_sets={name: label for name, label in headline.TEXT_SETS.items() if name in results["texts"]},
            exp=math.exp,
            bit=math.log(2),
            plots=arm_plots(results),
            fact_tables=fact_tables(results["facts"]),
            panel=panel_table(quality["table"]) if quality else None,
            panel_notes=notes(quality, results["min_groups"]) if quality else (),
            samples=_samples(quality["syntheses"]) if quality else (),
            mining=[(facts, mining_plots(facts, f"-{place}")) for place, facts in enumerate(results["mining"])],
            degree_rows=[(label, name) for name, label, _ in DEGREES],
            settings=json.dumps(results["settings"], indent=2, ensure_ascii=False),
        )
    )


def environment() -> Environment:
    """Of the templates, with the numbers' formats as filters."""
    made = Environment(
        loader=PackageLoader("sbp_ray.report", "."),
        autoescape=True,  # documents are other people's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = ("scaled", "fixed", "signed", "percent", "interval", "percent_interval", "counts")
    made.filters |= {name: getattr(wording, name) for name in formats}
    made.filters |= {"cell": _cell, "duration": _duration}
    return made


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else duration(seconds)


def _cell(text: str) -> Markup:
    """A number, and its interval apart, where the page can set it below on a phone."""
    value, space, rest = text.partition(" [" if " [" in text else " (")
    if not space:
        return Markup.escape(value)
    return Markup('{}<span class="ci">{}</span>').format(value, space[1] + rest)


def _samples(syntheses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each synthesizer wrote for one d1, beside it and the nearest real document: those first that most kept."""
    by_name: dict[str, dict[str, Mapping[str, Any]]] = {}
    for column in syntheses:
        by_name.setdefault(column["name"], {row["doc_id"]: row for row in column.get("shown", ())})
    counts: dict[str, int] = {}
    for doc_id in (doc_id for rows in by_name.values() for doc_id in rows):
        counts[doc_id] = counts.get(doc_id, 0) + 1
    found = []
    for doc_id in sorted(counts, key=lambda doc_id: -counts[doc_id])[:_MAX_SHOWN]:
        written = [{"label": name, **rows[doc_id]} for name, rows in by_name.items() if doc_id in rows]
        first = written[0]
        nearest = None if first["nearest_id"] == first["d1_id"] else first["nearest"]
        found.append({**first, "nearest": nearest, "written": written})
    return found
