"""Plots as inline SVG. Their text is text, and their colours are the page's CSS variables, so they follow its theme.

Every function from `histograms` on makes one kind of plot: it draws into an axis within `_plot`, which sets size,
labels and legend and hands the figure to `_inline`, where matplotlib's colours become the page's.
"""

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


def _plot(
    name: str,
    alt: str,
    draw: Callable[[Any], None],
    *,
    height_in: float = 3.1,
    labels: tuple[str, str] = ("", ""),
    shares: bool = False,
    columns: int = 0,
) -> Markup:
    """Draw on one axis, 400 pt wide: legible at the width of a phone.

    Args:
        labels: of both axes.
        shares: the vertical axis counts per cent.
        columns: of the legend below the plot, since one in a plot of many lines would hide them; 0 for one within.
    """
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(400 / 72, height_in), layout="constrained")
        axis = figure.subplots()
        axis.set_xlabel(labels[0])
        axis.set_ylabel(labels[1])
        if shares:
            axis.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        draw(axis)
        if columns:
            figure.legend(loc="outside lower center", ncols=columns, fontsize=9)
        elif axis.get_legend_handles_labels()[0]:
            axis.legend()
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
            clipped = np.clip(found, edges[0], edges[-1])
            if is_cumulative:
                axis.ecdf(clipped, color=colour, label=label)
            else:
                axis.stairs(
                    np.histogram(clipped, edges)[0] / len(found), edges, color=colour, label=label, linewidth=1.8
                )
        if mark is not None:
            axis.axvline(mark, color=INK, linestyle=":", linewidth=1.2, label=f"threshold {mark:.2f}")
        axis.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))

    labels = xlabel, "share of the sample below" if is_cumulative else "share of the sample"
    return _plot(name, f"Distribution: {xlabel}", draw, height_in=3.4, labels=labels, shares=True, columns=3)


def novelty(series: Sequence[tuple[str, str, Mapping[str, float | None]]]) -> Markup:
    """Share of runs that the corpus lacks, by their length."""

    def draw(axis: Any) -> None:
        for label, colour, shares in series:
            known = {length: share for length, share in shares.items() if share is not None}
            axis.plot(list(known), list(known.values()), marker="o", color=colour, label=label)
        axis.set_ylim(-0.03, 1.03)

    labels = "length of the run (tokens)", "not in the training text"
    return _plot("novelty", "Novel n-grams by length", draw, height_in=3.4, labels=labels, shares=True, columns=3)


def bands(rows: Sequence[Mapping[str, Any]], limits: tuple[float, float], suffix: str = "") -> Markup:
    """Listed neighbours in each band of 0.05, near-duplicates on top; the thresholds as lines. `rows`: rising bands."""
    edges = [float(row["band"]) for row in rows]
    duplicates = [sum(row[name] for name in row if name.startswith("near_duplicate")) for row in rows]
    related = [row["listed"] - duplicate for row, duplicate in zip(rows, duplicates, strict=True)]

    def draw(axis: Any) -> None:
        bars = {"align": "edge", "width": 0.045}
        axis.bar(edges, related, color=REPETITION, label="others", **bars)
        axis.bar(edges, duplicates, bottom=related, color=SBP, label="near-duplicates", **bars)
        _draw_limits(axis, limits)
        axis.yaxis.set_major_formatter(mpl.ticker.EngFormatter())
        axis.grid(axis="x", visible=False)

    labels = "cosine of a document and its neighbour", "listed neighbours"
    return _plot(f"bands{suffix}", "Neighbours by cosine", draw, labels=labels)


def thresholds(rows: Sequence[Mapping[str, Any]], limits: tuple[float, float], suffix: str = "") -> Markup:
    """What each threshold would give: the share of documents with a pair, and of near-duplicates."""

    def draw(axis: Any) -> None:
        for key, label, colour in (
            ("documents_share", "documents with a pair", REPETITION),
            ("duplicate_share", "near-duplicates among the neighbours", SBP),
        ):
            x, y = [row["min_cosine"] for row in rows], [row[key] for row in rows]
            axis.plot(x, y, marker="o", markersize=3.5, color=colour, label=label)
        _draw_limits(axis, limits)
        axis.set_ylim(-0.03, 1.03)

    alt = "Yield and near-duplicates as the threshold moves"
    return _plot(f"thresholds{suffix}", alt, draw, labels=("min_cosine", ""), shares=True)


def _draw_limits(axis: Any, limits: tuple[float, float]) -> None:
    """The chosen band of cosines; the upper end only where it cuts something off."""
    low, high = limits
    axis.axvline(low, color=INK, linestyle=":", linewidth=1.2, label=f"min_cosine {low:g}")
    if high < 1:
        axis.axvline(high, color=INK, linestyle="--", linewidth=1.2, label=f"max_cosine {high:g}")


def degrees(series: Sequence[tuple[str, str, Mapping[str, int]]], suffix: str = "") -> Markup:
    """How many documents appear how often: histograms by powers of two. `series`: label, colour, counts by edge."""
    most = max(int(edge) for _, _, counts in series for edge in counts)
    places = {0: 0} | {1 << power: power + 1 for power in range(most.bit_length())}
    width = 0.8 / len(series)

    def draw(axis: Any) -> None:
        for number, (label, colour, counts) in enumerate(series):
            x = [places[int(edge)] - 0.4 + width * (number + 0.5) for edge in counts]
            axis.bar(x, list(counts.values()), width=width, color=colour, label=label)
        ticks = [str(edge) if edge < 2 else f"{edge}–{2 * edge - 1}" for edge in places]
        axis.set_xticks(list(places.values()), ticks, rotation=45 if len(ticks) > 6 else 0)
        axis.set_yscale("log")  # a hub is one document among millions
        axis.set_ylim(0.7, 20 * max(max(counts.values()) for _, _, counts in series))  # room for the legend
        axis.yaxis.set_major_formatter(mpl.ticker.EngFormatter())
        axis.grid(axis="x", visible=False)

    return _plot(f"degrees{suffix}", "How often a document appears", draw, labels=("times", "documents"))


# Arms


Curve = tuple[str, str, str, Sequence[Sequence[Mapping[str, float]]]]
"""Label, colour, line style, and the points of each seed, in the same order for all: `tokens`, `loss_nats`, and
sometimes `validation_nats`."""
_SETTLED = 0.1  # of the training: what is before it would squeeze the rest into a line
_TOKENS = "training tokens (millions)"


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

    labels = _TOKENS, "loss (nats a token)"
    return _plot(f"curves-{name}", "Loss along training", draw, height_in=4.4, labels=labels, columns=2)


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

    labels, alt = (_TOKENS, "gain over repetition (nats a token)"), "Gain over repetition along training of every arm"
    return _plot("gain-curves", alt, draw, height_in=4.4, labels=labels, columns=2)


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


def arm_gains(name: str, rows: Sequence[tuple[str, str, float, Mapping[str, float] | None]]) -> Markup | None:
    """Gains over repetition with their intervals, where they have one. `rows`: label, colour, gain, interval."""

    def draw(axis: Any) -> None:
        for place, (_, colour, gain, found) in enumerate(reversed(rows)):
            if found is not None:
                axis.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=3)
            axis.plot([gain], [place], marker="o", color=colour, markersize=8)
        axis.axvline(0, color=INK, linewidth=1)
        axis.set_yticks(range(len(rows)), [label for label, *_ in reversed(rows)])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.grid(axis="y", visible=False)

    labels, height_in = ("gain over repetition (nats a token; right is better)", ""), 0.9 + 0.4 * len(rows)
    alt = "Gains over repetition with 95 % intervals"
    return _plot(name, alt, draw, height_in=height_in, labels=labels) if rows else None


def loss_by_cost(rows: Sequence[tuple[str, str, float, float]]) -> Markup | None:
    """Each arm's final held-out loss by its total cost. `rows`: label, colour, FLOPs, loss."""

    def draw(axis: Any) -> None:
        markers = "os^Dvp*Xh<>P"
        for place, (label, colour, flops, loss) in enumerate(rows):
            marker = markers[place % len(markers)]
            axis.plot([flops], [loss], marker=marker, color=colour, markersize=8, linestyle="none", label=label)
        axis.margins(x=0.1, y=0.1)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
        axis.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda flops, _: f"{flops:.1e}"))

    labels = "total cost (FLOPs), all that the arm needs", "held-out loss (nats a token)"
    alt = "Held-out loss by total cost"
    return _plot("loss-by-cost", alt, draw, height_in=3.9, labels=labels, columns=3) if rows else None
