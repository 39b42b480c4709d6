"""The samples that the quality table is computed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EvalConfig
from sbp_ray.evaluation.draws import draw_rows

Row = dict[str, Any]
_DOCUMENT = ("doc_id", "text", "input_ids")


@dataclass(frozen=True)
class Samples:
    """Rows drawn from the artifacts."""

    synthetic: list[Row]
    """doc_id, text, input_ids, d1_id."""
    train: list[Row]
    """doc_id, text, input_ids."""
    validation: list[Row]
    """Likewise, of the held-out documents: those whose perplexity is measured."""
    pairs: list[Row]
    """Mined pairs of the train split: d1_id, d2_id, cosine."""

    def wanted_ids(self) -> set[str]:
        """Documents of the train split that the pairs are made of."""
        ids = {row["d1_id"] for row in self.synthetic}
        return ids | {row[key] for row in self.pairs for key in ("d1_id", "d2_id")}

    def token_ids(self) -> dict[str, list[list[int]]]:
        """The samples of texts that stand beside one another in the quality table."""
        return {
            "synthetic": [row["input_ids"] for row in self.synthetic],
            "real_train": [row["input_ids"] for row in self.train],
            "real_held_out": [row["input_ids"] for row in self.validation],
        }


def draw_samples(cfg: EvalConfig, artifacts: Mapping[str, Artifact]) -> Samples:
    """Draw every sample; each holds at most `quality_sample` rows, the held-out one `max_validation_documents`."""

    def draw(name: str, folder: str, key: Sequence[str], columns: Sequence[str], limit: int) -> list[Row]:
        return draw_rows(artifacts[name], folder, key=key, columns=columns, limit=limit, seed=cfg.seed)

    size = cfg.quality_sample
    return Samples(
        synthetic=draw("synthetic", "", ["doc_id"], [*_DOCUMENT, "d1_id"], size),
        train=draw("corpus", "train", ["doc_id"], _DOCUMENT, size),
        validation=draw("corpus", "validation", ["doc_id"], _DOCUMENT, cfg.max_validation_documents),
        pairs=draw("pairs", "train", ["d1_id", "d2_id"], ["d1_id", "d2_id", "cosine"], size),
    )
