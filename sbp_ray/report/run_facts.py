"""What the stages recorded: times, memory, counts and drops from the manifests, and the loss curves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.nodes import Node
from sbp_ray.schema import SPLITS
from sbp_ray.shards import add_stats

_MAX_POINTS = 400  # of a curve in the report


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
