"""Plots as inline SVG. Their text is text, and their colours are the page's CSS variables, so they follow its theme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

# Colours that stand for CSS variables until the SVG is written
_VARIABLES = {
    "#000001": "ink", "#000002": "muted", "#000003": "rep", "#000004": "sbp", "#000005": "third",
    "#000006": "c1", "#000007": "c2", "#000008": "c3", "#000009": "c4",
}  # fmt: skip
INK, MUTED, REPETITION, SBP, THIRD, *OTHERS = _VARIABLES
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}

_PERCENT = mpl.ticker.FuncFormatter(lambda share, _: f"{100 * share:g} %")


def _legend_below(axis: Any, columns: int = 3) -> None:
    """For many lines: a legend in the plot would hide them."""
    axis.figure.legend(loc="outside lower center", ncols=columns, fontsize=9)


def _plot(name: str, alt: str, draw: Callable[[Any], None], height_in: float = 3.1) -> Markup:
    """Draw on one axis, 400 pt wide: legible at the width of a phone."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(400 / 72, height_in), layout="constrained")
        draw(figure.subplots())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), name, alt)


def _inline(svg: str, name: str, alt: str) -> Markup:
    """Only the picture: no XML prologue, no metadata, ids that no other plot of the page has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    opening = rf'<svg viewBox="\1" role="img" aria-label="{escape(alt)}">'
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', opening, svg, count=1)
    svg = svg.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return Markup(svg)  # noqa: S704 (made here; the one text from outside is escaped)


_MOST_OUTLINES = 4  # more cannot be told apart


def histograms(
    name: str, xlabel: str, series: Sequence[tuple[str, str, Sequence[float]]], mark: float | None
) -> Markup:
    """Distributions: of a few samples as outlines, each with area one; of many as cumulative curves."""
    values = np.concatenate([np.asarray(found, np.float64) for _, _, found in series])
    low, high = np.quantile(values, [0.0, 0.995])
    edges = np.linspace(low, high, 31) if high > low else np.array([low - 0.5, low + 0.5])
    is_cumulative = len(series) > _MOST_OUTLINES

    def draw(axis: Any) -> None:
        for label, colour, found in series:
            if is_cumulative:
                axis.ecdf(np.clip(found, edges[0], edges[-1]), color=colour, label=label, linewidth=1.8)
                continue
            heights, _ = np.histogram(np.clip(found, edges[0], edges[-1]), edges)
            axis.stairs(heights / len(found), edges, color=colour, label=label, linewidth=1.8)
        if mark is not None:
            axis.axvline(mark, color=INK, linestyle=":", linewidth=1.2, label=f"threshold {mark:.2f}")
        axis.set_xlabel(xlabel)
        axis.set_ylabel("share of the sample below" if is_cumulative else "share of the sample")
        axis.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_formatter(_PERCENT)
        _legend_below(axis)

    return _plot(name, f"Distribution: {xlabel}", draw, 3.4)


def novelty(series: Sequence[tuple[str, str, Mapping[str, float | None]]]) -> Markup:
    """Share of runs that the corpus lacks, by their length."""

    def draw(axis: Any) -> None:
        for label, colour, shares in series:
            known = [(length, share) for length, share in shares.items() if share is not None]
            axis.plot([x for x, _ in known], [y for _, y in known], marker="o", color=colour, label=label)
        axis.set_xlabel("length of the run (tokens)")
        axis.set_ylabel("not in the training text")
        axis.yaxis.set_major_formatter(_PERCENT)
        axis.set_ylim(-0.03, 1.03)
        _legend_below(axis)

    return _plot("novelty", "Novel n-grams by length", draw, 3.4)


def bands(rows: Sequence[Mapping[str, Any]], limits: tuple[float, float], suffix: str = "") -> Markup:
    """Listed neighbours in each band of 0.05, near-duplicates on top; the thresholds as lines. `rows`: rising bands."""
    width = 0.05
    edges = [float(row["band"]) for row in rows]
    duplicates = [row["near_duplicate_jaccard"] + row["near_duplicate_containment"] for row in rows]
    related = [row["listed"] - duplicate for row, duplicate in zip(rows, duplicates, strict=True)]

    def draw(axis: Any) -> None:
        bars = {"align": "edge", "width": 0.9 * width}
        axis.bar(edges, related, color=REPETITION, label="others", **bars)
        axis.bar(edges, duplicates, bottom=related, color=SBP, label="near-duplicates", **bars)
        _limits(axis, limits)
        axis.set_xlabel("cosine of a document and its neighbour")
        axis.set_ylabel("listed neighbours")
        axis.yaxis.set_major_formatter(mpl.ticker.EngFormatter())
        axis.grid(axis="x", visible=False)
        axis.legend()

    return _plot(f"bands{suffix}", "Neighbours by cosine", draw)


def thresholds(rows: Sequence[Mapping[str, Any]], limits: tuple[float, float], suffix: str = "") -> Markup:
    """What each threshold would give: the share of documents with a pair, and of near-duplicates."""
    cosines = [row["min_cosine"] for row in rows]

    def draw(axis: Any) -> None:
        for key, label, colour in (
            ("documents_share", "documents with a pair", REPETITION),
            ("duplicate_share", "near-duplicates among the neighbours", SBP),
        ):
            axis.plot(cosines, [row[key] for row in rows], marker="o", markersize=3.5, color=colour, label=label)
        _limits(axis, limits)
        axis.set_xlabel("min_cosine")
        axis.set_ylim(-0.03, 1.03)
        axis.yaxis.set_major_formatter(_PERCENT)
        axis.legend()

    return _plot(f"thresholds{suffix}", "Yield and near-duplicates as the threshold moves", draw)


def _limits(axis: Any, limits: tuple[float, float]) -> None:
    """The chosen band of cosines; the upper end only where it cuts something off."""
    low, high = limits
    axis.axvline(low, color=INK, linestyle=":", linewidth=1.2, label=f"min_cosine {low:g}")
    if high < 1:
        axis.axvline(high, color=INK, linestyle="--", linewidth=1.2, label=f"max_cosine {high:g}")


def degrees(series: Sequence[tuple[str, str, Mapping[str, int]]], suffix: str = "") -> Markup:
    """How many documents appear how often: histograms by powers of two. `series`: label, colour, counts by edge."""
    edges = sorted({int(edge) for _, _, counts in series for edge in counts})
    places = {0: 0} | {1 << power: power + 1 for power in range(edges[-1].bit_length())}
    width = 0.8 / len(series)

    def draw(axis: Any) -> None:
        for number, (label, colour, counts) in enumerate(series):
            x = [places[int(edge)] - 0.4 + width * (number + 0.5) for edge in counts]
            axis.bar(x, list(counts.values()), width=width, color=colour, label=label)
        labels = [str(edge) if edge < 2 else f"{edge}–{2 * edge - 1}" for edge in places]
        axis.set_xticks(list(places.values()), labels, rotation=45 if len(labels) > 6 else 0)
        axis.set_xlabel("times")
        axis.set_ylabel("documents")
        axis.set_yscale("log")  # a hub is one document among millions
        axis.set_ylim(0.7, 20 * max(max(counts.values()) for _, _, counts in series))  # room for the legend
        axis.yaxis.set_major_formatter(mpl.ticker.EngFormatter())
        axis.grid(axis="x", visible=False)
        axis.legend()

    return _plot(f"degrees{suffix}", "How often a document appears", draw)


# Arms


Curve = tuple[str, str, str, Sequence[Sequence[Mapping[str, float]]]]
"""Label, colour, line style, and the points of each seed, in the same order for all: `tokens`, `loss_nats`, and
sometimes `validation_nats`."""
_SETTLED = 0.1  # of the training: what is before it would squeeze the rest into a line


def loss_curves(name: str, series: Sequence[Curve]) -> Markup | None:
    """Held-out loss by tokens: the mean, and each seed as a thin line; of a single seed the training loss too."""
    series = [entry for entry in series if any(entry[3])]
    if not series:
        return None

    def draw(axis: Any) -> None:
        highest: list[float] = []
        for label, colour, style, seeds in series:
            if len(seeds) == 1:
                training = [point for point in seeds[0] if "loss_nats" in point]
                x, y = [point["tokens"] / 1e6 for point in training], [point["loss_nats"] for point in training]
                axis.plot(x, y, color=colour, alpha=0.5, linewidth=1.0, label=f"{label}, training")
                label = f"{label}, held-out"
            highest += _draw_seeds(axis, label, colour, style, [_held_out(points) for points in seeds])
        if highest and all(len(entry[3]) > 1 for entry in series):
            axis.set_ylim(top=max(highest) + 0.02 * (max(highest) - axis.get_ylim()[0]))
        axis.set_ylabel("loss (nats a token)")
        _finish_curves(axis)

    return _plot(f"curves-{name}", "Loss along training", draw, 4.4)


def _held_out(points: Sequence[Mapping[str, float]]) -> dict[float, float]:
    """Held-out loss by training tokens."""
    return {point["tokens"]: point["validation_nats"] for point in points if "validation_nats" in point}


def gain_curves(series: Sequence[Curve], baseline: str) -> Markup | None:
    """What each arm has gained over the baseline's same seed, after as many tokens."""
    base = [_held_out(points) for label, _, _, seeds in series if label == baseline for points in seeds]
    gains = []
    for label, colour, style, seeds in series:
        pairs = zip(base, map(_held_out, seeds), strict=False)
        found = [{t: before[t] - own[t] for t in sorted(own.keys() & before.keys())} for before, own in pairs]
        if label != baseline and any(found):
            gains.append((label, colour, style, found))
    if not gains:
        return None

    def draw(axis: Any) -> None:
        axis.axhline(0, color=REPETITION, linewidth=1.8, label=baseline)
        for entry in gains:
            _draw_seeds(axis, *entry)
        axis.set_ylabel("gain over repetition (nats a token)")
        _finish_curves(axis)

    return _plot("gain-curves", "Gain over repetition along training of every arm", draw, 4.4)


def _draw_seeds(axis: Any, label: str, colour: str, style: str, seeds: Sequence[Mapping[float, float]]) -> list[float]:
    """Mean and seeds; returns the means after the beginning."""
    seeds = [losses for losses in seeds if losses]
    if not seeds:
        return []
    common = sorted(set.intersection(*(set(losses) for losses in seeds)))
    mean = [float(np.mean([losses[t] for losses in seeds])) for t in common]
    for losses in seeds if len(seeds) > 1 else ():
        known = sorted(losses)
        axis.plot(np.array(known) / 1e6, [losses[t] for t in known], color=colour, alpha=0.3, linewidth=0.7)
    axis.plot(np.array(common) / 1e6, mean, color=colour, linestyle=style, marker="o", markersize=2.5, label=label)
    settled = [loss for tokens, loss in zip(common, mean, strict=True) if tokens > _SETTLED * common[-1]]
    return settled or mean


def _finish_curves(axis: Any) -> None:
    axis.set_xlabel("training tokens (millions)")
    _legend_below(axis, columns=2)


def arm_gains(name: str, rows: Sequence[tuple[str, str, float, Mapping[str, float] | None]]) -> Markup | None:
    """Gains over repetition with their intervals, where they have one. `rows`: label, colour, gain, interval."""
    if not rows:
        return None

    def draw(axis: Any) -> None:
        for place, (_, colour, gain, found) in enumerate(reversed(rows)):
            if found is not None:
                axis.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=3)
            axis.plot([gain], [place], marker="o", color=colour, markersize=8)
        axis.axvline(0, color=INK, linewidth=1)
        axis.set_yticks(range(len(rows)), [label for label, *_ in reversed(rows)])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("gain over repetition (nats a token; right is better)")

    return _plot(name, "Gains over repetition with 95 % intervals", draw, 0.9 + 0.4 * len(rows))


def loss_by_cost(rows: Sequence[tuple[str, str, float, float]]) -> Markup | None:
    """Each arm's final held-out loss by its total cost. `rows`: label, colour, FLOPs, loss."""
    if not rows:
        return None

    def draw(axis: Any) -> None:
        markers = "os^Dvp*Xh<>P"
        for place, (label, colour, flops, loss) in enumerate(rows):
            marker = markers[place % len(markers)]
            axis.plot([flops], [loss], marker=marker, color=colour, markersize=8, linestyle="none", label=label)
        axis.set_xlabel("total cost (FLOPs), all that the arm needs")
        axis.set_ylabel("held-out loss (nats a token)")
        axis.margins(x=0.1, y=0.1)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
        axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda flops, _: f"{flops:.1e}"))
        _legend_below(axis)

    return _plot("loss-by-cost", "Held-out loss by total cost", draw, 3.9)
