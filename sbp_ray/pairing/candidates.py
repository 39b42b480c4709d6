"""Directed pairs of documents as tables: judged, each once, and ranked without a loop over rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.config import PairConfig
from sbp_ray.doc_ids import id_numbers, ids_to_numpy
from sbp_ray.schema import DOC_ID

# N = directed pairs

CANDIDATE = pa.schema(
    [
        ("d1_id", DOC_ID),
        ("d2_id", DOC_ID),
        ("cosine", pa.float32()),
        ("jaccard", pa.float32()),
        ("same_group", pa.bool_()),
        ("is_listed", pa.bool_()),  # d2's list of neighbours names d1
    ]
)
RELATED = 0
BAND_REASONS = ("below_min_cosine", "above_max_cosine")
DUPLICATE_REASONS = ("near_duplicate_jaccard", "near_duplicate_containment", "near_duplicate_update")
TEXT_REASONS = (*DUPLICATE_REASONS, "form_only")
REASONS = (*BAND_REASONS, *TEXT_REASONS)
MEASURES = ("jaccard", "containment", "content_overlap")
"""How alike two documents' texts are, as the lists of neighbours say."""
_UPDATED_CONTAINMENT = 0.05
"""Of the shingles: two texts about one subject share hardly any, an update in which much was reworded has few left."""


def judge_texts(
    jaccard_N: NDArray[np.float32],
    containment_N: NDArray[np.float32],
    content_overlap_N: NDArray[np.float32],
    cfg: PairConfig,
) -> NDArray[np.int8]:
    """`RELATED`, or the number in `REASONS`, from 1, of the reason why two texts make no pair: too much alike, or in
    form only."""
    shares_runs_N = containment_N > np.float32(_UPDATED_CONTAINMENT)
    against = [
        jaccard_N > np.float32(cfg.max_jaccard),
        containment_N > np.float32(cfg.max_containment),
        shares_runs_N & (content_overlap_N > np.float32(cfg.max_content_overlap)),
        content_overlap_N < np.float32(cfg.min_content_overlap),
    ]
    numbers = [np.int8(1 + REASONS.index(reason)) for reason in TEXT_REASONS]
    return np.select(against, numbers, np.int8(RELATED))


def judge(cosine_N: NDArray[np.float32], text_N: NDArray[np.int8], cfg: PairConfig) -> NDArray[np.int8]:
    """`judge_texts`, with the band of cosines before it. The band's edges belong to it."""
    against = [cosine_N < np.float32(cfg.min_cosine), cosine_N > np.float32(cfg.max_cosine)]
    return np.select(against, [np.int8(1), np.int8(2)], text_N)


def turn_pairs(pairs: pa.Table, *, is_listed: bool) -> pa.Table:
    """The other direction of each pair, rows of `CANDIDATE`."""
    rest = pairs.select(["cosine", "jaccard", "same_group"]).columns
    return pa.table([pairs["d2_id"], pairs["d1_id"], *rest, pa.repeat(is_listed, len(pairs))], schema=CANDIDATE)


def rank_pairs(pairs: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
    """Each pair once, the most similar first for each d1; and the rank of each among the pairs of its d1, from 0.

    A pair that each of its documents lists comes twice, in the same direction. Equally similar pairs go by the id of
    their d2.
    """
    wanted = [(name, "max") for name in CANDIDATE.names[2:]]
    found = pairs.group_by(["d1_id", "d2_id"], use_threads=False).aggregate(wanted).rename_columns(CANDIDATE.names)
    found = found.sort_by([("d1_id", "ascending"), ("cosine", "descending"), ("d2_id", "ascending")])
    ids_N2 = id_numbers(ids_to_numpy(found["d1_id"]))
    starts = np.flatnonzero(np.append(True, (ids_N2[1:] != ids_N2[:-1]).any(axis=1))[: len(found)])
    return found, np.arange(len(found)) - np.repeat(starts, np.diff(starts, append=len(found)))
