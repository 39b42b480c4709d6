"""Packed rows in a training artifact: what there is, and what a run takes of it."""

from __future__ import annotations

from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.mixing import Mixture, Source
from sbp_ray.shards import Stats, add_stats
from sbp_ray.training.plan import rows_folder


def packed_source(out: Artifact, name: str) -> Source:
    """The source's shards, all committed by now."""
    return Source(name, tuple(out.num_rows(file) for file in out.files(rows_folder(name), ".parquet")))


def packing_stats(out: Artifact, name: str) -> Stats:
    """The packing counts of all shards together."""
    return add_stats(out.read_stats(file) for file in out.files(rows_folder(name), ".parquet"))


def realised(mixture: Mixture, packed: dict[str, Stats], seq_len: int) -> dict[str, dict[str, Any]]:
    """For each source: rows and positions trained on, passes over it, and the text in it without padding (`tokens`, of
    a part of a pass to the nearest row)."""
    counts = {}
    for name, rows in mixture.rows().items():
        available = packed[name].get("rows", 0)
        tokens = packed[name].get("tokens", 0)
        passes = rows / available if available else 0.0
        counts[name] = {
            "rows": rows,
            "positions": rows * seq_len,
            "share": round(rows / mixture.total_rows, 6),
            "passes": round(passes, 4),
            "tokens": round(tokens * passes),
            "unique_tokens": min(round(tokens * passes), tokens),
        }
    return counts
