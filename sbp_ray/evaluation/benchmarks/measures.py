"""What is made of the answers: for each benchmark and model a value with its interval over questions, and differences.

Every measure is a sum over questions by another one, so that models can be compared on the same questions, drawn again
together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sbp_ray.evaluation.benchmarks.question_sets import QuestionSet
from sbp_ray.evaluation.intervals import bootstrap_ratio
from sbp_ray.evaluation.paired import Comparison
from sbp_ray.evaluation.study import BASELINE

# N = questions

Records = Mapping[str, Mapping[str, float]]
"""One model's answers to one benchmark: the numbers of each question by its key."""
BySeed = Mapping[int, Records]


@dataclass(frozen=True)
class Measure:
    """Σ `top` / Σ `bottom` over questions; a mean without `bottom`."""

    label: str
    top: str
    bottom: str | None
    better: int
    """1: higher is better; -1: lower."""
    is_perplexity: bool = False
    """The value shown is its exponential; intervals and differences stay in nats."""


MEASURES = {
    "accuracy": Measure("accuracy", "acc", None, 1),
    "accuracy_by_length": Measure("accuracy, likelihood by length", "acc_norm", None, 1),
    "exact_match": Measure("exact match", "exact_match", None, 1),
    "answer_nats_per_byte": Measure("right answer, nats a byte", "nll", "bytes", -1),
    "answer_perplexity": Measure("perplexity of the right answer", "nll", None, -1, is_perplexity=True),
    "nats_per_byte": Measure("nats a byte", "nll", "bytes", -1),
    "word_perplexity": Measure("perplexity a word", "nll", "words", -1, is_perplexity=True),
}


_OF_THE_ANSWER = {"mmlu": ("answer_perplexity",), "lambada": ("answer_perplexity", "answer_nats_per_byte")}
"""Measures of the right answer's likelihood, where it is a letter or a single word; else it is counted by bytes."""


def measures_of(like: str, records: Records) -> tuple[str, ...]:
    """Names of the measures of a benchmark: those that every question has the numbers for."""
    columns = set.intersection(*(set(record) for record in records.values())) if records else set()
    if "words" in columns:
        return ("nats_per_byte", "word_perplexity")
    found = [name for name in ("accuracy", "accuracy_by_length", "exact_match") if MEASURES[name].top in columns]
    of_answer = _OF_THE_ANSWER.get(like, ("answer_nats_per_byte",)) if {"nll", "bytes"} <= columns else ()
    return (*found, *of_answer)


def benchmark_row(
    questions: QuestionSet,
    answers: Mapping[str, BySeed],
    *,
    seen: Collection[str] | None,
    num_truncated: int,
    seed: int,
) -> dict[str, Any]:
    """One benchmark: what it asks, and each arm's numbers.

    Args:
        answers: each arm's answers by training seed, the baseline's among them.
        seen: questions that share text with what some arm was trained on, which are left out; None: not checked.
    """
    records = next(iter(answers[BASELINE].values()))
    keys = [key for key in records if key not in (seen or ())]
    row: dict[str, Any] = {
        "name": questions.name,
        "like": questions.like,
        "file": questions.file,
        "num_fewshot": questions.num_fewshot,
        "in_file": questions.num_rows,
        "questions": len(keys),
        "left_out": None if seen is None else len(seen),
        "truncated": num_truncated,
        "measures": [],
    }
    if keys:
        row["measures"] = [_measured(name, answers, keys, seed) for name in measures_of(questions.like, records)]
    return row


def _measured(name: str, answers: Mapping[str, BySeed], keys: Sequence[str], seed: int) -> dict[str, Any]:
    """One measure of every arm; and its value as it is shown, with an interval over questions of its own."""
    measure = MEASURES[name]
    tops = {arm: {s: _column(records, measure.top, keys) for s, records in by_seed.items()}
            for arm, by_seed in answers.items()}  # fmt: skip
    sizes_N = _column(next(iter(answers[BASELINE].values())), measure.bottom, keys)
    compared = Comparison(tops, sizes_N, better=measure.better, groups=None, seed=seed)
    arms = {arm: compared.describe(arm) for arm in tops}
    for arm, found in arms.items():
        found["shown"] = math.exp(min(found["mean"], 700.0)) if measure.is_perplexity else found["mean"]
        mean_N = np.mean(list(tops[arm].values()), axis=0)
        found["interval_over_questions"] = bootstrap_ratio(mean_N, sizes_N, seed=seed)._asdict()
    return {"name": name, **asdict(measure), "arms": arms}


def _column(records: Records, name: str | None, keys: Sequence[str]) -> np.ndarray:
    """A number of each question; ones without a name. float64 [N]."""
    return np.array([1.0 if name is None else records[key][name] for key in keys], np.float64)
