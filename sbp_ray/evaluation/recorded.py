"""What the stages recorded, for the report: of the corpus, of mining its pairs, of every artifact, and loss curves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PairConfig
from sbp_ray.ingestion.data_card import length_shares, script_shares
from sbp_ray.nodes import Node
from sbp_ray.pairing.guide import GUIDE
from sbp_ray.report.wording import cut
from sbp_ray.schema import SPLITS
from sbp_ray.shards import add_stats

_SHOWN_SAMPLES = 2
_SHOWN_CHARS = 300  # of each text of a sample pair
_MAX_POINTS = 400  # of a curve in the report


def corpus_card(corpus: Node) -> dict[str, Any] | None:
    """Documents of each split, scripts and lengths of the train split, and what was dropped, with examples.

    Returns:
        None where `ingest` did not count so much, or is not done.
    """
    stats = corpus.stats
    if "lengths" not in stats.get("train", {}):
        return None
    counted = ("documents", "groups", "characters", "tokens")
    train = stats["train"]
    return {
        "corpus": corpus.key,
        "files": stats["files"],
        "rows": stats["rows"],
        "splits": [
            {"split": split, **{key: stats[split][key] for key in counted}} for split in SPLITS if split in stats
        ],
        "scripts": script_shares(train),
        "lengths": length_shares(train),
        "drops": [
            {"reason": reason, "documents": number, "examples": stats["examples"].get(reason, [])}
            for reason, number in sorted(stats["drops"].items(), key=lambda item: -item[1])
        ],
    }


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
    if pairs.config.pair.source != "neighbors" or not pairs.artifact.exists(GUIDE):
        return None
    guide, mined, cfg = pairs.artifact.read_json(GUIDE)["train"], pairs.stats.get("train", {}), pairs.config.pair
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


def artifact_row(node: Node) -> dict[str, Any]:
    """An artifact's stage, wall time, peak memory, counts, and drops by reason; of an unfinished one only its stage."""
    manifest = node.artifact.manifest()
    recorded = manifest or {}
    stats = recorded.get("stats", {})
    return {
        "artifact": node.key,
        "stage": node.stage.name,
        "is_done": manifest is not None,
        **{name: recorded.get(name) for name in ("wall_s", "peak_mem_gib", "made_by")},
        "counts": _counts(stats),
        "drops": _drops(stats),
    }


def _counts(stats: Mapping[str, Any]) -> dict[str, int]:
    """Whole numbers of the stage; those of its train split where it has splits."""
    flat = {**stats, **stats.get("train", {})}
    return {
        key: value
        for key, value in flat.items()
        if type(value) is int and key not in ("dim", "vocab_size", "parameters", "flops")
    }


def _drops(stats: Mapping[str, Any]) -> dict[str, int]:
    """Drops by reason, all splits together: as the stage added them up, or else the splits'."""
    parts = [stats] if stats.get("drops") else [stats.get(split, {}) for split in SPLITS]
    return {reason: number for reason, number in add_stats(part.get("drops", {}) for part in parts).items() if number}


def loss_curve(trained: Artifact) -> list[dict[str, float]]:
    """`{step, tokens, loss_nats, validation_nats}` of a training, thinned evenly; every validation point is kept."""
    lines = trained.read_bytes("metrics.jsonl").decode().splitlines() if trained.exists("metrics.jsonl") else []
    rows = {row["step"]: row for row in map(json.loads, lines)}  # after a resume a step may stand there twice
    points = [rows[step] for step in sorted(rows)]
    every = max(1, -(-len(points) // _MAX_POINTS))
    wanted = ("step", "tokens", "loss_nats", "validation_nats")
    return [
        {key: row[key] for key in wanted if row.get(key) is not None}
        for index, row in enumerate(points)
        if index % every == 0 or index == len(points) - 1 or row.get("validation_nats") is not None
    ]
