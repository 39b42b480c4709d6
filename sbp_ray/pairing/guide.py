"""What tells a user how to set the thresholds: yield by band and by threshold, degrees, sample pairs of each band."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.config import PairConfig
from sbp_ray.doc_ids import id_numbers, ids_to_numpy
from sbp_ray.neighbors.histogram import bin_edge, bin_numbers, sorted_histogram, threshold_for
from sbp_ray.pairing.candidates import REASONS
from sbp_ray.text.hashing import id_ranks, mixed

Sample = dict[str, Any]

SAMPLES_PER_BAND = 2
"""Sample pairs of each band that are near-duplicates, and as many that are not."""
_WHAT_IF_DOCUMENTS = 20_000
"""Documents whose pairs are followed below `min_cosine`: a share is known within 0.7 percentage points (95 %)."""
_PAIRS_PER_DOCUMENT = 0.1
"""Pairs of a document, on average, from which on a threshold is worth suggesting."""
_SLOTS = 1 << 16
"""Slots into which documents fall at random."""


def what_if_slots(num_documents: int) -> int:
    """How many of the 65,536 slots hold the documents whose pairs are followed below `min_cosine` too."""
    return _SLOTS if num_documents <= _WHAT_IF_DOCUMENTS else math.ceil(_SLOTS * _WHAT_IF_DOCUMENTS / num_documents)


def in_slots(ids: pa.Array, num_slots: int) -> NDArray[np.bool_]:
    """Whether each document is among those of `what_if_slots`."""
    return id_ranks("guide", 0, id_numbers(ids_to_numpy(ids))) // np.uint64(2**64 // _SLOTS) < num_slots


def degree_counts(degrees: NDArray[np.integer]) -> dict[str, int]:
    """How many documents have each degree that occurs."""
    found, counts = np.unique(degrees, return_counts=True)
    return {str(degree): int(count) for degree, count in zip(found, counts, strict=True)}


def degree_summary(counts: Mapping[str, int], num_documents: int) -> dict[str, Any]:
    """Mean, quantiles, maximum, and a histogram by powers of two: "4" counts 4 to 7.

    Args:
        counts: as `degree_counts` gives them; documents that are not in it have degree 0.
    """
    known = {int(degree): count for degree, count in counts.items()}
    known[0] = num_documents - sum(count for degree, count in known.items() if degree)
    degrees = np.array(sorted(known))
    up_to = np.cumsum([known[degree] for degree in degrees])
    histogram: dict[str, int] = {}
    for degree in degrees:
        edge = str(1 << int(degree).bit_length() - 1 if degree else 0)
        histogram[edge] = histogram.get(edge, 0) + known[degree]
    ranks = {name: math.ceil(share * num_documents) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    return {
        "mean": round(sum(degree * count for degree, count in known.items()) / max(num_documents, 1), 2),
        **{name: int(degrees[np.searchsorted(up_to, rank)]) for name, rank in ranks.items()},
        "max": int(degrees[-1]),
        "histogram": drop_zeros(histogram),
    }


def make_guide(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `guide.json` holds of a split, from the counts of its shards."""
    return {
        "documents": found["documents"],
        "what_if_documents": found["what_if_documents"],
        "bands": band_rows(found),
        "thresholds": threshold_rows(found),
        "degrees": {name: degree_summary(found[name], found["documents"]) for name in ("listed_by", "as_d2", "as_d1")},
        "samples": found["samples"],
    }


# Bands and thresholds


def band_rows(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each band of 0.05, from the lowest: listed neighbours, near-duplicates by reason, pairs that came out."""
    return [
        {
            "band": edge,
            "listed": count,
            **{reason: stats[reason].get(edge, 0) for reason in REASONS[2:]},
            "pairs": stats["histogram"].get(edge, 0),
        }
        for edge, count in sorted_histogram(stats["listed"]).items()
    ]


def threshold_rows(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each edge of a band would give as `min_cosine`, all other settings as they are; from the lowest.

    Returns:
        listed: neighbours at least so similar.
        duplicate_share: of them, near-duplicates.
        documents_share: of the documents, those that are d2 of a pair; before `max_as_d1`.
        pairs: directed, before `max_as_d1`; an estimate where not all documents were followed.
        full_share: of the documents, those whose whole list lies above: a longer list would give them more.
    """
    edges = list(sorted_histogram(stats["listed"]))
    scale = stats["documents"] / max(stats["what_if_documents"], 1)
    duplicates = [sum(stats[reason].get(edge, 0) for reason in REASONS[2:]) for edge in edges]

    def above(counts: Iterable[int]) -> list[int]:
        return list(itertools.accumulate(reversed(list(counts))))[::-1]

    def of(name: str) -> list[int]:
        return above(stats[name].get(edge, 0) for edge in edges)

    columns = zip(edges, of("listed"), above(duplicates), of("nearest"), of("within_cap"), of("last"), strict=True)
    return [
        {
            "min_cosine": float(edge),
            "listed": listed,
            "duplicate_share": round(duplicate / listed, 4),
            "documents_share": round(nearest / max(stats["what_if_documents"], 1), 4),
            "pairs": round(within_cap * scale),
            "full_share": round(last / stats["documents"], 4),
        }
        for edge, listed, duplicate, nearest, within_cap, last in columns
    ]


def explain_no_pairs(cfg: PairConfig, stats: Mapping[str, Any]) -> str:
    """What there is instead, and a setting that would give some."""
    drops = ", ".join(f"{count:,} {reason}" for reason, count in stats["drops"].items()) or "no neighbours"
    fact = f"no pairs with pair.min_cosine={cfg.min_cosine}, pair.max_cosine={cfg.max_cosine} ({drops})"
    listed = sorted_histogram(stats["listed"])
    if not any(float(edge) < cfg.max_cosine for edge in listed):
        return f"{fact}: the train split needs at least two documents that are not copies of each other"
    line = " ".join(f"{edge}:{count}" for edge, count in listed.items())
    related = {
        edge: count - sum(stats[reason].get(edge, 0) for reason in REASONS[2:]) for edge, count in listed.items()
    }
    below = drop_zeros({edge: count for edge, count in related.items() if float(edge) < cfg.min_cosine})
    if not below:
        limits = "pair.max_jaccard and pair.max_containment" if not any(related.values()) else "pair.max_cosine"
        remedy = f"give documents that are not copies of each other, or raise {limits}"
        return f"{fact}; cosines of neighbours {line}: {remedy}"
    threshold, num_pairs = threshold_for(below, _PAIRS_PER_DOCUMENT * stats["documents"])
    return (
        f"{fact}; cosines of neighbours {line}: use --redo pair pair.min_cosine={threshold:.2f}, "
        f"which keeps about {num_pairs:,} for {stats['documents']:,} documents"
    )


def drop_zeros(counts: Mapping[str, int]) -> dict[str, int]:
    """Without those that are zero."""
    return {name: count for name, count in counts.items() if count}


# Sample pairs


def draw_samples(pairs: pa.Table, columns: Mapping[str, NDArray], duplicate_N: NDArray[np.int8]) -> list[Sample]:
    """A few pairs from each band, chosen by a hash of both ids: the same in every run, whoever lists whom.

    Args:
        pairs: rows of `CANDIDATE`.
        columns: cosine, jaccard and containment of each.
        duplicate_N: `near_duplicates` of each.
    """
    own_N, other_N = (id_numbers(ids_to_numpy(pairs[name]))[:, 1] for name in ("d1_id", "d2_id"))
    order_N = mixed(mixed(own_N + other_N))
    group_N = 2 * bin_numbers(columns["cosine"]) + (duplicate_N > 0)
    found: list[Sample] = []
    for group in np.unique(group_N):
        rows = np.flatnonzero(group_N == group)
        wanted = 2 * SAMPLES_PER_BAND  # a pair may be there twice
        if len(rows) > wanted:
            rows = rows[np.argpartition(order_N[rows], wanted)[:wanted]]
        for row in rows:
            d1_id, d2_id = sorted(pairs[name][row].as_py().hex() for name in ("d1_id", "d2_id"))
            reason = REASONS[duplicate_N[row] - 1] if duplicate_N[row] else None
            sample = {"band": bin_edge(group // 2), "near_duplicate": reason, "order": int(order_N[row])}
            rounded = {name: round(float(values[row]), 4) for name, values in columns.items()}
            found.append({**sample, "d1_id": d1_id, "d2_id": d2_id, **rounded})
    return choose_samples(found)


def choose_samples(samples: Iterable[Sample]) -> list[Sample]:
    """The samples that come first by their hash in each band, from the lowest band, each pair once."""

    def group(sample: Sample) -> tuple[float, bool]:
        return float(sample["band"]), sample["near_duplicate"] is not None

    once = {(sample["d1_id"], sample["d2_id"], *group(sample)): sample for sample in samples}
    ordered = sorted(once.values(), key=lambda sample: (*group(sample), sample["order"]))
    return [one for _, found in itertools.groupby(ordered, group) for one in itertools.islice(found, SAMPLES_PER_BAND)]
