"""`dtype: auto`: the ranks measure a step of their own training in both types, once in the life of an artifact."""

from __future__ import annotations

import gc
import logging
import math
import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from sbp_ray.config import Dtype
from sbp_ray.processor import SETTLED, choose_gpu_dtype, is_worth, name_dtype
from sbp_ray.training.build import build_sharded_model
from sbp_ray.training.optim import build_optimizer
from sbp_ray.training.rows import RowReader, assign_rows
from sbp_ray.training.sharding import failing_together
from sbp_ray.training.step import update
from sbp_ray.training.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

_TURNS, _STEPS = 2, 2
"""Turns of both types, and steps of a turn. The fastest counts: the others may have shared a core or its caches."""
_LEAST_S = 1e-5
"""Of a step. A clock that goes in ticks, as in some sandboxes, measures short ones as nothing, in both types."""


def settle_dtype(plan: TrainingPlan, device: torch.device) -> TrainingPlan:
    """The plan with the type that all ranks compute in, of which the first decides. Called by every rank.

    A training that goes on, on whatever processor, goes on in the type that it was begun in.
    """
    if plan.config.dtype != "auto":
        return plan
    is_first = dist.get_rank() == 0
    settled: list[dict[str, Any] | None] = [
        plan.out.read_json(SETTLED) if is_first and plan.out.exists(SETTLED) else None
    ]
    dist.broadcast_object_list(settled)
    if settled[0] is None:
        settled = [_choose_on_gpu() if device.type == "cuda" else _choose_by_steps(plan, device)]
        dist.broadcast_object_list(settled)
        with failing_together(plan.out.path(SETTLED)):
            if is_first:
                plan.out.write_json(SETTLED, settled[0])
    assert settled[0] is not None
    if is_first:
        logger.info(f"{plan.stage} | computes in {_describe(settled[0])}")
    return with_dtype(plan, settled[0]["dtype"])


def read_settled(plan: TrainingPlan) -> dict[str, Any]:
    """What a finished training was computed in: `dtype`, and under `auto` the `step_s` of each type, where measured."""
    if plan.config.dtype != "auto":
        return {"dtype": plan.config.dtype}
    found: dict[str, Any] = plan.out.read_json(SETTLED)
    return found


def with_dtype(plan: TrainingPlan, dtype: Dtype) -> TrainingPlan:
    """The plan, to be computed in this type."""
    return replace(plan, config=plan.config.model_copy(update={"dtype": dtype}))


def _choose_on_gpu() -> dict[str, Any]:
    return {"dtype": name_dtype(choose_gpu_dtype()), "step_s": None}


def _choose_by_steps(plan: TrainingPlan, device: torch.device) -> dict[str, Any]:
    step_s: dict[Dtype, float] = {"float32": math.inf, "bfloat16": math.inf}
    for dtype in [*step_s] * _TURNS:
        measured_s = round(_time_steps(with_dtype(plan, dtype), device), 5)
        step_s[dtype] = min(step_s[dtype], max(_LEAST_S, measured_s))
        gc.collect()  # FSDP's hooks hold the model, and the model them
    is_faster = is_worth(1 / step_s["bfloat16"], 1 / step_s["float32"])
    return {"dtype": "bfloat16" if is_faster else "float32", "step_s": step_s}


def _time_steps(plan: TrainingPlan, device: torch.device) -> float:
    """CPU seconds of the fastest of some whole steps on the rows of the first, by a model that nothing is kept of.

    The time that this process had, so that what else runs on the machine, or a slower rank, does not choose the type.
    Not compiled, whatever the settings: each type would take half a minute and more to compile.
    """
    resources = plan.config.resources.model_copy(update={"compile": False})
    plan = replace(plan, config=plan.config.model_copy(update={"resources": resources}))
    addresses = assign_rows(plan.mixture, 1, plan.config.batch_rows, dist.get_rank(), dist.get_world_size())
    batches = RowReader(plan.out, plan.config, plan.noise).batches(addresses, resources.micro_batch_rows)
    model = build_sharded_model(plan, device)
    optimizer = build_optimizer(model, plan.config)
    seconds = []
    for _ in range(1 + _STEPS):
        start = time.process_time()
        update(plan, model, optimizer, batches, 1, device)
        seconds.append(time.process_time() - start)
    return min(seconds[1:])  # the first one has kernels generated, and the optimizer's state made


def _describe(settled: dict[str, Any]) -> str:
    step_s = settled["step_s"]
    if step_s is None:
        return f"{settled['dtype']} (dtype=auto), as its GPU does"
    times = " and ".join(f"{seconds:.3g} s in {dtype}" for dtype, seconds in step_s.items())
    return f"{settled['dtype']} (dtype=auto): a step was measured to take {times}"
