"""Cases of `gpu.py` that measure a step: tokens/s, MFU and memory, beside loops as others write them.

Windows of 4,096, documents of 828 tokens on average, 8 micro-batches a step, bfloat16. A case is one size and one
loop; its number is the median of its steps after the first two. All count the same FLOPs (`training_flops`), over the
data sheet's bfloat16 peak.

    ours       compiled, selective activation checkpointing where it is needed
    plain      FSDP2 over one rank, compiled blocks, compiled cross-entropy over all logits of a micro-batch, documents
               told apart by transformers' own packing (position_ids that start again)
    liger      the same with Liger's fused cross-entropy
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_setting import SIZES, Setting, Skip, group, make_batches, make_plan, synchronize, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from sbp_ray.model import build_model, num_parameters, training_flops
from sbp_ray.training.batches import Batch
from sbp_ray.training.estimate import find_peak_flops
from sbp_ray.training.training_plan import TrainingPlan

_ROWS = {"0.1 B": 16, "0.3 B": 8, "1 B": 4, "3 B": 2}
"""Of a micro-batch, on 80 GB."""
_MICRO_BATCHES = 8
_KINDS: dict[str, dict[str, Any]] = {
    "ours": {"compile": True},
    "ours, selective": {"compile": True, "activation_checkpointing": "selective"},
    "ours, float8": {"compile": True, "float8": True},
}


def _plan(setting: Setting, size: str, **how: Any) -> TrainingPlan:
    tiny: dict[str, Any] = {"shape": None, "rows": 1, "micro_batches": 2}
    whole = {"shape": SIZES[size], "rows": _ROWS[size], "micro_batches": _MICRO_BATCHES, "seq_len": 4096}
    how = setting.pick(how | {"compile": False, "float8": False}, how)
    return make_plan(setting, steps=setting.pick(3, 8), **(setting.pick(tiny, whole) | how))


def ours(setting: Setting, size: str, kind: str) -> dict[str, Any]:
    """Our loop's step."""
    if kind == "ours, float8":
        _refuse_missing("torchao")
    plan = _plan(setting, size, **_KINDS[kind])
    with group(plan) as device:
        batches = make_batches(plan, plan.num_steps * plan.config.batch_rows // plan.config.resources.micro_batch_rows)
        return _measured(setting, plan, batches, train(plan, device, batches).seconds)


def peer(setting: Setting, size: str, *, is_liger: bool) -> dict[str, Any]:
    """The loop as a torchtitan of few lines."""
    if is_liger:
        _refuse_missing("liger_kernel")
        if setting.is_tiny:
            raise Skip("Liger's kernels want a GPU")
    plan = _plan(setting, size)
    with group(plan) as device:
        batches = make_batches(plan, plan.num_steps * plan.config.batch_rows // plan.config.resources.micro_batch_rows)
        step = _plain_step(setting, plan, device, is_liger=is_liger)
        seconds = []
        size_of_step = len(batches) // plan.num_steps
        for start in range(0, len(batches), size_of_step):
            began = time.perf_counter()
            step(batches[start : start + size_of_step])
            synchronize(device)
            seconds.append(time.perf_counter() - began)
        return _measured(setting, plan, batches, seconds)


def _plain_step(
    setting: Setting, plan: TrainingPlan, device: torch.device, *, is_liger: bool
) -> Callable[[list[Batch]], None]:
    lm: Any = build_model(plan.model, plan.vocab_size, plan.special, 0).to(device).train()
    lm.set_attn_implementation("sdpa")
    mesh = init_device_mesh(device.type, (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    compiled = partial(torch.compile, disable=setting.is_tiny)
    for layer in lm.model.layers:
        layer.forward = compiled(layer.forward)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(lm, mesh=mesh, mp_policy=policy)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3, fused=True)
    if is_liger:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        lm.forward = _headless(lm, lambda hidden, target: fused(lm.lm_head.weight, hidden, target))
    else:
        entropy = compiled(partial(torch.nn.functional.cross_entropy, reduction="sum"))
        lm.forward = _headless(lm, lambda hidden, target: entropy(lm.lm_head(hidden).float(), target))

    def step(batches: list[Batch]) -> None:
        total = sum(batch.num_supervised for batch in batches)
        for batch in batches:
            (lm(batch.to(device)) / total).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _headless(lm: Any, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[Batch], torch.Tensor]:
    def forward(batch: Batch) -> torch.Tensor:
        states = lm.model(
            input_ids=batch.input_ids_BT, position_ids=batch.documents.positions_BT, use_cache=False
        ).last_hidden_state
        return loss(states[batch.targets.row_S, batch.targets.position_S], batch.targets.token_S)

    return forward


def _refuse_missing(package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise Skip(f"no {package} here")


def _measured(setting: Setting, plan: TrainingPlan, batches: list[Batch], seconds: list[float]) -> dict[str, Any]:
    """On a CPU nothing: the sizes are not the case's."""
    assert len(seconds) == plan.num_steps
    if setting.is_tiny:
        return {}
    step_s = statistics.median(seconds[2:])
    steps = plan.num_steps
    tokens, attended = (sum(getattr(b, name) for b in batches) / steps for name in ("num_tokens", "attended"))
    flops = training_flops(plan.model, plan.vocab_size, round(tokens), round(attended))
    peak = find_peak_flops(setting.device, "bfloat16")
    return {
        "parameters": num_parameters(plan.model, plan.vocab_size),
        "tokens_per_s": round(tokens / step_s),
        "mfu": peak and round(flops / step_s / peak, 4),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "first_step_s": round(seconds[0], 1),
    }


def profile(setting: Setting) -> dict[str, Any]:
    """Where the time of a step goes at 1 B: the GPU's kernels by what they do, and its idle time."""
    plan = _plan(setting, "1 B", **_KINDS["ours"])
    activities = [torch.profiler.ProfilerActivity.CPU]
    if setting.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with group(plan) as device:
        per_step = plan.config.batch_rows // plan.config.resources.micro_batch_rows
        warm = train(plan, device, make_batches(plan, 3 * per_step))
        with torch.profiler.profile(activities=activities) as profiled:
            last = train(
                plan, device, make_batches(plan, per_step), first_step=4, model=warm.model, optimizer=warm.optimizer
            )
    if setting.is_tiny:
        return {}
    spent: dict[str, float] = dict.fromkeys((*_KERNELS, "other"), 0.0)
    for event in profiled.key_averages():
        named = (name for name, parts in _KERNELS.items() if any(part in event.key.lower() for part in parts))
        spent[next(named, "other")] += event.self_device_time_total / 1e3
    return {f"{name}_ms": round(ms, 1) for name, ms in spent.items()} | {"step_ms": round(1e3 * last.seconds[0], 1)}


_KERNELS = {
    "attention": ("flash", "fmha", "varlen"),
    "products": ("gemm", "cutlass", "nvjet", "cublas", "sm90_", "sm80_"),
    "fused": ("triton",),
    "optimizer": ("multi_tensor", "adam"),
    "copies": ("memcpy", "memset", "copy"),
}
"""Parts of kernels' names."""


def _cases() -> dict[str, Callable[[Setting], dict[str, Any]]]:
    """Those that matter most first: a piece may run out of time."""
    found: dict[str, Callable[[Setting], dict[str, Any]]] = {}
    for size in ("1 B", "0.3 B", "3 B", "0.1 B"):
        kind = "ours, selective" if size == "3 B" else "ours"
        found[f"{size}, {kind}"] = partial(ours, size=size, kind=kind)
        found[f"{size}, plain"] = partial(peer, size=size, is_liger=False)
        found[f"{size}, liger"] = partial(peer, size=size, is_liger=True)
        if size in ("1 B", "3 B"):
            found[f"{size}, ours, float8"] = partial(ours, size=size, kind="ours, float8")
    return found | {"where a step's time goes, 1 B": profile}


CASES = _cases()
