"""The one training loop: base LM, synthesizer and joint LM differ in their plan only. Runs with or without Ray.

Legend: B rows of a micro-batch, T tokens a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from sbp_ray.errors import SbpError
from sbp_ray.mixing import Address
from sbp_ray.model import build_model
from sbp_ray.training.attention import attend_within_documents, find_documents
from sbp_ray.training.checkpoint import load_newest, save_checkpoint
from sbp_ray.training.export import MODEL_FOLDER, export_model
from sbp_ray.training.journal import Journal
from sbp_ray.training.loss import GradedLanguageModel
from sbp_ray.training.optim import build_optimizer, lr_at, set_lr
from sbp_ray.training.plan import TrainingPlan
from sbp_ray.training.rows import Batch, RowReader
from sbp_ray.training.sharding import process_group, shard_model, sum_over_ranks, training_device

NUM_EVALUATIONS = 10  # held-out losses on the way, for the curve
EVALUATION_BATCHES = 2  # rows of each, in optimizer batches

OnStep = Callable[[dict[str, Any]], None]


def train(plan: TrainingPlan, on_step: OnStep | None = None, stop_after: int | None = None) -> None:
    """Train from the newest checkpoint to the last step, and export `model/`. Called by every rank.

    Args:
        plan: the same on every rank.
        on_step: gets every step's row of `metrics.jsonl`, on every rank.
        stop_after: leave without export after this step; for tests of resuming.

    Raises:
        SbpError: the loss or its gradient is not finite; the weights have not been touched by that step.
    """
    with process_group():
        device = training_device()
        model = _sharded_model(plan, device)
        optimizer = build_optimizer(model, plan.config)
        first_step = load_newest(plan.out, model, optimizer)
        journal = Journal(plan.out, plan.stage, plan.num_steps, first_step) if dist.get_rank() == 0 else None
        wall_s = journal.wall_s_before if journal else 0.0
        reader = RowReader(plan.out, plan.config.seq_len)
        for step in range(first_step + 1, plan.num_steps + 1):
            start = time.monotonic()
            row: dict[str, float] = {"step": step, "tokens": step * plan.config.batch_rows * plan.config.seq_len}
            row |= _update(plan, model, optimizer, reader, step, device)
            step_s = time.monotonic() - start
            wall_s += step_s
            row |= {"tokens_per_s": plan.config.batch_rows * plan.config.seq_len / step_s, "wall_s": round(wall_s, 3)}
            if is_evaluation(plan, step):
                row |= _evaluate(plan, model, reader, device)
            if journal:
                journal.add(row)
            if on_step:
                on_step(row)
            if step % plan.config.checkpoint_every == 0 or step == plan.num_steps:
                if journal:
                    journal.flush()
                save_checkpoint(plan.out, step, model, optimizer)
            if step == stop_after:
                return
        export_model(plan, model)


def is_evaluation(plan: TrainingPlan, step: int) -> bool:
    """Whether the held-out loss is measured after this step."""
    return bool(plan.validation.num_rows) and (
        step % max(1, plan.num_steps // NUM_EVALUATIONS) == 0 or step == plan.num_steps
    )


def _sharded_model(plan: TrainingPlan, device: torch.device) -> GradedLanguageModel:
    if plan.model is not None:
        lm: Any = build_model(plan.model, plan.vocab_size, plan.special, plan.config.seed)
    else:
        from transformers import AutoModelForCausalLM

        assert plan.base is not None
        lm = AutoModelForCausalLM.from_pretrained(plan.base.local_copy(MODEL_FOLDER), dtype=torch.float32)
    attend_within_documents(lm)
    if plan.config.compile:
        for layer in lm.model.layers:
            layer.compile()
    model = GradedLanguageModel(lm).train()
    shard_model(model, plan.config.dtype, device)
    return model


def _update(
    plan: TrainingPlan,
    model: GradedLanguageModel,
    optimizer: torch.optim.Optimizer,
    reader: RowReader,
    step: int,
    device: torch.device,
) -> dict[str, float]:
    """One optimizer step over `batch_rows` rows: each graded token weighs the same, wherever it lies."""
    batches = _micro_batches(plan, reader, step)
    [num_graded] = sum_over_ranks([float(sum(batch.num_graded() for batch in batches))], device)
    nll = torch.zeros((), device=device)
    # FSDP averages gradients over the ranks: times their number, the sum over ranks divided by the global count is left
    scale = dist.get_world_size() / max(1.0, num_graded)
    for number, batch in enumerate(batches):
        model.set_requires_gradient_sync(number == len(batches) - 1)  # type: ignore[operator]  # FSDP2 added it
        batch_nll = _nll(model, batch, device)
        (batch_nll * scale).backward()
        nll += batch_nll.detach()
    loss_nats = sum_over_ranks([nll.item()], device)[0] / max(1.0, num_graded)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.config.max_grad_norm)
    grad_norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
    if not (math.isfinite(loss_nats) and math.isfinite(grad_norm)):
        raise SbpError(
            f"{plan.stage} step {step}: loss {loss_nats} nats, grad_norm {grad_norm}: "
            f"lower peak_lr ({plan.config.peak_lr}) or raise warmup_share ({plan.config.warmup_share})"
        )
    lr = lr_at(step - 1, plan.num_steps, plan.config)
    set_lr(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad()
    return {"loss_nats": loss_nats, "grad_norm": grad_norm, "lr": lr, "graded_tokens": int(num_graded)}


def _micro_batches(plan: TrainingPlan, reader: RowReader, step: int) -> list[Batch]:
    """This rank's rows of a step: every world_size-th of them."""
    first = (step - 1) * plan.config.batch_rows
    mine = range(first + dist.get_rank(), first + plan.config.batch_rows, dist.get_world_size())
    addresses = [plan.mixture.address(row) for row in mine]
    size = plan.config.micro_batch_rows
    return [reader.batch(addresses[start : start + size]) for start in range(0, len(addresses), size)]


def _nll(model: GradedLanguageModel, batch: Batch, device: torch.device) -> torch.Tensor:
    documents = find_documents(batch.document_ids_BT)
    return model(batch.input_ids_BT.to(device), batch.loss_mask_BT.to(device), documents.to(device))


@torch.no_grad()
def _evaluate(
    plan: TrainingPlan, model: GradedLanguageModel, reader: RowReader, device: torch.device
) -> dict[str, float]:
    """NLL a graded token of the first held-out rows. Every rank makes the same number of passes: FSDP demands it."""
    model.eval()
    num_rows = min(plan.validation.num_rows, EVALUATION_BATCHES * plan.config.batch_rows)
    all_rows = (
        Address(plan.validation.name, 0, shard, position)
        for shard, rows in enumerate(plan.validation.shard_rows)
        for position in range(rows)
    )
    addresses: list[Address | None] = list(islice(all_rows, num_rows))
    stride = plan.config.micro_batch_rows * dist.get_world_size()
    addresses += [None] * (-len(addresses) % stride)
    totals = [0.0, 0.0]
    mine = addresses[dist.get_rank() :: dist.get_world_size()]
    for start in range(0, len(mine), plan.config.micro_batch_rows):
        batch = reader.batch(mine[start : start + plan.config.micro_batch_rows])
        totals[0] += _nll(model, batch, device).item()
        totals[1] += batch.num_graded()
    nll, num_graded = sum_over_ranks(totals, device)
    model.train()
    return {"validation_nats": nll / max(1.0, num_graded)}
