"""A trace of some steps, for whoever asks where a step's time goes."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from torch.profiler import profile

from sbp_ray.artifacts import Artifact
from sbp_ray.training.training_plan import TrainingPlan

logger = logging.getLogger(__name__)

Work = TypeVar("Work")


def trace_steps(plan: TrainingPlan, steps: Iterator[tuple[int, Work]]) -> Iterator[tuple[int, Work]]:
    """Hand the steps on, and record those of `resources.profile_steps` on rank 0: kernels, operators and their shapes.

    The trace is a file of Chrome's format in the artifact's `profile/`, which Perfetto and TensorBoard show. A step
    that is recorded takes longer, so the rates of these steps are not those of the training.
    """
    if plan.config.resources.profile_steps is None or dist.get_rank() != 0:
        yield from steps
        return
    first, last = plan.config.resources.profile_steps
    recorder, began = profile(record_shapes=True), 0
    for step, work in steps:
        if not began and first <= step <= last:
            recorder.start()
            began = step  # later than `first` where the training goes on from a checkpoint within them
        yield step, work
        if began and step == min(last, plan.num_steps):
            recorder.stop()
            name = f"profile/steps-{began}-{step}.json.gz"
            _write_trace(recorder, plan.out, name)
            logger.info(f"{plan.stage} | trace of steps {began} to {step}: {plan.out.path(name)}")


def _write_trace(recorder: profile, out: Artifact, name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="sbp_ray-profile-") as folder:
        trace = Path(folder) / Path(name).name
        recorder.export_chrome_trace(str(trace))
        out.write_bytes(name, trace.read_bytes())
