"""How the pairs were mined, for the report: the recall of the neighbours, and what tells how to set the thresholds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PairConfig
from sbp_ray.nodes import Node
from sbp_ray.report.wording import cut

_GUIDE = "guide.json"  # what pairing leaves beside the pairs
_SHOWN_SAMPLES = 2
_SHOWN_CHARS = 300  # of each text of a sample pair


def mining_facts(
    pairs: Node, fetch_documents: Callable[[Artifact, set[bytes]], Mapping[bytes, Mapping[str, Any]]]
) -> dict[str, Any] | None:
    """How pairs were mined: their number, the guide with the limits it was made with, the measured recall, and sample
    pairs of each band with their texts.

    Args:
        fetch_documents: rows of the corpus by id; a sample whose documents are not there is left out.

    Returns:
        None for random pairs, and for pairs that came without a guide.
    """
    if pairs.config.pair.source != "neighbors" or not pairs.artifact.exists(_GUIDE):
        return None
    guide, mined, cfg = pairs.artifact.read_json(_GUIDE)["train"], pairs.stats.get("train", {}), pairs.config.pair
    neighbors = pairs.inputs["neighbors"]
    samples = _some_of_each(guide["samples"])
    wanted = {bytes.fromhex(sample[key]) for sample in samples for key in ("d1_id", "d2_id")}
    documents = fetch_documents(neighbors.inputs["embeddings"].inputs["corpus"].artifact, wanted)
    by_band: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        d1, d2 = (documents.get(bytes.fromhex(sample[key])) for key in ("d1_id", "d2_id"))
        if d1 and d2:
            numbers = {key: sample[key] for key in ("cosine", "jaccard", "containment", "content_overlap")}
            texts = {"d1": cut(d1["text"], _SHOWN_CHARS), "d2": cut(d2["text"], _SHOWN_CHARS)}
            row = {"verdict": _verdict(sample, cfg), "d1_id": sample["d1_id"], "d2_id": sample["d2_id"]}
            by_band.setdefault(sample["band"], []).append({**row, **numbers, **texts})
    return {
        "pairs": pairs.key,
        "num_pairs": mined.get("pairs"),
        "same_group_share": mined.get("same_group_share"),
        **{key: guide[key] for key in ("documents", "what_if_documents", "bands", "thresholds", "degrees")},
        "limits": cfg.model_dump(mode="json", exclude={"resources"}),
        "recall": neighbors.stats.get("train", {}).get("recall"),
        "samples": [{"band": band, "pairs": by_band[band]} for band in sorted(by_band, key=float, reverse=True)],
    }


def _some_of_each(samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first of each band and reason; `guide.md` beside the pairs shows all."""
    seen: Counter[tuple[str, str | None]] = Counter()
    some = []
    for sample in samples:
        group = sample["band"], sample["dropped"]
        seen[group] += 1
        if seen[group] <= _SHOWN_SAMPLES:
            some.append(sample)
    return some


def _verdict(sample: Mapping[str, Any], cfg: PairConfig) -> str:
    if sample["cosine"] < cfg.min_cosine:
        return "below min_cosine"
    if sample["cosine"] > cfg.max_cosine:
        return "above max_cosine"
    if sample["dropped"]:
        return sample["dropped"].replace("_", " ").replace("near duplicate", "near-duplicate:")
    return "pair"
