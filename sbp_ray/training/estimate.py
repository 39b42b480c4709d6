"""What a run will take, estimated before its first step: time from the device's peak, memory from the model's shape."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sbp_ray.config import Dtype, ModelConfig, TrainingConfig
from sbp_ray.errors import SbpError
from sbp_ray.logs import duration
from sbp_ray.model import flops_per_token, num_parameters
from sbp_ray.nll import LOGITS_AT_ONCE
from sbp_ray.training.training_plan import TrainingPlan

PEAK_TFLOPS = {
    ("H100", "PCIe"): 756.0,
    ("H100", "NVL"): 835.0,
    ("H200", "NVL"): 835.0,
    ("B200",): 2250.0,
    ("GH200",): 989.0,
    ("H200",): 989.0,
    ("H100",): 989.0,
    ("A100",): 312.0,
    ("L40S",): 362.0,
    ("L40",): 181.0,
    ("A10G",): 70.0,
    ("L4",): 121.0,
}
"""Dense bfloat16 with float32 sums, from NVIDIA's data sheets, by words of the device's name; of several that fit, the
first."""
ASSUMED_MFU = 0.4
"""Share of the peak that is assumed of CPUs and GPUs alike."""
_SHARDED_BYTES = 12
"""Of a parameter: float32 weight, and AdamW's two moments."""
_AVERAGE_BYTES = 4
"""Of a parameter, in float32, where `ema_decay` is set."""
_GRADIENT_BYTES = 4
"""Of a parameter, in float32."""
_CHUNKS = 3
"""Copies of a chunk's logits in float32 that the loss holds at once."""
_MATRIX = 1024
"""Rows and columns of the products that a CPU is measured with."""
_ROUNDS = 5


@dataclass(frozen=True)
class Estimate:
    """Of one run."""

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
        time_left = "unknown" if self.seconds is None else f"{duration(self.seconds)} at {ASSUMED_MFU:.0%} of the peak"
        return (
            f"{plan.stage} plan | {self.parameters:,} parameters | {plan.num_steps:,} steps x {rows} rows x "
            f"{seq_len} = {self.tokens:,} tokens | {self.flops:.2e} FLOPs | {num_ranks} ranks, each "
            f"{self.state_gib:.2f} GiB of state and about {self.activations_gib:.2f} GiB of activations | "
            f"expected {time_left}"
        )


def estimate_run(plan: TrainingPlan, vocab_size: int, num_ranks: int, peak: float | None) -> Estimate:
    """Estimate the whole run on so many ranks.

    Args:
        plan: as `settle_shard_ranks` leaves it; where it does not say how many ranks share one copy of the state, all
            do.
        vocab_size: rows of the embedding.
        num_ranks: that share the rows.
        peak: FLOP/s of one rank's device, where it is known.
    """
    tokens = plan.num_steps * plan.config.batch_rows * plan.config.seq_len
    _, longest = plan.config.longest_document()
    flops = float(tokens) * flops_per_token(plan.model, vocab_size, longest)
    parameters = num_parameters(plan.model, vocab_size)
    return Estimate(
        parameters=parameters,
        tokens=tokens,
        flops=flops,
        state_gib=_count_state_bytes(parameters, num_ranks, plan.config) / 2**30,
        activations_gib=_count_activation_bytes(plan.model, vocab_size, plan.config) / 2**30,
        seconds=None if peak is None else flops / (peak * num_ranks * ASSUMED_MFU),
    )


def _count_state_bytes(parameters: int, num_ranks: int, cfg: TrainingConfig) -> float:
    """Of one rank. Gradients that are reduced once a step lie whole on each until the last micro-batch."""
    shard_ranks = cfg.resources.shard_ranks or num_ranks
    is_one = cfg.batch_rows <= num_ranks * cfg.resources.micro_batch_rows
    is_sharded = is_one or cfg.resources.reduce_every_micro_batch
    sharded = _SHARDED_BYTES + (_AVERAGE_BYTES if cfg.ema_decay else 0)
    return parameters * (sharded / shard_ranks + _GRADIENT_BYTES / (shard_ranks if is_sharded else 1))


def _count_activation_bytes(model: ModelConfig, vocab_size: int, cfg: TrainingConfig) -> float:
    """By counting the tensors that a layer of transformers' Qwen3 keeps for each token, and the gradient of the output
    projection, which the loss keeps in float32."""
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    matrices = queries + 2 * keys + model.hidden_size + 2 * model.ffn_size + model.hidden_size  # their results
    others = 6 * model.hidden_size + 4 * (queries + keys) + queries + 2 * model.ffn_size  # norms, rotation, gate
    width = {
        "none": matrices + others,
        "selective": matrices + queries + model.hidden_size,
        "full": model.hidden_size,
    }[cfg.resources.activation_checkpointing]
    size = 4 if cfg.dtype == "float32" else 2
    kept = cfg.resources.micro_batch_rows * cfg.seq_len * model.num_layers * width * size
    return float(kept + _GRADIENT_BYTES * vocab_size * model.hidden_size)


def refuse_too_little_memory(plan: TrainingPlan, num_ranks: int, device: torch.device) -> None:
    """
    Raises:
        SbpError: the training cannot fit into the memory of the rank's GPU; it names what would.
    """
    if device.type == "cuda":
        refuse_more_than(torch.cuda.get_device_properties(device).total_memory, plan, num_ranks)


def refuse_more_than(room: int, plan: TrainingPlan, num_ranks: int) -> None:
    """
    Args:
        room: bytes that one rank may take.
        plan: see `estimate_run`.

    Raises:
        SbpError: it needs more.
    """
    needed = _count_least_bytes(plan, num_ranks, plan.config)
    if needed <= room:
        return
    fact = (
        f"{plan.stage} needs at least {needed / 2**30:.1f} GiB on each of {num_ranks} ranks, whose GPUs have "
        f"{room / 2**30:.1f} GiB"
    )
    for change in _savings(plan.config, num_ranks):
        spared = plan.config.model_copy(update={"resources": plan.config.resources.model_copy(update=change)})
        least = _count_least_bytes(plan, num_ranks, spared)
        if least <= room:
            is_now = plan.config.resources.model_dump()
            new = [f"resources.{name}={value}" for name, value in change.items() if value != is_now[name]]
            named = " and ".join(new).replace("True", "true")
            raise SbpError(f"{fact}: set {named}, for which {least / 2**30:.1f} GiB are enough")
    raise SbpError(
        f"{fact}: raise resources.num_workers and resources.shard_ranks, the ranks among which weights and optimizer "
        "are split, or take a smaller model"
    )


def _count_least_bytes(plan: TrainingPlan, num_ranks: int, cfg: TrainingConfig) -> float:
    """What cannot be done without. Compiled layers compute again what costs little, whatever they are told."""
    parameters = num_parameters(plan.model, plan.vocab_size)
    resources = cfg.resources
    if resources.compile and resources.activation_checkpointing == "none":
        cfg = cfg.model_copy(
            update={"resources": resources.model_copy(update={"activation_checkpointing": "selective"})}
        )
    logits = _CHUNKS * 4 * LOGITS_AT_ONCE["cuda"]
    return (
        _count_state_bytes(parameters, num_ranks, cfg)
        + _count_activation_bytes(plan.model, plan.vocab_size, cfg)
        + logits
    )


def _savings(cfg: TrainingConfig, num_ranks: int) -> Iterator[dict[str, Any]]:
    """Changes that save memory and change no result, the cheapest in time first; sharing a copy of the weights among
    more ranks, with messages between nodes, comes last."""
    rows = cfg.resources.micro_batch_rows
    fewer = [rows // part for part in (1, 2, 4, 8, 16, 32, 64) if rows % part == 0]
    now = cfg.resources.shard_ranks or num_ranks
    for shard_ranks in (number for number in range(now, num_ranks + 1) if num_ranks % number == 0):
        more = {"shard_ranks": shard_ranks} if shard_ranks > now else {}
        for kind in ("none", "selective", "full"):
            for micro in fewer:
                change: dict[str, Any] = {"activation_checkpointing": kind, "micro_batch_rows": micro, **more}
                yield change
                yield change | {"reduce_every_micro_batch": True}


def find_peak_flops(device: torch.device, dtype: Dtype) -> float | None:
    """FLOP/s of one rank's device that MFU refers to; None for a GPU that is not in the table, and for float32 on any.

    A GPU's from its data sheet, in bfloat16; MFU in float8 refers to that too. A CPU's is measured: the best of a few
    large matrix products in `dtype` on this process' threads.
    """
    if device.type == "cuda":
        words = set(re.split(r"[ -]", torch.cuda.get_device_name(device)))
        found = (tflops * 1e12 for named, tflops in PEAK_TFLOPS.items() if words.issuperset(named))
        return next(found, None) if dtype == "bfloat16" else None
    left, right = torch.ones(2, _MATRIX, _MATRIX, dtype=getattr(torch, dtype))
    best_s = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        left @ right
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * _MATRIX**3 / best_s
