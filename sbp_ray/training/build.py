"""A sharded model, ready to train: weights, attention within documents, activation checkpointing, float8, compiling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from sbp_ray.attention import attend_within_documents
from sbp_ray.errors import SbpError
from sbp_ray.model import build_model, load_base
from sbp_ray.training.initial_weights import draw_weights
from sbp_ray.training.loss import SupervisedLanguageModel
from sbp_ray.training.sharding import refusing_together, shard_model
from sbp_ray.training.training_plan import MODEL_FOLDER, TrainingPlan

_EXPENSIVE = {
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_mm.default,  # float8
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
}
"""Operators whose results selective activation checkpointing keeps: they take much time and little memory."""


def build_sharded_model(plan: TrainingPlan, device: torch.device) -> SupervisedLanguageModel:
    """The plan's model at its first step. Called by every rank.

    From scratch no rank ever holds the whole model; a base is read as a whole by each. Where the plan does not say how
    many ranks share one copy of the weights (see `settle_shard_ranks`), all do.

    Raises:
        SbpError: a rank cannot load a model, or multiply in float8; on every rank.
    """
    with refusing_together():
        lm = _load_weights(plan)
        attend_within_documents(lm)
        if plan.config.float8:
            _use_float8(lm.model.layers, device)
        teachers = [_load_teacher(path, plan, device) for path in plan.teachers]
    for layer in lm.model.layers:
        # Checkpointing inside, so that the compiler sees it; both inside the module's hooks, where FSDP works.
        layer.forward = _checkpoint_activations(layer.forward, plan.config.resources.activation_checkpointing)
        if plan.config.resources.compile:
            layer.forward = torch.compile(layer.forward)
    model = SupervisedLanguageModel(
        lm,
        plan.config.z_loss,
        plan.config.dropout or 0.0,
        teachers=teachers,
        teacher_share=plan.teacher_share,
        is_loss_compiled=plan.config.resources.compile and device.type == "cuda",
    ).train()
    shard_ranks = plan.config.resources.shard_ranks or dist.get_world_size()
    shard_model(model, plan.config.settled_dtype, device, shard_ranks)
    if plan.base is None:
        draw_weights(model.to_empty(device=device).lm, plan.config.seed)
    return model


def _load_weights(plan: TrainingPlan) -> Any:
    """Those of the base; without one a model whose tensors have shapes, and no memory before they are sharded."""
    if plan.base is None:
        with torch.device("meta"):
            return build_model(plan.model, plan.vocab_size, plan.special, plan.config.seed)
    path = plan.base if isinstance(plan.base, str) else str(plan.base.local_copy(MODEL_FOLDER))
    return load_base(path, plan.vocab_size, plan.special, plan.config.seed)


def _load_teacher(path: str, plan: TrainingPlan, device: torch.device) -> Any:
    """Whole, and with weights in the type that is computed in; frequencies of positions stay as exact as the trained
    model's were."""
    lm = load_base(path, plan.vocab_size, plan.special, plan.config.seed)
    attend_within_documents(lm)
    for parameter in lm.parameters():
        parameter.data = parameter.data.to(getattr(torch, plan.config.settled_dtype))
    return lm.to(device).eval().requires_grad_(False)


def _checkpoint_activations(forward: Callable[..., Any], kind: str) -> Callable[..., Any]:
    if kind == "none":
        return forward
    options: dict[str, Any] = {
        "use_reentrant": False,
        "preserve_rng_state": False,
    }  # no random state is used in a layer
    if kind == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_expensive)
    return partial(checkpoint, forward, **options)


def _keep_expensive(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE


def _use_float8(layers: torch.nn.Module, device: torch.device) -> None:
    """Replace the layers' linear modules by torchao's, in place.

    Raises:
        SbpError: the GPU cannot multiply float8, or torchao is not there.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise SbpError("float8 needs an NVIDIA GPU of compute capability 8.9 (L40, H100) or newer: set float8=false")
    load_torchao().convert_to_float8_training(layers)


def load_torchao() -> Any:
    """torchao's float8 module.

    Raises:
        SbpError: it is not installed.
    """
    try:
        from torchao import float8
    except ImportError:
        raise SbpError("float8 needs torchao: in the checkout, uv pip install -e '.[float8]'") from None
    return float8
