"""Numbers in words: what the page and the terminal both say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray.report import paper

NOT_MEASURED = "not measured"


def scaled(number: float | None) -> str:
    """`1.3 M`, `312 k`, `200 B`."""
    if number is None:
        return "–"
    for limit, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= limit:
            value = number / limit
            return f"{value:.{0 if value >= 100 or value == int(value) else 1}f}{unit}"
    return f"{number:,.0f}"


def fixed(number: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if number is None else f"{number:,.{digits}f}"


def signed(number: float, digits: int = 3) -> str:
    """With its sign, a true minus."""
    return f"{number:+,.{digits}f}".replace("-", "−")


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return "–" if share is None else f"{100 * share:.{digits}f} %".replace("-", "−")


def interval(found: Mapping[str, float], digits: int = 3) -> str:
    """`+0.022 [+0.010, +0.031]`."""
    return f"{signed(found['value'], digits)} [{signed(found['low'], digits)}, {signed(found['high'], digits)}]"


def interval_of(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The interval of a gain: over seeds where there are several, else over groups where they are enough."""
    over_groups = found.get("over_groups")
    return found["over_seeds"] or (over_groups if over_groups and "low" in over_groups else None)


def gain_words(found: Mapping[str, Any], of_what: str = "") -> str:
    """A gain with its interval and the interval's unit, as far as it has one.

    Args:
        of_what: stands before the unit, such as ` nats a token`.
    """
    if found["gain"] is None:
        return "–"
    over = interval_of(found)
    if over is None:
        return f"{signed(found['gain'])} (no interval){of_what}"
    return f"{interval(over)}{of_what} (over {over['units']} {over['unit']})"


def percent_interval(found: Mapping[str, float] | None) -> str:
    """`4.1 % [3.2, 5.0]`."""
    if found is None:
        return "–"
    limits = f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}]".replace("-", "−")
    return f"{percent(found['value'])} {limits}"


def counts(found: Mapping[str, int]) -> str:
    """`12 looping, 3 too short`."""
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in found.items()) or "nothing"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for the terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def cut(text: str, max_chars: int) -> str:
    """The beginning of a text that is longer than so many characters."""
    return text if len(text) <= max_chars else f"{text[:max_chars].rstrip()} […]"


def tuning_words(found: Mapping[str, Any] | None) -> str:
    """What of an arm was tuned, with how many trainings, on which split."""
    if found is None:
        return "nothing"
    settings = (
        f"{name.removeprefix('pretrain.')} {one['chosen']} of {', '.join(map(str, one['tried']))}"
        for name, one in found["settings"].items()
    )
    trainings = f"{found['trainings']} trainings of at most {found['max_trainings']}"
    return f"{'; '.join(settings)}: {trainings}, on the development split"


def scale_sentence(results: Mapping[str, Any]) -> str:
    """The size of the models and of what they read."""
    scale, tokens = results["scale"], sorted({arm["tokens"] for arm in results["arms"]})
    trained = " to ".join(scaled(number) for number in dict.fromkeys((tokens[0], tokens[-1])))
    return (
        f"{scaled(results['arms'][0]['parameters'])} parameters, {scaled(scale['tokens'])} unique real tokens, "
        f"{trained} training tokens for each arm, {scaled(scale['synthetic_documents'])} synthetic documents"
    )


def scale_warning(results: Mapping[str, Any]) -> str | None:
    """What models far below the paper's can and cannot show; None near its size."""
    tokens, parameters = (max(arm[key] for arm in results["arms"]) for key in ("tokens", "parameters"))
    if tokens * parameters * 10 > paper.SMALLEST_TOKENS * paper.SMALLEST_PARAMETERS:
        return None
    larger = _times(paper.SMALLEST_PARAMETERS / parameters)
    longer = _times(paper.SMALLEST_TOKENS / max(tokens, 1))
    return (
        f"The paper's smallest comparison trained {scaled(paper.SMALLEST_PARAMETERS)} parameters on "
        f"{scaled(paper.SMALLEST_TOKENS)} tokens: {larger} times the parameters and {longer} times the tokens of "
        "these models. There SBP starts below repetition and passes it once repeating the text stops helping. A run "
        "of this size shows that every part of the loop works. It cannot show whether SBP helps at scale, and a "
        "gain or a loss here says little about it."
    )


def too_few_groups(few: Mapping[str, int], fewest: int) -> list[str]:
    """Of which texts no interval is given; `few`: their groups. Nothing where there are none."""
    texts = ", ".join(f"{label} (of {number})" for label, number in few.items())
    said = (
        f"Too few groups (articles) for an interval over them: {texts}. Texts of one group depend on one another, and "
        f"fewer than {fewest} groups say too little."
    )
    return [said] if few else []


def recall_sentence(recall: Mapping[str, Any] | None) -> str:
    """The certificate of the neighbours' search."""
    if not recall:
        return f"Recall of the lists of neighbours: {NOT_MEASURED}."
    found = percent_interval({"value": recall["recall"], "low": recall["low"], "high": recall["high"]})
    wanted = percent(recall["min_recall"])
    return (
        f"The lists of neighbours hold {found} of the true {recall['k']:,} nearest (95 % confidence; "
        f"{recall['queries']:,} documents were searched exactly). The run asks for {wanted} or more."
    )


def _times(ratio: float) -> str:
    """Two significant digits: `2,300`."""
    return f"{float(f'{ratio:.2g}'):,.0f}"
