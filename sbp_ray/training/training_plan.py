"""What a training process must know: the same for every rank, cheap to send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sbp_ray.config import ModelConfig, TrainingConfig
from sbp_ray.mixing import Mixture, Source
from sbp_ray.training.token_noise import TokenNoise

if TYPE_CHECKING:  # pyarrow
    from sbp_ray.artifacts import Artifact

MODEL_FOLDER = "model"


@dataclass(frozen=True)
class TrainingPlan:
    """One training run; a base LM, a synthesizer and a joint LM differ in nothing but this."""

    stage: str
    """Named in log lines and metrics."""
    config: TrainingConfig
    mixture: Mixture
    num_steps: int
    out: Artifact
    """Holds `rows/`, and gets `checkpoints/`, `metrics.jsonl` and `model/`."""
    validation: Source
    """Held-out rows, which are reported."""
    development: Source
    """Held-out rows that the best checkpoint is chosen by; without any, or with `checkpoint=last`, the last is it."""
    tokenizer: Artifact
    """Its `tokenizer/` goes into the exported model."""
    vocab_size: int
    """Rows that the embedding must have."""
    special: tuple[int, int, int]
    """Token ids of bos, eos and related."""
    model: ModelConfig
    """The shape: of a fresh model, or of `base`."""
    base: Artifact | str | None = None
    """Weights to go on from: a Hugging Face folder or name, or an artifact whose `model/` is one."""
    noise: TokenNoise | None = None
    """In what the model is shown of the rows that it is trained on; held-out rows have none."""
    teachers: tuple[str, ...] = ()
    """Hugging Face folders or names of models whose mean probabilities are learnt too."""
    teacher_share: float = 0.0
    """Their weight beside the text's own next token."""


def rows_folder(source: str) -> str:
    """Where a source's packed rows lie in the artifact."""
    return f"rows/{source}"
