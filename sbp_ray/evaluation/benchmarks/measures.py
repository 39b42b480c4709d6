"""What is made of the answers: for each benchmark and model a value with its interval over questions, and differences.

Every measure is a sum over questions by another one, so that models can be compared on the same questions, drawn again
together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbp_ray.evaluation.benchmarks.question_sets import QuestionSet
from sbp_ray.evaluation.intervals import Interval, bootstrap_ratio, mean_interval
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
    measure = MEASURES[name]
    return {
        "name": name,
        "label": measure.label,
        "better": measure.better,
        "is_perplexity": measure.is_perplexity,
        "arms": {arm: _arm(measure, by_seed, answers[BASELINE], keys, seed) for arm, by_seed in answers.items()},
    }


def _arm(measure: Measure, own: BySeed, base: BySeed, keys: Sequence[str], seed: int) -> dict[str, Any]:
    """Value and intervals of an arm, and its gain over the baseline: above zero, the arm is better."""
    both = [] if own is base else sorted(own.keys() & base.keys())
    value = {s: _value(measure, own[s], keys) for s in sorted(own)}
    gain = {s: measure.better * (value[s] - _value(measure, base[s], keys)) for s in both}
    top_N, bottom_N = (_column(own.values(), name, keys) for name in (measure.top, measure.bottom))
    over_questions = bootstrap_ratio(top_N, bottom_N, seed=seed)
    shown = math.exp(min(over_questions.value, 700.0)) if measure.is_perplexity else over_questions.value
    return {
        "value": over_questions.value,
        "shown": shown,
        "by_seed": {str(s): number for s, number in value.items()},
        "over_questions": over_questions.as_dict(),
        "over_seeds": _over_seeds(value),
        "gain_by_seed": {str(s): number for s, number in gain.items()},
        "gain_over_questions": _gain(measure, own, base, both, keys, seed).as_dict() if both else None,
        "gain_over_seeds": _over_seeds(gain),
    }


def _gain(measure: Measure, own: BySeed, base: BySeed, both: Sequence[int], keys: Sequence[str], seed: int) -> Interval:
    """Paired by question, each question's number averaged over the seeds that both arms have."""
    mine_N, its_N = (_column([arm[s] for s in both], measure.top, keys) for arm in (own, base))
    bottom_N = _column(own.values(), measure.bottom, keys)
    return bootstrap_ratio(measure.better * (mine_N - its_N), bottom_N, seed=seed)


def _over_seeds(by_seed: Mapping[int, float]) -> dict[str, float] | None:
    interval = mean_interval(list(by_seed.values()))
    return None if interval is None else interval.as_dict()


def _value(measure: Measure, records: Records, keys: Sequence[str]) -> float:
    return float(_column([records], measure.top, keys).sum() / _column([records], measure.bottom, keys).sum())


def _column(of_seeds: Collection[Records], name: str | None, keys: Sequence[str]) -> np.ndarray:
    """Mean over the seeds for each question; ones without a name. float64 [N]."""
    if name is None:
        return np.ones(len(keys))
    return np.mean([[records[key][name] for key in keys] for records in of_seeds], axis=0)
