"""The samples that the quality panel is computed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EvalConfig
from sbp_ray.evaluation.text_quality.sampling import sample_rows

Row = dict[str, Any]
REAL_TRAIN, REAL_HELD_OUT = "real_train", "real_held_out"
MINED = "mined"
KINDS = {"synthetic": "synthetic", MINED: MINED, REAL_TRAIN: "train", REAL_HELD_OUT: "validation"}
"""What kind of text the columns of a report are."""
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
