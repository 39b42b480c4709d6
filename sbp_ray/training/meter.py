"""What is measured at each step: speed, share of the peak, memory, waiting, time left."""

from __future__ import annotations

import logging
import resource
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from sbp_ray.model import training_flops
from sbp_ray.training.batches import Batch
from sbp_ray.training.estimate import estimate_run, find_peak_flops
from sbp_ray.training.journal import METRICS, Journal
from sbp_ray.training.sharding import failing_together
from sbp_ray.training.step import StepResult
from sbp_ray.training.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

ASK_EVERY_S = 5.0
"""How often ranks ask whether a node is about to be taken away: the answer costs every rank a message."""
_RECENT_STEPS = 20
"""Steps whose mean time the time left is estimated from."""


class Meter:
    """Makes the rows of `metrics.jsonl`; on rank 0 it writes them too, and logs the estimate before the first step."""

    def __init__(self, plan: TrainingPlan, vocab_size: int, first_step: int, device: torch.device) -> None:
        self._plan, self._vocab_size, self._device = plan, vocab_size, device
        num_ranks = dist.get_world_size()
        self._peak = find_peak_flops(device, plan.config.settled_dtype)
        self._is_first = dist.get_rank() == 0
        self._wall_s, self._data_wait_s = 0.0, 0.0
        self._recent_s: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._asked = self._began = time.monotonic()
        self._journal: Journal | None = None
        if self._is_first:
            logger.info(estimate_run(plan, vocab_size, num_ranks, self._peak).line(plan, num_ranks))
        with failing_together(plan.out.path(METRICS)):
            if self._is_first:
                self._journal = Journal(plan.out, plan.stage, plan.num_steps, first_step, num_ranks)
                self._wall_s = self._journal.wall_s_before

    def time_steps(self, steps: Iterator[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch]]]:
        """Hand the steps on, and measure how long each was waited for."""
        while True:
            self._began = time.monotonic()
            found = next(steps, None)
            self._data_wait_s = time.monotonic() - self._began
            if found is None:
                return
            yield found

    def is_time_to_ask(self) -> bool:
        """Whether some seconds have passed; on rank 0 only, whose clock counts for all ranks."""
        now = time.monotonic()
        if not self._is_first or now - self._asked < ASK_EVERY_S:
            return False
        self._asked = now
        return True

    def add(self, step: int, result: StepResult, held_out: dict[str, float]) -> dict[str, Any]:
        """The step's row. `tokens` are positions since the start of the run, `tokens_per_s` leaves padding out."""
        step_s = time.monotonic() - self._began
        self._wall_s += step_s
        self._recent_s.append(step_s)
        flops = training_flops(self._plan.model, self._vocab_size, result.tokens, result.attended)
        row = {
            "step": step,
            "tokens": step * self._plan.config.batch_rows * self._plan.config.seq_len,
            "loss_nats": result.loss_nats,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "supervised_tokens": result.supervised_tokens,
            "text_tokens": result.tokens,
            "tokens_per_s": result.tokens / step_s,
            "mfu": flops / step_s / (self._peak * dist.get_world_size()) if self._peak else None,
            "mem_gib": round(measure_memory_gib(self._device), 3),
            "data_wait_s": round(self._data_wait_s, 4),
            "eta_s": round(sum(self._recent_s) / len(self._recent_s) * (self._plan.num_steps - step), 1),
            "wall_s": round(self._wall_s, 3),
            **held_out,
        }
        if self._journal:
            self._journal.add(row)
        return row

    def flush(self) -> None:
        """Commit the rows so far. Called by every rank.

        Raises:
            SbpError: there is no room.
        """
        with failing_together(self._plan.out.path(METRICS)):
            if self._journal:
                self._journal.flush()


def measure_memory_gib(device: torch.device) -> float:
    """The most memory that this rank has held: of its GPU, or of its process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
