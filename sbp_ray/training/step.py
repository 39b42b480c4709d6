"""One optimizer step: each supervised token weighs the same, wherever it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sbp_ray.errors import SbpError
from sbp_ray.training.batches import Batch
from sbp_ray.training.dropout import row_keys
from sbp_ray.training.loss import SupervisedLanguageModel
from sbp_ray.training.optim import lr_at, set_lr
from sbp_ray.training.sharding import sum_over_ranks
from sbp_ray.training.training_plan import TrainingPlan


@dataclass(frozen=True)
class StepResult:
    """Of all ranks together."""

    loss_nats: float
    """Of a supervised token; without the z-loss."""
    grad_norm: float
    """Before clipping."""
    lr: float
    supervised_tokens: int
    tokens: int
    """Padding not counted."""
    attended: int
    num_asking: int
    """Ranks whose `ask` was set."""


def update(
    plan: TrainingPlan,
    model: SupervisedLanguageModel,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    step: int,
    device: torch.device,
    ask: bool = False,
) -> StepResult:
    """Train on this rank's micro-batches of a step.

    Args:
        ask: reaches all ranks as `num_asking`, so that they agree on something without a message more.

    Raises:
        SbpError: the loss or its gradient is not finite, on any rank; no weight has been touched.
    """
    own = [(batch.num_supervised, batch.num_tokens, batch.attended) for batch in batches]
    totals = sum_over_ranks([*(float(sum(column)) for column in zip(*own, strict=True)), float(ask)], device)
    # FSDP averages gradients over the ranks: times their number, the sum over ranks divided by the global count is left
    nll = _accumulate_gradients(plan, model, batches, dist.get_world_size() / totals[0].clamp(min=1), device)
    nll_total = sum_over_ranks(nll.double().sum(), device)
    norm = get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    # The one place where the host waits for a GPU.
    nll_nats, grad_norm, *counts = torch.stack([nll_total, whole_norm.double(), *totals]).tolist()
    num_supervised, num_tokens, attended, num_asking = map(int, counts)
    loss_nats = nll_nats / max(1, num_supervised)
    if not (math.isfinite(loss_nats) and math.isfinite(grad_norm)):
        found = _locate(model, batches, nll.tolist())
        raise SbpError(
            f"{plan.stage} step {step}: loss {loss_nats} nats, grad_norm {grad_norm}, {found}: "
            f"lower peak_lr ({plan.config.peak_lr}) or raise warmup_share ({plan.config.warmup_share})"
        )
    # Not before: NaN times any gradient is NaN, and would hide where it comes from.
    clip_grads_with_norm_(model.parameters(), plan.config.max_grad_norm, norm)
    lr = lr_at(step - 1, plan.num_steps, plan.config)
    set_lr(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad()
    return StepResult(loss_nats, grad_norm, lr, num_supervised, num_tokens, attended, num_asking)


def _accumulate_gradients(
    plan: TrainingPlan, model: SupervisedLanguageModel, batches: list[Batch], scale: torch.Tensor, device: torch.device
) -> torch.Tensor:
    """Run the micro-batches forward and backward; returns the summed NLL of each, float32."""
    nll = []
    for number, batch in enumerate(batches, start=1):
        is_reduced = plan.config.resources.reduce_every_micro_batch or number == len(batches)
        model.set_requires_gradient_sync(is_reduced)  # type: ignore[operator]  # FSDP2 added it
        placed = batch.to(device)
        keys_B = row_keys(batch.addresses, plan.config.seed).to(device) if plan.config.dropout else None
        sums = model(placed.input_ids_BT, placed.targets, placed.documents, placed.shown_ids_BT, keys_B)
        (sums[1] * scale).backward()
        nll.append(sums[0].detach())
    return torch.stack(nll)


def _locate(model: SupervisedLanguageModel, batches: list[Batch], nll_of_batch: list[float]) -> str:
    """Name what is not finite, the same on every rank: rows by their place, else a gradient by its name.

    Of the broken gradients the one that the backward pass made first: it goes from the last layer to the first, and
    whatever comes after a broken one is broken too.
    """
    bad = [batch for batch, nll in zip(batches, nll_of_batch, strict=True) if not math.isfinite(nll)]
    rows = [f"{row.source} {row.shard}:{row.position}" for batch in bad for row in batch.addresses if row is not None]
    names = [name for name, parameter in model.named_parameters() if _is_broken(parameter.grad)]
    found: list[tuple[list[str], list[str]]] = [([], [])] * dist.get_world_size()
    dist.all_gather_object(found, (rows, names))
    all_rows = [row for rows, _ in found for row in rows]
    if all_rows:
        return f"in rows {', '.join(all_rows[:4])}"
    broken = {name for _, names in found for name in names}
    ordered = [name for name, _ in model.named_parameters() if name in broken]
    first = ordered[-1] if ordered else "the sum of squares"
    return f"first in the gradient of {first.removeprefix('lm.')}"


def _is_broken(grad: torch.Tensor | None) -> bool:
    if grad is None:
        return False
    local = grad.to_local() if isinstance(grad, DTensor) else grad
    return not bool(local.isfinite().all())
