"""A quality panel of invented numbers, as `report.json` and `experiment.json` hold it."""

from __future__ import annotations

from typing import Any


def interval(value: float, spread: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + spread}


def text_column(**other: Any) -> dict[str, Any]:
    """What was measured of one kind of text."""
    return {
        "documents": 3,
        "repetition": interval(0.02),
        "tokens": {"mean": 20.0, "median": 19.0, "p10": 10.0, "p90": 30.0, "distance_from_real": 0.25},
        "lengths": [10, 20, 30],
        "type_token": {"documents": 3, "mean": interval(0.8), "ratios": [0.7, 0.8, 0.9], "distance_from_real": 0.5},
        "novel": {"1": 0.0, "4": 0.9, "8": 1.0, "13": None},
        "duplicates": {"documents": 1234, "exact": 0.0, "near": 0.1},
        "corpus_copying": {
            "documents": 3, "copied_share": interval(0.06), "copies": interval(0.05), "any_copied": interval(0.4),
            "longest": {"median": 0.0, "p90": 17.0, "max": 41},
        },
        "nearest": {"mean_cosine": interval(0.66), "cosines": [0.5, 0.6, 0.7]},
        **other,
    }  # fmt: skip


def beside_d1() -> dict[str, Any]:
    """Copying of d1, and irrelevance."""
    return {
        "copying": {"pairs": 3, "copied_share": interval(0.1), "copies": interval(0.0), "any_copied": interval(0.3)},
        "relevance": {
            "pairs": 3, "irrelevant": interval(0.3), "mean_cosine": interval(0.5), "cosines": [0.1, 0.5, 0.9],
        },
    }  # fmt: skip


def synthetic_column(d2: str = "{{ 7 * 7 }}", **other: Any) -> dict[str, Any]:
    """Likewise, with what only synthetic text has."""
    shown = {
        "doc_id": "s0", "group": "A & B", "d1_id": "0", "d1": "<img src=x onerror=alert(1)>", "d2": d2,
        "cosine": 0.43, "copied_share": 0.125, "nearest_id": "7", "nearest_cosine": 0.77, "nearest": "near & dear",
    }  # fmt: skip
    column = text_column(d1=beside_d1(), shown=[shown], **other)
    column["nearest"]["is_d1_share"] = 0.35
    return column


def limits() -> dict[str, Any]:
    """What the panel was made by."""
    cosines = beside_d1()["relevance"]
    return {
        "quality_sample": 3, "duplicate_sample": 1_000_000, "seed": 0, "embedder": "an embedder",
        "shingle_tokens": 13, "near_jaccard": 0.6, "copy_containment": 0.5,
        "relevance": {"threshold": 0.2, "random_quantile": 0.95, "random": cosines},
    }  # fmt: skip
