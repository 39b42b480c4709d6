"""How the pairs were mined, for the report: the recall of the neighbours, and what tells how to set the thresholds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PairConfig
from sbp_ray.nodes import Node
from sbp_ray.report.wording import cut

_GUIDE = "guide.json"  # what pairing leaves beside the pairs
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
    wanted = {bytes.fromhex(sample[key]) for sample in guide["samples"] for key in ("d1_id", "d2_id")}
    documents = fetch_documents(neighbors.inputs["embeddings"].inputs["corpus"].artifact, wanted)
    by_band: dict[str, list[dict[str, Any]]] = {}
    for sample in guide["samples"]:
        d1, d2 = (documents.get(bytes.fromhex(sample[key])) for key in ("d1_id", "d2_id"))
        if d1 and d2:
            numbers = {key: sample[key] for key in ("cosine", "jaccard", "containment")}
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


def _verdict(sample: Mapping[str, Any], cfg: PairConfig) -> str:
    if sample["cosine"] < cfg.min_cosine:
        return "below min_cosine"
    if sample["cosine"] > cfg.max_cosine:
        return "above max_cosine"
    if sample["near_duplicate"]:
        return sample["near_duplicate"].replace("_", " ").replace("near duplicate", "near-duplicate:")
    return "pair"
