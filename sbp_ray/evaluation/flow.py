"""What the run itself recorded: times, memory, counts and drops from the manifests, and the loss curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.evaluation.comparison import ARMS
from sbp_ray.evaluation.text_quality.corpus_scan import Scan
from sbp_ray.schema import SPLITS
from sbp_ray.shards import add_stats

_MAX_POINTS = 400  # of a curve in the report


def stage_rows(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """One row for each finished artifact: stage, wall time, peak memory, counts, and drops by reason."""
    rows = []
    for artifact in artifacts.values():
        manifest = artifact.manifest() or {}
        stats = manifest.get("stats", {})
        rows.append(
            {
                "artifact": artifact.url.rstrip("/").rpartition("/")[2],
                "stage": manifest.get("stage", artifact.name),
                "wall_s": manifest.get("wall_s"),
                "peak_mem_gib": manifest.get("peak_mem_gib"),
                "counts": _counts(stats),
                "drops": _drops(stats),
                "stats": stats,
                "made_by": manifest.get("made_by"),
            }
        )
    return sorted(rows, key=lambda row: row["artifact"])


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


def scale_facts(
    artifacts: Mapping[str, Artifact],
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    num_parameters: int,
    scan: Scan,
) -> dict[str, Any]:
    """How large the run was.

    Returns:
        parameters; documents and tokens of the train split; synthetic documents; the tokens that each training saw;
        and for each arm its mixture: rows, share, passes and tokens of real and synthetic text.
    """
    synthetic = artifacts["synthetic"]
    return {
        "parameters": num_parameters,
        "documents": scan.num_documents,
        "tokens": scan.num_tokens,
        "synthetic_documents": sum(synthetic.num_rows(name) for name in synthetic.files("", ".parquet")),
        "trained_tokens": {name: int(curve[-1]["tokens"]) if curve else None for name, curve in curves.items()},
        "mixture": {arm: _stats(artifacts[name]).get("mixture") for arm, name in ARMS.items()},
    }


def pair_facts(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """What mining and tuning recorded: pairs, how many share an article, and the synthesizer's conditional gain."""
    mined = _stats(artifacts["pairs"]).get("train", {})
    gain = _stats(artifacts["synthesizer"]).get("validation") or {"pairs": 0}
    return {
        "pairs": mined.get("pairs"),
        "same_group_share": mined.get("same_group_share"),
        "conditional_gain": gain if gain["pairs"] else None,
    }


def _stats(artifact: Artifact) -> dict[str, Any]:
    return (artifact.manifest() or {}).get("stats", {})
