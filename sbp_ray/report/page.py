"""`report.html`: one page that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sbp_ray import __version__
from sbp_ray.logs import duration
from sbp_ray.report import paper, plots, words

_TEXT_SAMPLES = (
    ("synthetic", "Synthetic", plots.SBP),
    ("real_train", "Real, training", plots.REPETITION),
    ("real_held_out", "Real, held-out", plots.THIRD),
)


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
            quality_rows=_quality_rows(report["quality"]),
            pair_rows=_pair_rows(report["quality"]),
            degree_rows=[(label, name) for name, label, _ in _DEGREES],
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
    value, bracket, rest = text.partition(" [")
    return Markup('{}<span class="ci">[{}</span>').format(value, rest) if bracket else Markup.escape(value)


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


def _plots(report: Mapping[str, Any]) -> dict[str, Markup | None]:
    curves, quality = report["curves"], report["quality"]
    rows = [(row["label"], row["difference"]["nats_per_token"]) for row in _comparisons(report)]
    texts = [(label, colour, quality["texts"][name]) for name, label, colour in _TEXT_SAMPLES]
    texts = [(label, colour, measures) for label, colour, measures in texts if measures]
    arms = [("Repetition", plots.REPETITION, curves["repetition"]), ("SBP", plots.SBP, curves["sbp"])]
    return {
        "differences": plots.differences(rows) if rows else None,
        "arms": plots.curves("arms", arms),
        "synthesizer": plots.curves("synthesizer", [("Synthesizer", plots.THIRD, curves["synthesizer"])]),
        "relevance": _relevance_plot(quality["relevance"]),
        "lengths": _lengths_plot(texts),
        "novelty": plots.novelty([(label, colour, measures["novel"]) for label, colour, measures in texts]),
        **_mining_plots(report["mining"]),
    }


_DEGREES = (
    ("listed_by", "In lists of others, in the band", plots.MUTED),
    ("as_d2", "As d2, after max_as_d2", plots.SBP),
    ("as_d1", "As d1, after both caps", plots.REPETITION),
)


def _mining_plots(mining: Mapping[str, Any] | None) -> dict[str, Markup | None]:
    if mining is None or not mining["bands"]:
        return dict.fromkeys(("bands", "thresholds", "degrees"))
    limits = mining["limits"]["min_cosine"], mining["limits"]["max_cosine"]
    degrees = [(label, colour, mining["degrees"][name]["histogram"]) for name, label, colour in _DEGREES]
    return {
        "bands": plots.bands(mining["bands"], limits),
        "thresholds": plots.thresholds(mining["thresholds"], limits),
        "degrees": plots.degrees(degrees),
    }


def _relevance_plot(relevance: Mapping[str, Any] | None) -> Markup | None:
    if relevance is None:
        return None
    kinds = (("random", "Random pairs", plots.MUTED), ("mined", "Mined pairs", plots.REPETITION))
    series = [
        (label, colour, relevance[kind]["cosines"])
        for kind, label, colour in (*kinds, ("synthetic", "Synthetic", plots.SBP))
        if kind in relevance
    ]
    return plots.histograms("relevance", "cosine of d1 and d2", series, relevance["threshold"])


def _lengths_plot(texts: list[tuple[str, str, Mapping[str, Any]]]) -> Markup | None:
    if not texts:
        return None
    return plots.histograms(
        "lengths", "length (tokens)", [(label, colour, measures["lengths"]) for label, colour, measures in texts], None
    )


def _quality_rows(quality: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Measures of single texts: a label and a cell for each of the three samples."""
    columns = [quality["texts"][name] for name, _, _ in _TEXT_SAMPLES]

    def row(label: str, cell: Any) -> tuple[str, list[str]]:
        return label, [words.NOT_MEASURED if column is None else cell(column) for column in columns]

    return [
        row("Documents", lambda c: f"{c['documents']:,}"),
        row("Repetition", lambda c: words.percent_interval(c["repetition"])),
        row("Exact duplicates", lambda c: words.percent(c["exact_duplicates"])),
        row("Near-duplicates", lambda c: words.percent(c["near_duplicates"])),
        row("Tokens, mean", lambda c: words.fixed(c["tokens"]["mean"], 0)),
        row("Tokens, middle 80 %", lambda c: f"{c['tokens']['p10']:,.0f}–{c['tokens']['p90']:,.0f}"),
        *(
            row(f"Novel runs of {length}", lambda c, n=length: words.percent(c["novel"][n]))
            for length in (columns[0] or columns[1] or {"novel": {}})["novel"]
        ),
    ]


def _pair_rows(quality: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Measures of pairs: a label and a cell for synthetic and for mined pairs."""
    kinds = ("synthetic", "mined")
    copying, relevance = quality["copying"], quality["relevance"] or {}

    def row(label: str, part: Mapping[str, Any], cell: Any) -> tuple[str, list[str]]:
        return label, [words.NOT_MEASURED if not part.get(kind) else cell(part[kind]) for kind in kinds]

    return [
        row("Pairs", copying, lambda c: f"{c['pairs']:,}"),
        row("Irrelevant", relevance, lambda c: words.percent_interval(c["irrelevant"])),
        row("Cosine, mean", relevance, lambda c: words.fixed(c["mean_cosine"]["value"], 2)),
        row("Copies of d1", copying, lambda c: words.percent_interval(c["copies"])),
        row("Taken from d1, mean", copying, lambda c: words.percent_interval(c["copied_share"])),
        row("Any run from d1", copying, lambda c: words.percent_interval(c["any_copied"])),
    ]
