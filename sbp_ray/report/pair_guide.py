"""How the pairs were mined, for the report: the recall of the neighbours, and what tells how to set the thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PairConfig
from sbp_ray.report.wording import cut

_GUIDE = "guide.json"  # what pairing leaves beside the pairs
_SHOWN_CHARS = 300  # of each text of a sample pair


def read_guide(pairs: Artifact) -> dict[str, Any] | None:
    """What pairing wrote about the train split; None in a run whose pairs came without."""
    return pairs.read_json(_GUIDE)["train"] if pairs.exists(_GUIDE) else None


def guide_ids(guide: Mapping[str, Any]) -> set[bytes]:
    """Documents whose texts the sample pairs need."""
    return {bytes.fromhex(sample[key]) for sample in guide["samples"] for key in ("d1_id", "d2_id")}


def guide_facts(
    guide: Mapping[str, Any],
    cfg: PairConfig,
    neighbors: Artifact,
    documents: Mapping[bytes, Mapping[str, Any]],
) -> dict[str, Any]:
    """The guide with the limits it was made with, the measured recall, and the texts of its sample pairs.

    Args:
        documents: rows of the corpus by id; a sample whose documents are not there is left out.
    """
    stats = (neighbors.manifest() or {}).get("stats", {}).get("train", {})
    by_band: dict[str, list[dict[str, Any]]] = {}
    for sample in guide["samples"]:
        d1, d2 = (documents.get(bytes.fromhex(sample[key])) for key in ("d1_id", "d2_id"))
        if d1 and d2:
            numbers = {key: sample[key] for key in ("cosine", "jaccard", "containment")}
            texts = {"d1": cut(d1["text"], _SHOWN_CHARS), "d2": cut(d2["text"], _SHOWN_CHARS)}
            row = {"verdict": _verdict(sample, cfg), "d1_id": sample["d1_id"], "d2_id": sample["d2_id"]}
            by_band.setdefault(sample["band"], []).append({**row, **numbers, **texts})
    return {
        **{key: guide[key] for key in ("documents", "what_if_documents", "bands", "thresholds", "degrees")},
        "limits": cfg.model_dump(mode="json", exclude={"resources"}),
        "recall": stats.get("recall"),
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
