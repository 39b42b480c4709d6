"""Random samples of rows, which read only as many shards as they need.

A document's id is a hash of its text, and its shard follows from the id: a few shards are a fair sample of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sbp_ray.artifacts import Artifact
from sbp_ray.doc_ids import id_numbers, ids_to_numpy
from sbp_ray.text.hashing import hash64, id_ranks

DOMAIN = "sample"
"""Of the hashes by which samples are drawn."""


def sample_rows(
    artifact: Artifact, folder: str, *, key: Sequence[str], columns: Sequence[str], limit: int, seed: int
) -> list[dict[str, Any]]:
    """Up to `limit` rows of the Parquet files right under `folder`, sampled at random without replacement.

    Holds one shard in memory. Rows come in the order of their rank: a smaller sample begins a larger one of the same
    shards.

    Args:
        key: columns of ids that together name a row: one, or two of a pair.
        columns: columns to return, `key` among them or not.
    """
    ranked: list[tuple[int, dict[str, Any]]] = []
    for name in _enough_files(artifact, folder, limit, seed):
        table = artifact.read_table(name, columns=list(dict.fromkeys([*key, *columns])))
        ranks = id_ranks(DOMAIN, seed, *(id_numbers(ids_to_numpy(table[name])) for name in key)).tolist()
        best = sorted(range(len(ranks)), key=ranks.__getitem__)[:limit]
        rows = table.select(list(columns)).take(pa.array(best, pa.int64())).to_pylist()
        ranked = sorted([*ranked, *zip((ranks[i] for i in best), rows, strict=True)], key=lambda entry: entry[0])
        ranked = ranked[:limit]
    return [row for _, row in ranked]


def _enough_files(artifact: Artifact, folder: str, limit: int, seed: int) -> list[str]:
    """Files in a random order, until they hold four times the sample, or all of them."""
    chosen: list[str] = []
    num_rows = 0
    for name in sorted(artifact.files(folder, ".parquet"), key=lambda name: hash64(DOMAIN, seed, name)):
        if num_rows >= 4 * limit:
            break
        chosen.append(name)
        num_rows += artifact.num_rows(name)
    return chosen
