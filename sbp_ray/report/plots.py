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
_VARIABLES = {"#000001": "ink", "#000002": "muted", "#000003": "rep", "#000004": "sbp", "#000005": "third"}
INK, MUTED, REPETITION, SBP, THIRD = _VARIABLES
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


def curves(name: str, series: Sequence[tuple[str, str, Sequence[Mapping[str, float]]]]) -> Markup | None:
    """Training (line) and validation (dots) loss over tokens. `series`: label, colour, points."""
    series = [entry for entry in series if entry[2]]
    if not series:
        return None

    def draw(axis: Any) -> None:
        for label, colour, points in series:
            axis.plot(*_xy(points, "loss_nats"), color=colour, alpha=0.5, linewidth=1.2, label=f"{label}, training")
            x, y = _xy(points, "validation_nats")
            if x:
                axis.plot(x, y, color=colour, marker="o", markersize=3.5, label=f"{label}, held-out")
        axis.set_xlabel("training tokens (millions)")
        axis.set_ylabel("loss (nats a token)")
        axis.legend()

    return _plot(name, "Loss over training tokens", draw)


def _xy(points: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    found = [(point["tokens"] / 1e6, point[key]) for point in points if key in point]
    return [x for x, _ in found], [y for _, y in found]


def differences(rows: Sequence[tuple[str, Mapping[str, float]]]) -> Markup:
    """Differences of the arms with their intervals."""

    def draw(axis: Any) -> None:
        for place, (_, found) in enumerate(reversed(rows)):
            axis.plot([found["low"], found["high"]], [place, place], color=SBP, linewidth=3, solid_capstyle="round")
            axis.plot([found["value"]], [place], marker="o", color=SBP, markersize=8)
        axis.axvline(0, color=INK, linewidth=1)
        axis.set_yticks(range(len(rows)), [label for label, _ in reversed(rows)])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("SBP − repetition (nats a token)")

    return _plot("differences", "Differences between the arms with 95 % intervals", draw, 0.9 + 0.45 * len(rows))


def histograms(
    name: str, xlabel: str, series: Sequence[tuple[str, str, Sequence[float]]], mark: float | None
) -> Markup:
    """Distributions as outlines, each with area one."""
    values = np.concatenate([np.asarray(found, np.float64) for _, _, found in series])
    low, high = np.quantile(values, [0.0, 0.995])
    edges = np.linspace(low, high, 31) if high > low else np.array([low - 0.5, low + 0.5])

    def draw(axis: Any) -> None:
        for label, colour, found in series:
            heights, _ = np.histogram(np.clip(found, edges[0], edges[-1]), edges)
            axis.stairs(heights / len(found), edges, color=colour, label=label, linewidth=1.8)
        if mark is not None:
            axis.axvline(mark, color=INK, linestyle=":", linewidth=1.2, label=f"threshold {mark:.2f}")
        axis.set_xlabel(xlabel)
        axis.set_ylabel("share of the sample")
        axis.yaxis.set_major_locator(mpl.ticker.MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_formatter(_PERCENT)
        axis.legend()

    return _plot(name, f"Distribution: {xlabel}", draw)


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
        axis.legend()

    return _plot("novelty", "Novel n-grams by length", draw)
