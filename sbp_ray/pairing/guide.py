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
from sbp_ray.pairing.candidates import DUPLICATE_REASONS, REASONS, TEXT_REASONS
from sbp_ray.text.hashing import id_ranks, mixed

Sample = dict[str, Any]

GUIDE = "guide.json"
SAMPLES_PER_BAND = 20
"""Sample pairs of each band whose texts may be paired."""
DROPPED_PER_BAND = 3
"""And of those that each reason keeps out."""
_SHARED_CONTENT = 0.02
"""Overlap of content words from which on two texts are counted as sharing some: one word of fifty, where the estimate
for texts without any in common stays below 0.02 in 95 % of all cases."""
_RELATED_SHARE = 0.75
"""Of a band's pairs, that share content words: from there on it is recommended."""
_BAND_PAIRS = 10
"""Pairs of a band that tell something of it."""
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
        "recommended": recommend(found),
        "degrees": {name: degree_summary(found[name], found["documents"]) for name in ("listed_by", "as_d2", "as_d1")},
        "samples": found["samples"],
    }


# Bands and thresholds


def band_rows(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each band of 0.05, from the lowest: listed neighbours, those whose texts make no pair by reason, those that
    do and share content words, and pairs that came out."""
    return [
        {
            "band": edge,
            "listed": count,
            **{reason: stats[reason].get(edge, 0) for reason in TEXT_REASONS},
            "related": stats["related"].get(edge, 0),
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
    duplicates = [sum(stats[reason].get(edge, 0) for reason in DUPLICATE_REASONS) for edge in edges]

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


def shares_content(content_overlap_N: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which pairs have content words in common, as far as an estimate can tell."""
    return content_overlap_N >= np.float32(_SHARED_CONTENT)


def recommend(stats: Mapping[str, Any]) -> dict[str, Any]:
    """A `min_cosine`, None where no band is good enough, and the reason for it.

    From there on three quarters of the pairs of every band share content words: a name or a topic, not only a form.
    """
    bands = band_rows(stats)
    shares: list[float | None] = []
    for row in bands:
        num_pairs = row["listed"] - sum(row[reason] for reason in TEXT_REASONS)
        shares.append(row["related"] / num_pairs if num_pairs >= _BAND_PAIRS else None)
    place = len(bands)
    while place and ((share := shares[place - 1]) is None or share >= _RELATED_SHARE):
        place -= 1
    told = [number for number in range(place, len(bands)) if shares[number] is not None]
    if not told:
        return {"min_cosine": None, "reason": "in no band do three quarters of the pairs share content words"}
    place = told[0]
    chosen = threshold_rows(stats)[place]
    reason = (
        f"from there on three quarters of the pairs of every band share content words, names and topics "
        f"({shares[place]:.0%} in the lowest of these bands"
        + (f", {shares[place - 1]:.0%} in the one below it" if place and shares[place - 1] is not None else "")
        + f"); {chosen['documents_share']:.0%} of the documents have a pair there"
    )
    return {"min_cosine": chosen["min_cosine"], "reason": reason}


def explain_no_pairs(cfg: PairConfig, stats: Mapping[str, Any]) -> str:
    """What there is instead, and a setting that would give some."""
    drops = ", ".join(f"{count:,} {reason}" for reason, count in stats["drops"].items()) or "no neighbours"
    fact = f"no pairs with pair.min_cosine={cfg.min_cosine}, pair.max_cosine={cfg.max_cosine} ({drops})"
    listed = sorted_histogram(stats["listed"])
    if not any(float(edge) < cfg.max_cosine for edge in listed):
        return f"{fact}: the train split needs at least two documents that are not copies of each other"
    line = " ".join(f"{edge}:{count}" for edge, count in listed.items())
    related = {
        edge: count - sum(stats[reason].get(edge, 0) for reason in TEXT_REASONS) for edge, count in listed.items()
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


def draw_samples(pairs: pa.Table, columns: Mapping[str, NDArray], text_N: NDArray[np.int8]) -> list[Sample]:
    """A few pairs from each band, chosen by a hash of both ids: the same in every run, whoever lists whom.

    Args:
        pairs: rows of `CANDIDATE`.
        columns: cosine and `MEASURES` of each.
        text_N: `judge_texts` of each.
    """
    own_N, other_N = (id_numbers(ids_to_numpy(pairs[name]))[:, 1] for name in ("d1_id", "d2_id"))
    order_N = mixed(mixed(own_N + other_N))
    num_groups = len(REASONS) + 1
    group_N = num_groups * bin_numbers(columns["cosine"]) + text_N
    found: list[Sample] = []
    for group in np.unique(group_N):
        rows = np.flatnonzero(group_N == group)
        reason = REASONS[text_N[rows[0]] - 1] if text_N[rows[0]] else None
        wanted = 2 * _num_wanted(reason)  # a pair may be there twice
        if len(rows) > wanted:
            rows = rows[np.argpartition(order_N[rows], wanted)[:wanted]]
        for row in rows:
            d1_id, d2_id = sorted(pairs[name][row].as_py().hex() for name in ("d1_id", "d2_id"))
            sample = {"band": bin_edge(group // num_groups), "dropped": reason, "order": int(order_N[row])}
            rounded = {name: round(float(values[row]), 4) for name, values in columns.items()}
            found.append({**sample, "d1_id": d1_id, "d2_id": d2_id, **rounded})
    return choose_samples(found)


def choose_samples(samples: Iterable[Sample]) -> list[Sample]:
    """The samples that come first by their hash in each band, by reason, from the lowest band, each pair once."""

    def group(sample: Sample) -> tuple[float, str]:
        return float(sample["band"]), sample["dropped"] or ""

    once = {(sample["d1_id"], sample["d2_id"], *group(sample)): sample for sample in samples}
    ordered = sorted(once.values(), key=lambda sample: (*group(sample), sample["order"]))
    return [
        one
        for (_, reason), found in itertools.groupby(ordered, group)
        for one in itertools.islice(found, _num_wanted(reason))
    ]


def _num_wanted(reason: str | None) -> int:
    return DROPPED_PER_BAND if reason else SAMPLES_PER_BAND
