"""The quality table: what a sample of texts, and of pairs of texts, is like.

The same measures for synthetic and for real text, on samples whose size is stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbp_ray.evaluation.duplicates import duplicate_shares
from sbp_ray.evaluation.intervals import bootstrap_ratio
from sbp_ray.evaluation.novelty import NgramCounts, ngram_table, novel_shares
from sbp_ray.evaluation.samples import Samples
from sbp_ray.evaluation.scan import Scan
from sbp_ray.text.quality import repetition_share
from sbp_ray.text.shingles import containment, shingle_hashes

NEAR_JACCARD = 0.6
"""Documents of one sample whose shingle sets overlap this much are near-duplicates of one another."""
COPY_CONTAINMENT = 0.5
"""A d2 copies its d1 when d1 holds at least this share of its shingles."""
RANDOM_PAIR_QUANTILE = 0.95
"""A pair is irrelevant when its cosine is below that of all but the upper 5 % of random pairs."""

IdLists = Sequence[Sequence[int]]


def text_measures(documents: IdLists, *, shingle_tokens: int, seed: int) -> dict[str, Any] | None:
    """Repetition, duplicates and length of a sample; None for an empty one.

    Returns:
        documents: size of the sample.
        repetition: mean share of a document's 4-token runs that repeat an earlier one of the same document.
        exact_duplicates, near_duplicates: share of the sample that an earlier document of it makes redundant.
        tokens: mean, median, and the 10th and 90th percentile of the length; `lengths` for the plot.
    """
    if not documents:
        return None
    lengths = np.array([len(ids) for ids in documents])
    duplicates = duplicate_shares(documents, min_jaccard=NEAR_JACCARD, shingle_tokens=shingle_tokens)
    p10, median, p90 = np.quantile(lengths, [0.1, 0.5, 0.9])
    return {
        "documents": len(documents),
        "repetition": bootstrap_ratio([repetition_share(ids) for ids in documents], seed=seed).as_dict(),
        "exact_duplicates": duplicates["exact"],
        "near_duplicates": duplicates["near"],
        "tokens": {"mean": float(lengths.mean()), "median": float(median), "p10": float(p10), "p90": float(p90)},
        "lengths": lengths.tolist(),
    }


def copying(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, shingle_tokens: int, seed: int) -> dict[str, Any]:
    """How much d2 takes from d1, over pairs (d1, d2) of token ids.

    Returns:
        copied_share: mean share of d2's shingles that d1 holds.
        copies: share of the pairs in which that is `COPY_CONTAINMENT` or more.
        any_copied: share of the pairs in which d2 has at least one run of d1.
    """
    held = np.array(
        [containment(shingle_hashes(d2, shingle_tokens), shingle_hashes(d1, shingle_tokens)) for d1, d2 in pairs]
    )
    return {
        "pairs": len(pairs),
        "copied_share": bootstrap_ratio(held, seed=seed).as_dict(),
        "copies": bootstrap_ratio(held >= COPY_CONTAINMENT, seed=seed).as_dict(),
        "any_copied": bootstrap_ratio(held > 0, seed=seed).as_dict(),
    }


def irrelevance(cosines: Sequence[float] | np.ndarray, threshold: float, *, seed: int) -> dict[str, Any]:
    """Share of pairs whose texts are no closer than chance brings together, and the cosines themselves."""
    cosines_N = np.asarray(cosines, np.float64)
    return {
        "pairs": len(cosines_N),
        "irrelevant": bootstrap_ratio(cosines_N < threshold, seed=seed).as_dict(),
        "mean_cosine": bootstrap_ratio(cosines_N, seed=seed).as_dict(),
        "cosines": [round(float(cosine), 4) for cosine in cosines_N],
    }


def random_cosines(vectors_ND: np.ndarray, *, seed: int) -> np.ndarray:
    """Cosines of random pairs: each vector beside the next in a random ring, so none beside itself. float32 [N]."""
    ring = np.random.default_rng(seed).permutation(len(vectors_ND))
    return np.einsum("nd,nd->n", vectors_ND[ring], vectors_ND[np.roll(ring, 1)])


def irrelevance_threshold(random_N: np.ndarray) -> float:
    """The cosine that `RANDOM_PAIR_QUANTILE` of random pairs stay below."""
    return float(np.quantile(random_N, RANDOM_PAIR_QUANTILE))


def quality_table(
    samples: Samples, scan: Scan, vectors: Mapping[str, np.ndarray], *, shingle_tokens: int, seed: int
) -> dict[str, Any]:
    """Every measure for every sample.

    Args:
        scan: of the train split: the documents of the pairs, and the samples' n-gram counts.
        vectors: unit vectors by doc_id, of the synthetic documents and of their d1.
    """
    options = {"shingle_tokens": shingle_tokens, "seed": seed}
    documents = scan.documents
    ids = {name: row["input_ids"] for name, row in documents.items()}
    pairs = {
        "synthetic": [(ids[row["d1_id"]], row["input_ids"]) for row in samples.synthetic],
        "mined": [(ids[row["d1_id"]], ids[row["d2_id"]]) for row in samples.pairs],
    }
    return {
        **options,
        "near_jaccard": NEAR_JACCARD,
        "copy_containment": COPY_CONTAINMENT,
        "texts": {
            name: _text_column(texts, scan.ngram_counts.get(name, {}), own=int(name == "real_train"), **options)
            for name, texts in samples.token_ids().items()
        },
        "copying": {name: copying(found, **options) if found else None for name, found in pairs.items()},
        "relevance": _relevance(samples, vectors, seed),
    }


def _text_column(texts: IdLists, counts: NgramCounts, *, own: int, **options: int) -> dict[str, Any] | None:
    measures = text_measures(texts, **options)
    if measures is not None:
        measures["novel"] = novel_shares(texts, ngram_table(texts), counts, own=own)
    return measures


def _relevance(samples: Samples, vectors: Mapping[str, np.ndarray], seed: int) -> dict[str, Any] | None:
    """Cosines of synthetic, mined and random pairs, and the share that is no closer than random pairs are."""
    d1_ids = sorted({row["d1_id"] for row in samples.synthetic})
    if len(d1_ids) < 2:
        return None
    chance_N = random_cosines(np.stack([vectors[doc_id] for doc_id in d1_ids]), seed=seed)
    threshold = irrelevance_threshold(chance_N)
    cosines = {
        "synthetic": [float(vectors[row["doc_id"]] @ vectors[row["d1_id"]]) for row in samples.synthetic],
        "mined": [row["cosine"] for row in samples.pairs if row["cosine"] is not None],  # random pairs have none
        "random": chance_N.tolist(),
    }
    found = {name: irrelevance(values, threshold, seed=seed) for name, values in cosines.items() if values}
    return {"threshold": threshold, "random_quantile": RANDOM_PAIR_QUANTILE, **found}
