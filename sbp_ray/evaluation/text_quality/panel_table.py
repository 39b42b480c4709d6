"""The panel as a table: one number for each measure and kind of text, with an interval where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Cell = dict[str, float]
"""`value`; `low` and `high` where its 95 % interval is known."""
Column = Mapping[str, Any]

_SHOWN_LENGTHS = ("4", "8", "13")
_MEASURES: dict[str, Callable[[Column], Any]] = {
    "documents": lambda c: c["documents"],
    "repetition": lambda c: c["repetition"],
    "type_token": lambda c: c["type_token"]["mean"],
    "type_token_distance": lambda c: c["type_token"]["distance_from_real"],
    "tokens": lambda c: c["tokens"]["mean"],
    "tokens_p10": lambda c: c["tokens"]["p10"],
    "tokens_p90": lambda c: c["tokens"]["p90"],
    "length_distance": lambda c: c["tokens"]["distance_from_real"],
    "duplicate_sample": lambda c: c["duplicates"]["documents"],
    "exact_duplicates": lambda c: c["duplicates"]["exact"],
    "near_duplicates": lambda c: c["duplicates"]["near"],
    "irrelevant": lambda c: c["d1"]["relevance"]["irrelevant"],
    "d1_cosine": lambda c: c["d1"]["relevance"]["mean_cosine"],
    "d1_copies": lambda c: c["d1"]["copying"]["copies"],
    "d1_copied_share": lambda c: c["d1"]["copying"]["copied_share"],
    "d1_any_copied": lambda c: c["d1"]["copying"]["any_copied"],
    "corpus_copies": lambda c: c["corpus_copying"]["copies"],
    "corpus_copied_share": lambda c: c["corpus_copying"]["copied_share"],
    "corpus_any_copied": lambda c: c["corpus_copying"]["any_copied"],
    "corpus_longest_p90": lambda c: c["corpus_copying"]["longest"]["p90"],
    "corpus_longest": lambda c: c["corpus_copying"]["longest"]["max"],
    "nearest_cosine": lambda c: c["nearest"]["mean_cosine"],
    "nearest_is_d1": lambda c: c["nearest"]["is_d1_share"],
    **{f"novel_{length}": lambda c, length=length: c["novel"][length] for length in _SHOWN_LENGTHS},  # type: ignore[misc]
}
"""Name, and where a column has it."""


def table_row(name: str, kind: str, columns: Sequence[Column | None]) -> dict[str, Any]:
    """One kind of text, measured once or, with several seeds, once for each: then the mean and the seeds' range.

    Args:
        name: what the table calls it.
        kind: `synthetic`, `mined`, `train` or `validation`.
        columns: see `text_measures.sample_column`; None for an empty sample.

    Returns:
        name, kind, `samples` (how many were measured), `measures` (a cell by name, without what was not measured).
    """
    there = [column for column in columns if column]
    measures = {}
    for measure, find in _MEASURES.items():
        cells = [cell for cell in (_cell(find, column) for column in there) if cell is not None]
        if cells:
            measures[measure] = _together(cells)
    return {"name": name, "kind": kind, "samples": len(there), "measures": measures}


def _cell(find: Callable[[Column], Any], column: Column) -> Cell | None:
    """None where the measure was not made for this kind of text."""
    try:
        found = find(column)
    except (KeyError, TypeError):  # a part that is not there, or is None
        return None
    return found if found is None or isinstance(found, dict) else {"value": float(found)}


def _together(cells: Sequence[Cell]) -> Cell:
    if len(cells) == 1:
        return cells[0]
    values = [cell["value"] for cell in cells]
    return {"value": sum(values) / len(values), "seeds_low": min(values), "seeds_high": max(values)}
