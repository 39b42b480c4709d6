"""The quality panel on a page: its table beside the paper's figures, and its plots.

`_MEASURES` says where a sample's column has each measure and how it is shown. `table_row` takes the numbers of one kind
of text out of the columns, and goes into `report.json`; `panel_table` turns such rows into the table of the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sbp_ray.report import paper, plots, wording

Cell = Mapping[str, float]
"""`value`; `low` and `high` of its 95 % interval, or `seeds_low` and `seeds_high`, where they are known."""
Column = Mapping[str, Any]


def _shown_as(form: str, times: int = 1, unit: str = "") -> Callable[[Cell], str]:
    """How a cell is shown: its value, with its interval in brackets or the range of its seeds in parentheses."""

    def show(cell: Cell) -> str:
        text = format(times * cell["value"], form) + unit
        for low, high, (opening, closing) in (("low", "high", "[]"), ("seeds_low", "seeds_high", "()")):
            if low in cell:
                text += f" {opening}{format(times * cell[low], form)}, {format(times * cell[high], form)}{closing}"
        return text.replace("-", "−")

    return show


_share, _ratio, _number = _shown_as(".1f", 100, " %"), _shown_as(".2f"), _shown_as(",.0f")

_MEASURES: dict[str, tuple[tuple[str, str, str, Callable[[Cell], str]], ...]] = {
    "The texts themselves": (
        ("documents", "Documents measured", "documents", _number),
        ("repetition", "Repetition inside a document", "repetition", _share),
        ("type_token", "Type–token ratio, 50 words", "type_token.mean", _ratio),
        ("type_token_distance", "… distance from real text", "type_token.distance_from_real", _ratio),
        ("tokens", "Tokens, mean", "tokens.mean", _number),
        ("tokens_p10", "… 10th percentile", "tokens.p10", _number),
        ("tokens_p90", "… 90th percentile", "tokens.p90", _number),
        ("length_distance", "… distance from real text", "tokens.distance_from_real", _ratio),
    ),
    "Duplicates within a sample": (
        ("duplicate_sample", "Documents in the sample", "duplicates.documents", _number),
        ("exact_duplicates", "Exact", "duplicates.exact", _share),
        ("near_duplicates", "Near", "duplicates.near", _share),
    ),
    "Beside d1": (
        ("irrelevant", "Irrelevant", "d1.relevance.irrelevant", _share),
        ("d1_cosine", "Cosine to d1", "d1.relevance.mean_cosine", _ratio),
        ("d1_copies", "Copies of d1", "d1.copying.copies", _share),
        ("d1_copied_share", "Taken from d1, mean", "d1.copying.copied_share", _share),
        ("d1_any_copied", "Any run of 13 from d1", "d1.copying.any_copied", _share),
    ),
    "Beside the whole training text": (
        ("corpus_copies", "Copies of any document", "corpus_copying.copies", _share),
        ("corpus_copied_share", "Runs of 13 found there, mean", "corpus_copying.copied_share", _share),
        ("corpus_any_copied", "Any run of 13 found there", "corpus_copying.any_copied", _share),
        ("corpus_longest_p90", "Longest stretch, 90th percentile", "corpus_copying.longest.p90", _number),
        ("corpus_longest", "Longest stretch, most", "corpus_copying.longest.max", _number),
        ("nearest_cosine", "Cosine to the nearest document", "nearest.mean_cosine", _ratio),
        ("nearest_is_d1", "… which is d1", "nearest.is_d1_share", _share),
        ("novel_4", "Novel runs of 4", "novel.4", _share),
        ("novel_8", "Novel runs of 8", "novel.8", _share),
        ("novel_13", "Novel runs of 13", "novel.13", _share),
    ),
}
"""Of each part of the table: a measure's name, its label, where a sample's column has it, and how it is shown."""


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
    cells = {
        measure: [cell for column in there if (cell := _cell(column, path)) is not None]
        for measures in _MEASURES.values()
        for measure, _, path, _ in measures
    }
    found = {measure: _join_seeds(of_seeds) for measure, of_seeds in cells.items() if of_seeds}
    return {"name": name, "kind": kind, "samples": len(there), "measures": found}


def _cell(column: Column, path: str) -> Cell | None:
    """None where the measure was not made for this kind of text."""
    found: Any = column
    for key in path.split("."):
        found = found.get(key) if found else None
    return found if found is None or isinstance(found, dict) else {"value": float(found)}


def _join_seeds(cells: Sequence[Cell]) -> Cell:
    if len(cells) == 1:
        return cells[0]
    values = [cell["value"] for cell in cells]
    return {"value": sum(values) / len(values), "seeds_low": min(values), "seeds_high": max(values)}


_REAL_NAMES = {"train": "Real, training", "validation": "Real, held-out", "mined": "Mined pairs"}
REAL_TEXTS = (
    ("real_train", "Real, training", plots.REPETITION),
    ("real_held_out", "Real, held-out", plots.THIRD),
)
"""Columns of real text, with label and colour."""
_REAL_CLASSES = {"train": "rep", "validation": "third"}


def panel_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table turned round: measures down, kinds of text across, the paper's figures last.

    Args:
        rows: see `table_row`.
    """
    shown = [row for row in rows if row["measures"]]
    groups = []
    for title, measures in _MEASURES.items():
        lines = []
        for name, label, _, show in measures:
            cells = [row["measures"].get(name) for row in shown]
            if any(cells):
                theirs = paper.BESIDE.get(name, "")
                lines.append((label, ["–" if cell is None else show(cell) for cell in cells], theirs))
        if lines:
            groups.append((title, lines))
    heads = [(head_of(row), class_of(row)) for row in shown]
    return {"heads": heads, "groups": groups, "has_seeds": any(row["samples"] > 1 for row in shown)}


def head_of(row: Mapping[str, Any]) -> str:
    """What a kind of text is called on a page."""
    name = _REAL_NAMES.get(row["kind"], row["name"])
    return "Synthetic" if name == "synthetic" else name


def class_of(row: Mapping[str, Any]) -> str:
    """Its colour."""
    is_sbp = row["kind"] == "synthetic" and row["name"] in ("synthetic", "sbp")
    return "sbp" if is_sbp else _REAL_CLASSES.get(row["kind"], "")


Series = tuple[str, str, Mapping[str, Any]]
"""A label, a colour, and the column of one sample."""


def panel_plots(series: Sequence[Series], relevance: Mapping[str, Any], mined: Any = None) -> dict[str, Markup | None]:
    """Distributions and curves behind the table.

    Args:
        series: of synthetic text first.
        relevance: threshold and cosines of random pairs.
        mined: of mined pairs, where they were measured.
    """
    cosines = [
        (label, colour, column["d1"]["relevance"]["cosines"])
        for label, colour, column in series
        if "d1" in column and column["d1"]["relevance"]
    ]
    if mined:
        cosines.append(("Mined pairs", plots.REPETITION, mined["cosines"]))
    if relevance["random"]:
        cosines.append(("Random pairs", plots.MUTED, relevance["random"]["cosines"]))

    wanted: dict[str, tuple[str, Callable[[Column], Any]]] = {
        "lengths": ("length (tokens)", lambda column: column["lengths"]),
        "type_token": ("type–token ratio over 50 words", lambda column: (column["type_token"] or {}).get("ratios")),
        "nearest": ("cosine to the nearest training document", lambda column: column["nearest"]["cosines"]),
    }
    found: dict[str, Markup | None] = dict.fromkeys(("novelty", *wanted, "relevance"))
    if series:
        found["novelty"] = plots.novelty([(label, colour, column["novel"]) for label, colour, column in series])
    for name, (xlabel, values) in wanted.items():
        if shown := [(label, colour, values(column)) for label, colour, column in series if values(column)]:
            found[name] = plots.histograms(name.replace("_", "-"), xlabel, shown, None)
    if cosines:
        found["relevance"] = plots.histograms("relevance", "cosine of d1 and d2", cosines, relevance["threshold"])
    return found


def notes(quality: Mapping[str, Any], min_groups: int) -> list[str]:
    """How to read the table."""
    few: dict[str, int] = {}
    for row in quality["table"]:
        without = [cell["units"] for cell in row["measures"].values() if "units" in cell and "low" not in cell]
        few |= {head_of(row): max(without)} if without else {}
    threshold = quality["relevance"]["threshold"]
    shingle, copy = quality["shingle_tokens"], f"{100 * quality['copy_containment']:.0f} %"
    irrelevant = "a threshold that too few documents left unknown" if threshold is None else f"{threshold:.2f}"
    return [
        "Intervals in brackets are 95 % bootstrap intervals over groups (articles), each drawn with all of its "
        "documents; a synthetic document is of its d1’s group, and pairs that connect groups are drawn together. Where "
        "a synthesizer was made once for each seed, the mean over them stands there and their range in parentheses.",
        *wording.too_few_groups(few, min_groups),
        "Repetition: mean share of a document's 4-token runs that stood earlier in it.",
        "Type–token ratio: distinct words in a window of 50, mean over all windows; shorter documents are left out. "
        "Distance from real text: the greatest difference between the cumulative distribution and that of the "
        "training sample (Kolmogorov–Smirnov), 0 for equal ones and 1 for ones that do not overlap.",
        f"Duplicates: share of a sample of the stated size that repeats an earlier document of it. Near: MinHash puts "
        f"the Jaccard index of their {shingle}-word shingles above {quality['near_jaccard']}. Larger samples hold "
        "more. Real training text has no exact ones, since they were dropped when it was read.",
        f"Irrelevant: cosine of d1 and d2, by {quality['embedder']}, below {irrelevant}, as it is for 95 % of random "
        "pairs of training documents. Mined pairs were chosen by cosine, so theirs is low by construction.",
        f"Copies of d1: d1 holds {copy} or more of d2's {shingle}-token shingles. Taken from d1: that share, on "
        "average.",
        f"Copies of any document: {copy} or more of the runs of 13 tokens stand somewhere in the training text, in "
        "whichever documents. For the training sample, in any other document than itself. Longest stretch: of tokens "
        "all of whose runs of 13 stand there.",
        "Novel runs of n tokens: in no document of the training text; counted as often as they stand in the sample.",
        "Looping, copying and unfinished samples were dropped by the filters before this table.",
        f"The paper’s figures are from {paper.CITATION}, the range of its three runs: other text, other scale, and for "
        "irrelevance and copying a judge that is not published, so they do not compare line by line.",
    ]
