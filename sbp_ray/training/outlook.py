"""What a run will take, told before its first step."""

from __future__ import annotations

from dataclasses import dataclass

from sbp_ray.config import ModelConfig, TrainingConfig
from sbp_ray.logs import duration
from sbp_ray.model import flops_per_token, num_parameters
from sbp_ray.training.plan import TrainingPlan

ASSUMED_MFU = 0.4  # on CPUs and GPUs alike, until the first step tells
_STATE_BYTES = 16  # of a parameter: float32 weight and gradient, and AdamW's two moments


@dataclass(frozen=True)
class Outlook:
    """Forecast of one run."""

    parameters: int
    tokens: int
    """Positions trained on."""
    flops: float
    """Forward and backward, every document as long as it may be: an upper limit."""
    state_gib: float
    """Of one rank: weights, gradients and optimizer."""
    activations_gib: float
    """Of one rank: what a micro-batch keeps for the backward pass, roughly."""
    seconds: float | None
    """At `ASSUMED_MFU`; None where the device's peak is not known."""

    def line(self, plan: TrainingPlan, num_ranks: int) -> str:
        rows, seq_len = plan.config.batch_rows, plan.config.seq_len
        time = "unknown" if self.seconds is None else f"{duration(self.seconds)} at {ASSUMED_MFU:.0%} of the peak"
        return (
            f"{plan.stage} plan | {self.parameters:,} parameters | {plan.num_steps:,} steps x {rows} rows x "
            f"{seq_len} = {self.tokens:,} tokens | {self.flops:.2e} FLOPs | {num_ranks} ranks, each "
            f"{self.state_gib:.2f} GiB of state and about {self.activations_gib:.2f} GiB of activations | "
            f"expected {time}"
        )


def outlook(plan: TrainingPlan, vocab_size: int, num_ranks: int, peak: float | None) -> Outlook:
    """What the whole run takes on so many ranks.

    Args:
        vocab_size: rows of the embedding.
        num_ranks: that share the state and the rows.
        peak: FLOP/s of one rank's device, where it is known.
    """
    tokens = plan.num_steps * plan.config.batch_rows * plan.config.seq_len
    _, longest = plan.config.longest_document()
    flops = float(tokens) * flops_per_token(plan.model, vocab_size, longest)
    parameters = num_parameters(plan.model, vocab_size)
    return Outlook(
        parameters=parameters,
        tokens=tokens,
        flops=flops,
        state_gib=_STATE_BYTES * parameters / num_ranks / 2**30,
        activations_gib=_activation_bytes(plan.model, plan.config) / 2**30,
        seconds=None if peak is None else flops / (peak * num_ranks * ASSUMED_MFU),
    )


def _activation_bytes(model: ModelConfig, cfg: TrainingConfig) -> float:
    """By counting the tensors that a layer of transformers' Qwen3 keeps for each token."""
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    matrices = queries + 2 * keys + model.hidden_size + 2 * model.ffn_size + model.hidden_size  # their results
    others = 6 * model.hidden_size + 4 * (queries + keys) + queries + 2 * model.ffn_size  # norms, rotation, gate
    width = {
        "none": matrices + others,
        "selective": matrices + queries + model.hidden_size,
        "full": model.hidden_size,
    }[cfg.resources.activation_checkpointing]
    size = 4 if cfg.dtype == "float32" else 2
    return float(cfg.resources.micro_batch_rows * cfg.seq_len * model.num_layers * width * size)
