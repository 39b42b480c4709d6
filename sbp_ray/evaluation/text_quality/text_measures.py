"""The quality panel: what a sample of texts, and of pairs of texts, is like.

The same measures for synthetic and for real text, on samples whose size is stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sbp_ray.evaluation.intervals import mean_over_groups
from sbp_ray.evaluation.text_quality.nearest import Nearest
from sbp_ray.evaluation.text_quality.novelty import copied_shares, copying_of_corpus, known_runs
from sbp_ray.evaluation.text_quality.samples import Sample
from sbp_ray.text.quality import repetition_share, type_token_ratio
from sbp_ray.text.shingles import containment, shingle_hashes
from sbp_ray.text.words import word_ids

RANDOM_PAIR_QUANTILE = 0.95
"""A pair is irrelevant when its cosine is below that of all but the upper 5 % of random pairs."""

IdLists = Sequence[Sequence[int]]


def text_measures(
    documents: IdLists, texts: Sequence[str], groups: Sequence[str], *, seed: int
) -> dict[str, Any] | None:
    """Repetition, length and diversity of a sample; None for an empty one.

    Returns:
        documents: size of the sample.
        repetition: mean share of a document's 4-token runs that repeat an earlier one of the same document.
        tokens: mean, median, and the 10th and 90th percentile of the length; `lengths` for the plot.
        type_token: mean of the documents' moving-average type-token ratios, `documents` that are long enough for one,
            and the `ratios`; None where there is none.
    """
    if not documents:
        return None
    lengths = np.array([len(ids) for ids in documents])
    p10, median, p90 = np.quantile(lengths, [0.1, 0.5, 0.9])
    rated = [(type_token_ratio(word_ids(text)), group) for text, group in zip(texts, groups, strict=True)]
    ratios, their_groups = [r for r, _ in rated if r is not None], [group for r, group in rated if r is not None]
    return {
        "documents": len(documents),
        "repetition": mean_over_groups([repetition_share(ids) for ids in documents], groups, seed=seed),
        "tokens": {"mean": float(lengths.mean()), "median": float(median), "p10": float(p10), "p90": float(p90)},
        "lengths": lengths.tolist(),
        "type_token": {
            "documents": len(ratios),
            "mean": mean_over_groups(ratios, their_groups, seed=seed),
            "ratios": rounded(ratios),
        }
        if ratios
        else None,
    }


def rounded(values: ArrayLike) -> list[float]:
    """Numbers of a plot."""
    return [round(float(value), 4) for value in np.asarray(values)]


def copying(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], groups: Sequence[str], *, shingle_tokens: int, seed: int
) -> dict[str, Any]:
    """How much d2 takes from d1, over pairs (d1, d2) of token ids.

    Returns:
        copied_share: mean share of d2's shingles that d1 holds.
        copies: share of the pairs in which that is `COPY_CONTAINMENT` or more.
        any_copied: share of the pairs in which d2 has at least one run of d1.
    """
    held = np.array([held_by(d1, d2, shingle_tokens) for d1, d2 in pairs])
    return {"pairs": len(pairs), **copied_shares(held, groups, seed=seed)}


def held_by(d1: Sequence[int], d2: Sequence[int], shingle_tokens: int) -> float:
    """The share of d2's shingles that d1 holds."""
    return containment(shingle_hashes(d2, shingle_tokens), shingle_hashes(d1, shingle_tokens))


def irrelevance(cosine_N: NDArray[Any], threshold: float, groups: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Share of pairs whose texts are no closer than chance brings together, and the cosines themselves."""
    return {
        "pairs": len(cosine_N),
        "irrelevant": mean_over_groups(cosine_N < threshold, groups, seed=seed),
        "mean_cosine": mean_over_groups(cosine_N, groups, seed=seed),
        "cosines": rounded(cosine_N),
    }


def random_cosines(vectors_ND: NDArray[np.float32], *, seed: int) -> NDArray[np.float32]:
    """Cosines of random pairs: each vector beside the next in a random ring, so none beside itself. float32 [N].

    Empty for fewer than two vectors.
    """
    if len(vectors_ND) < 2:
        return np.empty(0, np.float32)
    ring = np.random.default_rng(seed).permutation(len(vectors_ND))
    return np.einsum("nd,nd->n", vectors_ND[ring], vectors_ND[np.roll(ring, 1)])


def irrelevance_threshold(random_N: NDArray[Any]) -> float:
    """The cosine that `RANDOM_PAIR_QUANTILE` of random pairs stay below."""
    return float(np.quantile(random_N, RANDOM_PAIR_QUANTILE))


def distance_of_distributions(values: Sequence[float], others: Sequence[float]) -> float | None:
    """The greatest difference of the two cumulative distributions (Kolmogorov and Smirnov): 0 for equal ones, up to 1.

    None where one of them is empty.
    """
    return float(stats.ks_2samp(values, others).statistic) if len(values) and len(others) else None


def add_distances(columns: Mapping[str, dict[str, Any] | None], yardstick: str) -> None:
    """Say in each column how far its lengths and type-token ratios are from those of the yardstick's sample."""
    real = columns.get(yardstick)
    for name, column in columns.items():
        if column is None or real is None or name == yardstick:
            continue
        column["tokens"]["distance_from_real"] = distance_of_distributions(column["lengths"], real["lengths"])
        if column["type_token"] and real["type_token"]:
            ratios, others = column["type_token"]["ratios"], real["type_token"]["ratios"]
            column["type_token"]["distance_from_real"] = distance_of_distributions(ratios, others)


def sample_column(
    named: tuple[str, Sample, Nearest], keys_C: NDArray[np.uint64], counts_C: NDArray[np.uint8], seed: int
) -> dict[str, Any] | None:
    """What a sample's texts are like, and what they share with the corpus; None for an empty sample.

    Args:
        named: the sample, and to each of its documents the nearest one of the train split.
        keys_C: the table of the runs of all samples.
        counts_C: in how many train documents each stands.
    """
    _, sample, nearest = named
    groups = [row["group"] for row in sample.rows]
    column = text_measures(sample.token_ids, [row["text"] for row in sample.rows], groups, seed=seed)
    if column is not None:
        runs = known_runs(sample.token_ids, keys_C, counts_C, own=int(sample.kind == "train"))
        column["novel"] = runs.novel_shares()
        column["corpus_copying"] = copying_of_corpus(runs, groups, seed=seed)
        mean = mean_over_groups(nearest.cosine_N, groups, seed=seed)
        column["nearest"] = {"mean_cosine": mean, "cosines": rounded(nearest.cosine_N)}
    return column
