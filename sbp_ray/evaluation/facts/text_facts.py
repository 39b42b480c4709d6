"""The paper's table of the quality of synthetic text, counted by the truth instead of by a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sbp_ray.bios.statements import Reading, StatementReader
from sbp_ray.evaluation.facts.known_text import KnownText, stand_together
from sbp_ray.evaluation.intervals import estimate_over_groups

MEASURES = {
    "true": ("true", "statements"),
    "false": ("false", "statements"),
    "nobody": ("nobody", "statements"),
    "repeated": ("repeated", "statements"),
    "reworded": ("reworded", "true"),
    "not_stated": ("not_stated", "true"),
    "unknown_sentences": ("unknown", "sentences"),
    "irrelevant": ("irrelevant", "documents"),
    "copies_of_d1": ("copies_of_d1", "documents"),
    "copies": ("copies", "documents"),
    "novel_combinations": ("novel_combinations", "combinations"),
}
"""Shares: what is counted, and of what. See `TextCounts`."""


class TextCounts(NamedTuple):
    """What one document holds."""

    documents: int
    """1."""
    sentences: int
    unknown: int
    """Sentences in no known wording."""
    statements: int
    true: int
    false: int
    nobody: int
    """Statements about entities that do not exist."""
    repeated: int
    """Statements whose attribute of this entity an earlier one of the document has stated."""
    reworded: int
    """True statements in a wording that the training text does not use for this fact."""
    not_stated: int
    """True statements of facts that the training text does not state."""
    irrelevant: int
    """1 if the document is not about the entity of its d1: other entities have more of its statements, or it has none.
    """
    copies_of_d1: int
    """1 if all its sentences stand in d1."""
    copies: int
    """1 if all its sentences stand in one training document."""
    combinations: int
    """1 if it states two facts of one entity or more, all true."""
    novel_combinations: int
    """1 if moreover no training document states all of these."""


def count_text(reading: Reading, d1: Reading | None, known: KnownText, reader: StatementReader) -> TextCounts:
    """Count one document beside its d1; without one, that is a real document's case, nothing is said of it."""
    verdicts = [reader.judge(statement) for statement in reading.statements]
    true = [one for one, verdict in zip(reading.statements, verdicts, strict=True) if verdict == "true"]
    stated = {statement.fact for statement in reading.statements}
    is_combination = len(stated) > 1 and len(true) == len(verdicts) and len({fact.entity for fact in stated}) == 1
    return TextCounts(
        documents=1,
        sentences=len(reading.sentences),
        unknown=reading.num_unknown,
        statements=len(verdicts),
        true=len(true),
        false=verdicts.count("false"),
        nobody=verdicts.count("nobody"),
        repeated=len(verdicts) - len(stated),
        reworded=sum((statement.fact, statement.wording) not in known.wordings for statement in true),
        not_stated=sum(known.times(statement.fact) == 0 for statement in true),
        irrelevant=int(d1 is not None and (reading.entity is None or reading.entity != d1.entity)),
        copies_of_d1=int(d1 is not None and bool(reading.sentences) and {*reading.sentences} <= {*d1.sentences}),
        copies=int(bool(reading.sentences) and stand_together({*reading.sentences}, known.documents_by_sentence)),
        combinations=int(is_combination),
        novel_combinations=int(is_combination and not stand_together(stated, known.documents_by_fact)),
    )


def share_rows(counts: Sequence[TextCounts], groups: Sequence[str], *, has_d1: bool, seed: int) -> dict[str, Any]:
    """Shares over a sample of documents, with intervals over the entities that they were written for.

    Args:
        groups: of each document, the entity of its d1, or its own.
    """
    columns = {name: np.array([getattr(count, name) for count in counts]) for name in TextCounts._fields}
    totals = {name: int(columns[name].sum()) for name in ("documents", "sentences", "statements")}
    found: dict[str, Any] = {}
    for measure, (counted, among) in MEASURES.items():
        is_beside_d1 = counted in ("irrelevant", "copies_of_d1")
        if columns[among].sum() and (has_d1 or not is_beside_d1):
            found[measure] = estimate_over_groups(columns[counted], columns[among], groups, seed=seed)
    return {**totals, "shares": found}
