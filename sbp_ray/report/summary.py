"""The table that the pipeline prints at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sbp_ray.report.words import (
    NOT_MEASURED,
    SPLIT_WORDS,
    answer,
    fixed,
    interval,
    percent,
    scale_sentence,
    verdict,
)

_NAME, _CELL = 46, 14


def render_summary(report: Mapping[str, Any]) -> str:
    """Plain text, 100 columns at most but for the sentences."""
    lines = ["", answer(report), f"Scale: {scale_sentence(report)}.", ""]
    lines += [_row("", "repetition", "sbp") + "   sbp − repetition [95 %]"]
    lines += _arm_rows(report)
    lines += ["", _row("nats a token of d2, held-out pairs", "given d1", "random d1", "alone"), _gain_row(report)]
    lines += ["", _row("quality of the text", "synthetic", "real", "held-out")]
    lines += _quality_rows(report["quality"])
    lines += ["", "One seed: the intervals are over documents or questions, not over trainings.", ""]
    return "\n".join(lines)


def _row(name: str, *cells: str) -> str:
    return f"{name:<{_NAME}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def _arm_rows(report: Mapping[str, Any]) -> list[str]:
    held_out, questions = report["held_out"], report["questions"]
    rows = []
    if held_out is None:
        rows.append(f"{'held-out text':<{_NAME}}  {NOT_MEASURED}")
    else:
        rows.append(_row("held-out perplexity", *(fixed(held_out["arms"][a]["perplexity"], 1) for a in _ARMS)))
        rows.append(_comparison("held-out text, nats a token", held_out))
    if questions is None:
        rows.append(f"{'answers, closed book':<{_NAME}}  {NOT_MEASURED}")
        return rows
    for split, measures in questions["splits"].items():
        rows.append(_comparison(f"answers, {SPLIT_WORDS[split]}, nats a token", measures))
    return rows


_ARMS = ("repetition", "sbp")


def _comparison(name: str, measures: Mapping[str, Any]) -> str:
    difference = measures["difference"]["nats_per_token"]
    cells = _row(name, *(fixed(measures["arms"][arm]["nats_per_token"]) for arm in _ARMS))
    return f"{cells}   {interval(difference)} {verdict(difference)}"


def _gain_row(report: Mapping[str, Any]) -> str:
    gain = report["pairs"]["conditional_gain"]
    if not gain:
        return f"{'':<{_NAME}}  {NOT_MEASURED}"
    return _row("", *(fixed(gain[key]) for key in ("nll_given_d1", "nll_given_random", "nll_alone")))


def _quality_rows(quality: Mapping[str, Any]) -> list[str]:
    measures = {row["name"]: row["measures"] for row in quality["table"]}

    def row(label: str, kinds: Sequence[str], measure: str, show: Callable[[float | None], str]) -> str:
        cells = (measures.get(kind, {}).get(measure) for kind in kinds)
        return _row(label, *(show(cell and cell["value"]) for cell in cells))

    texts, pairs = ("synthetic", "real_train", "real_held_out"), ("synthetic", "mined")
    return [
        row("repetition inside a document", texts, "repetition", percent),
        row("near-duplicates in the sample", texts, "near_duplicates", percent),
        row("tokens, mean", texts, "tokens", lambda number: fixed(number, 0)),
        row("novel 4-token runs", texts, "novel_4", percent),
        row("copies of any training document", texts, "corpus_copies", percent),
        _row("", "synthetic", "mined pairs"),
        row("d2 no closer to d1 than random pairs", pairs, "irrelevant", percent),
        row("d2 copies d1", pairs, "d1_copies", percent),
    ]
