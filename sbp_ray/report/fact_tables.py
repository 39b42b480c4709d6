"""Tables of a world whose truth is known, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sbp_ray.report.wording import fixed, gain_words, interval, interval_of, percent, percent_interval, signed

_TIMES = ("never", "once", "twice", "three times and more")
_KINDS = {
    "unseen_wording": "Facts recalled, in words that were not read with them",
    "held_out_wording": "Facts recalled, in words that no document uses",
}
_QUALITY = {
    "true": "statements that are true",
    "false": "statements that are false",
    "nobody": "statements about nobody",
    "repeated": "statements that repeat one of the document",
    "reworded": "true statements in words new for the fact",
    "not_stated": "true statements that the training text does not make",
    "unknown_sentences": "sentences that state nothing known",
    "irrelevant": "documents not about the entity of d1",
    "copies_of_d1": "documents whose sentences all stand in d1",
    "copies": "documents whose sentences all stand in one training document",
    "novel_combinations": "documents of true facts that no training document states together",
}


class Table(NamedTuple):
    """Rows of cells, of which the first row and the first column are heads."""

    title: str
    note: str
    rows: Sequence[Sequence[str]]


def fact_tables(facts: Mapping[str, Any] | None) -> list[Table]:
    """Loss by what tokens say, facts recalled, and the quality of synthetic text; none where no truth is known."""
    if facts is None:
        return []
    by_times = ", ".join(f"{number:,} {times}" for number, times in zip(facts["facts"], _TIMES, strict=True))
    gains = "A gain over repetition follows, with its interval over seeds where there are several, else over entities."
    closed_book = (
        f"Closed book, greedy, exact; and nats of the value. Of {sum(facts['facts']):,} facts on {facts['entities']:,} "
        f"entities the training text states {by_times}. {gains}"
    )
    tables = [
        Table(
            "Held-out loss by what the tokens say",
            f"Nats a value, and nats a token of other text. {gains}",
            [*_losses(facts)],
        ),
        *(Table(title, closed_book, [*_recalled(facts, kind)]) for kind, title in _KINDS.items()),
        Table("What the texts state", "Counted by the truth; intervals are over entities.", [*_stated(facts["texts"])]),
    ]
    return [table for table in tables if len(table.rows[0]) > 1]


def _losses(facts: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    columns = {
        f"value_{number}_nats_per_value": f"value of a fact stated {times}" for number, times in enumerate(_TIMES)
    }
    columns |= {"name_nats_per_token": "names", "rest_nats_per_token": "everything else"}
    there = [name for name in columns if name in facts["sizes"]]
    yield ("arm", *(f"{columns[name]} ({facts['sizes'][name]:,})" for name in there))
    for arm in facts["arms"]:
        found = [arm["measures"][name] for name in there]
        yield (
            arm["name"],
            *(fixed(one["mean"]) + ("" if one["gain"] is None else f"; {gain_words(one)}") for one in found),
        )


def _recalled(facts: Mapping[str, Any], kind: str) -> Iterator[Sequence[str]]:
    there = [number for number in range(len(_TIMES)) if f"{kind}_{number}_missed" in facts["sizes"]]
    yield ("arm", *(f"stated {_TIMES[number]} ({facts['sizes'][f'{kind}_{number}_missed']:,})" for number in there))
    for arm in facts["arms"]:
        cells = []
        for number in there:
            found = arm["measures"][f"{kind}_{number}_missed"]
            nats = arm["measures"][f"{kind}_{number}_nats_per_value"]["mean"]
            cells.append(f"{percent(1 - found['mean'])}{_points(found)}; {fixed(nats, 2)} nats")
        yield (arm["name"], *cells)


def _points(found: Mapping[str, Any]) -> str:
    """A gain in percentage points, with its interval as far as it has one."""
    if found["gain"] is None:
        return ""
    over = interval_of(found)
    if over is None:
        return f" ({signed(100 * found['gain'], 1)})"
    return f" ({interval({name: 100 * over[name] for name in ('value', 'low', 'high')}, 1)})"


def _stated(texts: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[str]]:
    yield ("", *(text["name"].replace("_", " ") for text in texts))
    for count in ("documents", "statements"):
        yield (count, *(f"{text[count]:,}" for text in texts))
    for measure, label in _QUALITY.items():
        shares = [text["shares"].get(measure) for text in texts]
        if any(shares):
            yield (label, *("–" if one is None else _share(one) for one in shares))


def _share(found: Mapping[str, Any]) -> str:
    return percent_interval(found) if "low" in found else percent(found["value"])
