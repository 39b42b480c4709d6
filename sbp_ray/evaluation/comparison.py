"""The two arms beside one another, with paired intervals, and the scale at which they were compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbp_ray.evaluation.arms import Scores, TextSets
from sbp_ray.evaluation.intervals import bootstrap_ratio
from sbp_ray.evaluation.questions import Question
from sbp_ray.schema import Split

# N = units that are scored and drawn again together: documents or questions

ARMS = {"repetition": "base_lm", "sbp": "lm"}
"""The arms that are compared, and the artifact that holds each one's checkpoint."""
HELD_OUT = "held_out"


def compare_arms(
    scores: Mapping[str, Scores], text_set: str, sizes_N: Mapping[str, np.ndarray], *, seed: int
) -> dict[str, Any]:
    """NLL of both arms on one set of texts, a token and a byte.

    Args:
        sizes_N: the size of each unit in each measure: `token` and `byte`.

    Returns:
        arms: for each arm `nats_per_token`, `nats_per_byte` and `perplexity`.
        difference: for each measure sbp minus repetition with its paired interval; below zero, SBP is better.
    """
    nll = {arm: scores[arm].nll[text_set] for arm in ARMS}
    totals = {measure: float(np.sum(size_N)) for measure, size_N in sizes_N.items()}
    arms = {}
    for arm, nll_N in nll.items():
        arms[arm] = {f"nats_per_{measure}": float(nll_N.sum()) / total for measure, total in totals.items()}
        arms[arm]["perplexity"] = math.exp(arms[arm]["nats_per_token"])
    difference_N = nll["sbp"] - nll["repetition"]
    return {
        "units": len(difference_N),
        **{f"{measure}s": int(total) for measure, total in totals.items()},
        "arms": arms,
        "difference": {
            f"nats_per_{measure}": bootstrap_ratio(difference_N, size_N, seed=seed).as_dict()
            for measure, size_N in sizes_N.items()
        },
    }


def held_out_table(
    texts: Sequence[str], text_sets: TextSets, scores: Mapping[str, Scores], *, seed: int
) -> dict[str, Any] | None:
    """Perplexity on held-out documents; None when none are held out. Each document's end is graded with it."""
    if not texts:
        return None
    sizes_N = {"token": graded_tokens(text_sets, HELD_OUT), "byte": num_bytes(texts)}
    table = compare_arms(scores, HELD_OUT, sizes_N, seed=seed)
    for measures in table["arms"].values():
        measures["bits_per_byte"] = measures["nats_per_byte"] / math.log(2)
    return table


def answer_table(
    questions: Mapping[Split, Sequence[Question]],
    text_sets: TextSets,
    scores: Mapping[str, Scores],
    *,
    num_unknown: int,
    seed: int,
) -> dict[str, Any]:
    """Likelihood of the answers, asked closed book, for articles that were read and for held-out ones."""
    splits = {}
    for split, asked in questions.items():
        if asked:
            answers = [question.continuation for question in asked]
            sizes_N = {"token": graded_tokens(text_sets, split), "byte": num_bytes(answers)}
            splits[split] = compare_arms(scores, split, sizes_N, seed=seed)
    return {"not_in_corpus": num_unknown, "splits": splits}


def graded_tokens(text_sets: TextSets, name: str) -> np.ndarray:
    """Graded tokens of each unit. int64 [N]."""
    return np.array([sum(example.num_supervised for example in unit) for unit in text_sets[name]], np.int64)


def num_bytes(texts: Sequence[str]) -> np.ndarray:
    """Bytes of each text in UTF-8. int64 [N]."""
    return np.array([len(text.encode()) for text in texts], np.int64)
