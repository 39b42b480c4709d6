"""Random samples of rows, which read only as many shards as they need.

A document's id is a hash of its text, and its shard follows from the id: a few shards are a fair sample of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sbp_ray.artifacts import Artifact


def rank(key: str, seed: int) -> int:
    """A 64-bit number that orders keys at random; the same for the same seed.

    No other hash of ids here gives the same order: a sample of real text is not the documents that synthesis chose.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8, person=b"sampling").digest(), "big")


def sample_rows(
    artifact: Artifact, folder: str, *, key: Sequence[str], columns: Sequence[str], limit: int, seed: int
) -> list[dict[str, Any]]:
    """Up to `limit` rows of the Parquet files right under `folder`, sampled at random without replacement.

    Holds one shard in memory. Rows come in the order of their rank: a smaller sample begins a larger one of the same
    shards.

    Args:
        key: columns that together name a row.
        columns: columns to return, `key` among them or not.
    """
    ranked: list[tuple[int, dict[str, Any]]] = []
    for name in _enough_files(artifact, folder, limit, seed):
        table = artifact.read_table(name, columns=list(dict.fromkeys([*key, *columns])))
        keys = zip(*(map(_text, table[column].to_pylist()) for column in key), strict=True)
        ranks = [rank("/".join(parts), seed) for parts in keys]
        best = sorted(range(len(ranks)), key=ranks.__getitem__)[:limit]
        rows = table.select(list(columns)).take(pa.array(best, pa.int64())).to_pylist()
        ranked = sorted([*ranked, *zip((ranks[i] for i in best), rows, strict=True)], key=lambda entry: entry[0])
        ranked = ranked[:limit]
    return [row for _, row in ranked]


def _text(value: str | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else value


def _enough_files(artifact: Artifact, folder: str, limit: int, seed: int) -> list[str]:
    """Files in a random order, until they hold four times the sample, or all of them."""
    chosen: list[str] = []
    num_rows = 0
    for name in sorted(artifact.files(folder, ".parquet"), key=lambda name: rank(name, seed)):
        if num_rows >= 4 * limit:
            break
        chosen.append(name)
        num_rows += artifact.num_rows(name)
    return chosen
