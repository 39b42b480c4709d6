"""What a corpus is, for the report: as `ingest` counted it."""

from __future__ import annotations

from typing import Any

from sbp_ray.ingestion.data_card import length_shares, script_shares
from sbp_ray.nodes import Node
from sbp_ray.schema import SPLITS


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
