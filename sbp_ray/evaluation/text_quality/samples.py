"""Random samples of rows, which read only as many shards as they need; and those of the quality panel.

A document's id is a hash of its text, and its shard follows from the id: a few shards are a fair sample of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EvalConfig
from sbp_ray.doc_ids import id_numbers, ids_to_numpy
from sbp_ray.text.hashing import hash64, id_ranks

Row = dict[str, Any]
REAL_TRAIN, REAL_HELD_OUT = "real_train", "real_held_out"
MINED = "mined"
KINDS = {"synthetic": "synthetic", MINED: MINED, REAL_TRAIN: "train", REAL_HELD_OUT: "validation"}
"""What kind of text the columns of a report are."""
DOMAIN = "sample"
"""Of the hashes by which samples are drawn."""
_DOCUMENT = ("doc_id", "text", "input_ids")


@dataclass(frozen=True)
class Sample:
    """Documents of one kind, sampled at random."""

    kind: Literal["synthetic", "train", "validation"]
    rows: list[Row]
    """doc_id, text, input_ids, group; of a synthetic document d1_id, and the group once that of d1 is known."""
    source: Artifact
    """Where they lie: synthetic text, or the corpus."""

    @property
    def token_ids(self) -> list[list[int]]:
        return [row["input_ids"] for row in self.rows]

    @property
    def d1_ids(self) -> set[bytes]:
        return {row["d1_id"] for row in self.rows} if self.kind == "synthetic" else set()


def sample_synthetic(cfg: EvalConfig, synthetic: Artifact) -> Sample:
    """At most `quality_sample` documents. A document's id follows from its d1 and number: of artifacts that were
    written for the same d1, the same are sampled where both kept them."""
    columns = [*_DOCUMENT, "d1_id"]
    rows = sample_rows(synthetic, "", key=["doc_id"], columns=columns, limit=cfg.quality_sample, seed=cfg.seed)
    return Sample("synthetic", rows, synthetic)


def sample_real(cfg: EvalConfig, corpus: Artifact) -> dict[str, Sample]:
    """What synthetic text is compared with: as many documents that were read, and the held-out ones that are scored."""

    def sample(split: Literal["train", "validation"], limit: int) -> Sample:
        rows = sample_rows(corpus, split, key=["doc_id"], columns=[*_DOCUMENT, "group"], limit=limit, seed=cfg.seed)
        return Sample(split, rows, corpus)

    return {
        REAL_TRAIN: sample("train", cfg.quality_sample),
        REAL_HELD_OUT: sample("validation", cfg.max_validation_documents),
    }


def sample_pairs(cfg: EvalConfig, pairs: Artifact) -> list[Row]:
    """At most `quality_sample` mined pairs of the train split: d1_id, d2_id, cosine."""
    key = ["d1_id", "d2_id"]
    return sample_rows(pairs, "train", key=key, columns=[*key, "cosine"], limit=cfg.quality_sample, seed=cfg.seed)


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
