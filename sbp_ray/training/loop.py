"""The one training loop: base LM, synthesizer and joint LM differ in their plan only. Runs with or without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
import torch.distributed as dist

from sbp_ray.mixing import Source
from sbp_ray.threads import read_ahead
from sbp_ray.training.average import WeightAverage
from sbp_ray.training.batches import Batch
from sbp_ray.training.build import build_sharded_model
from sbp_ray.training.checkpoint import Checkpoints
from sbp_ray.training.devices import choose_kernel, find_device, refuse_shared_gpu
from sbp_ray.training.dtype_choice import settle_dtype
from sbp_ray.training.estimate import refuse_too_little_memory
from sbp_ray.training.export import export_model, list_held_out
from sbp_ray.training.loss import SupervisedLanguageModel
from sbp_ray.training.meter import Meter
from sbp_ray.training.optim import build_optimizer
from sbp_ray.training.profiler import trace_steps
from sbp_ray.training.rows import RowReader, assign_rows
from sbp_ray.training.sharding import process_group, refusing_together, settle_shard_ranks, sum_over_ranks
from sbp_ray.training.step import update
from sbp_ray.training.training_plan import TrainingPlan

NUM_EVALUATIONS = 10
"""Times that the held-out loss is measured along the training, for its curve."""
EVALUATION_BATCHES = 2
"""Optimizer batches whose rows each measurement reads."""
EVALUATION_TOKENS = 16_384
"""The least that a measurement reads: a curve of a few documents says nothing."""
READ_AHEAD = 2
"""Steps. The index of a shard that must be fetched takes longer than a step; then the steps after it are there."""

VALIDATION, DEVELOPMENT = "validation_nats", "development_nats"

OnStep = Callable[[dict[str, Any]], None]


def train(
    plan: TrainingPlan,
    on_step: OnStep | None = None,
    is_preempted: Callable[[], bool] | None = None,
    stop_after: int | None = None,
) -> None:
    """Train from the newest checkpoint to the last step, and export `model/`. Called by every rank, with the same plan.

    Args:
        on_step: gets every step's row of `metrics.jsonl`, on every rank.
        is_preempted: asked every few seconds, on all ranks at the same step; when it first says yes (to all of them),
            a checkpoint is written at once, and training goes on for as long as the machine does.
        stop_after: leave without export after this step; for tests of resuming.

    Raises:
        SbpError: on every rank, also where one alone has met it: there is no GPU where one was asked for, or it is
            another rank's too, or too small; `shard_ranks` does not divide the ranks; a model cannot be loaded; the
            loss or its gradient is not finite, the newest checkpoint has another shape, or a checkpoint cannot be
            written.
    """
    with process_group(plan.config.resources):
        with refusing_together():
            device, reader = find_device(plan.config.resources), RowReader(plan.out, plan.config)
            _ = plan.out.fs  # opened at its first use, which for some ranks may be when others wait for them
        refuse_shared_gpu(device)
        plan = settle_dtype(settle_shard_ranks(plan), device)
        with refusing_together():
            refuse_too_little_memory(plan, dist.get_world_size(), device)
        choose_kernel(device)
        model = build_sharded_model(plan, device)
        optimizer = build_optimizer(model, plan.config)
        average = WeightAverage(model, plan.config.ema_decay or 0.0)
        with closing(Checkpoints(plan.out, model, optimizer, average.weights)) as checkpoints:
            first_step = checkpoints.load_newest()
            meter = Meter(plan, model.lm.config.vocab_size, first_step, device)
            for row, num_asking in _run_steps(plan, model, optimizer, average, meter, reader, first_step, device):
                if on_step:
                    on_step(row)
                is_urgent = is_preempted is not None and num_asking > 0 and is_preempted()
                is_preempted = None if is_urgent else is_preempted  # one checkpoint is enough
                is_best = plan.config.checkpoint == "best" and checkpoints.note_loss(row["step"], row.get(DEVELOPMENT))
                if is_urgent or is_best or _is_checkpoint(plan, row["step"]):
                    meter.flush()
                    checkpoints.save(row["step"])
                if row["step"] == stop_after:
                    checkpoints.wait()
                    return
            checkpoints.wait()
            exported = checkpoints.load_best(plan.num_steps)
        with average.in_place():
            export_model(plan, model, reader, device, exported)


def _run_steps(
    plan: TrainingPlan,
    model: SupervisedLanguageModel,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    meter: Meter,
    reader: RowReader,
    first_step: int,
    device: torch.device,
) -> Iterator[tuple[dict[str, Any], int]]:
    """Train on the steps that are left; of each, the row of `metrics.jsonl` and the ranks that ask `is_preempted`."""
    for step, batches in trace_steps(plan, meter.time_steps(_read_batches(plan, first_step))):
        result = update(plan, model, optimizer, batches, step, device, ask=meter.is_time_to_ask())
        average.update(step)
        held_out = {}
        if is_evaluation(plan, step):
            with average.in_place():
                held_out = _evaluate(plan, model, reader, device)
        yield meter.add(step, result, held_out), result.num_asking


def _is_checkpoint(plan: TrainingPlan, step: int) -> bool:
    return step % plan.config.resources.checkpoint_every == 0 or step == plan.num_steps


def is_evaluation(plan: TrainingPlan, step: int) -> bool:
    """Whether the held-out loss is measured after this step."""
    is_time = step % max(1, plan.num_steps // NUM_EVALUATIONS) == 0 or step == plan.num_steps
    return is_time and bool(_held_out(plan))


def _held_out(plan: TrainingPlan) -> dict[str, Source]:
    """What is measured along the training, by its name in `metrics.jsonl`."""
    sources = {VALIDATION: plan.validation, DEVELOPMENT: plan.development}
    return {name: source for name, source in sources.items() if source.num_rows}


def _read_batches(plan: TrainingPlan, first_step: int) -> Iterator[tuple[int, list[Batch]]]:
    """This rank's micro-batches of each step that is left, read ahead."""
    reader = RowReader(plan.out, plan.config, plan.noise)  # of the thread that reads
    rank, num_ranks = dist.get_rank(), dist.get_world_size()

    def make(step: int) -> tuple[int, list[Batch]]:
        addresses = assign_rows(plan.mixture, step, plan.config.batch_rows, rank, num_ranks)
        return step, reader.batches(addresses, plan.config.resources.micro_batch_rows)

    return read_ahead(map(make, range(first_step + 1, plan.num_steps + 1)), READ_AHEAD)


@torch.no_grad()
def _evaluate(
    plan: TrainingPlan, model: SupervisedLanguageModel, reader: RowReader, device: torch.device
) -> dict[str, float]:
    """Mean NLL of the first rows of each held-out split."""
    model.eval()
    found = {name: _loss(plan, source, model, reader, device) for name, source in _held_out(plan).items()}
    model.train()
    return found


def _loss(
    plan: TrainingPlan, source: Source, model: SupervisedLanguageModel, reader: RowReader, device: torch.device
) -> float:
    """Every rank makes the same number of passes: FSDP demands it."""
    num_rows = max(EVALUATION_BATCHES * plan.config.batch_rows, EVALUATION_TOKENS // plan.config.seq_len)
    addresses = list_held_out(source, num_rows)
    micro_batch_rows = plan.config.resources.micro_batch_rows
    addresses += [None] * (-len(addresses) % (micro_batch_rows * dist.get_world_size()))
    totals = [0.0, 0.0]
    for batch in reader.batches(addresses[dist.get_rank() :: dist.get_world_size()], micro_batch_rows):
        placed = batch.to(device)
        totals[0] += model(placed.input_ids_BT, placed.targets, placed.documents).sum().item()
        totals[1] += batch.num_supervised
    nll, num_supervised = sum_over_ranks(totals, device).tolist()
    return float(nll / max(1.0, num_supervised))
