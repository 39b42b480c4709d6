"""Ray Train around the loop: workers on the cluster, restarts after failures, metrics on the dashboard."""

from __future__ import annotations

import logging
import threading
from typing import Any

import ray.train
import torch
from ray.train import (
    FailureConfig,
    LoggingConfig,
    PreemptionError,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution import context as report_context
from transformers.utils.logging import disable_progress_bar

from sbp_ray import metrics
from sbp_ray.config import Resources, TrainingResources
from sbp_ray.errors import SbpError, storage_trouble
from sbp_ray.logs import set_up_logging
from sbp_ray.training.loop import is_evaluation, train
from sbp_ray.training.network import NodesNetwork
from sbp_ray.training.sharding import name_backend
from sbp_ray.training.training_plan import TrainingPlan

_GAUGES = {
    "sbp_loss_nats": "loss_nats",
    "sbp_grad_norm": "grad_norm",
    "sbp_learning_rate": "lr",
    "sbp_tokens_per_s": "tokens_per_s",
    "sbp_mfu": "mfu",
    "sbp_mem_gib": "mem_gib",
    "sbp_data_wait_s": "data_wait_s",
    "sbp_eta_s": "eta_s",
}
"""Of a step's row, on Ray's metrics."""
_TIMEOUT_S = 600
"""How long a rank waits for a message of the others. Ray's half an hour is what a rank that hangs would cost all."""


def gpu_environment(resources: TrainingResources) -> dict[str, str]:
    """Environment of a rank on a GPU, beside which others compile on the same node."""
    return {
        # Documents' number changes the shapes of a few tensors in each batch, which leaves holes in fixed segments.
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, int(resources.num_cpus))),  # else 32 for each rank
        # What each rank did last, into /tmp/nccl_trace_rank_… of its node, when a message times out.
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }


def fit_on_cluster(plan: TrainingPlan) -> None:
    """Run the plan on Ray Train's workers.

    Raises:
        SbpError: the training diverged, something could not be written, or workers died, or were taken away, more
            often than `resources` allows.
        ray.train.TrainingFailedError: an error of ours.
    """
    resources = plan.config.resources
    most = -1 if resources.max_preemptions is None else resources.max_preemptions
    trainer = TorchTrainer(
        lambda: _train_in_worker(plan),
        torch_config=NodesNetwork(backend=name_backend(resources), timeout_s=_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=(resources.min_workers, resources.num_workers)
            if resources.min_workers
            else resources.num_workers,
            use_gpu=resources.num_gpus > 0,
            resources_per_worker=_per_worker(resources),
        ),
        run_config=RunConfig(
            name=plan.stage,
            storage_path=f"{plan.out.url}/ray_train",
            failure_config=FailureConfig(max_failures=resources.max_failures, max_preemption_failures=most),
            worker_runtime_env={"env_vars": gpu_environment(resources)} if resources.num_gpus else None,
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        problem = _fit_in_thread(trainer).return_value
    except TrainingFailedError as error:
        if said := explain_storage(error):
            raise SbpError(f"{plan.stage}: {said}") from error
        if lost := explain_lost_workers(error, resources):
            raise SbpError(f"{plan.stage}: {lost}; the same command goes on from the newest checkpoint") from error
        raise
    if problem:
        raise SbpError(problem)


def explain_storage(error: TrainingFailedError) -> str:
    """What a worker met where it read or wrote; nothing where that was not what ended it."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return next(filter(None, map(storage_trouble, failures)), "")


def explain_lost_workers(error: TrainingFailedError, resources: TrainingResources) -> str:
    """Say that workers died, by whatever hand; nothing where a worker raised an error."""
    if isinstance(error, PreemptionError):
        return f"nodes were taken back more often than resources.max_preemptions={resources.max_preemptions} allows"
    if isinstance(error, WorkerGroupError) and any(
        isinstance(failure, WorkerHealthCheckFailedError) for failure in error.worker_failures.values()
    ):
        limit = f"resources.max_failures={resources.max_failures}"
        return f"workers died more often than {limit} allows: see their logs for the reason (often memory)"
    return ""


def _per_worker(resources: Resources) -> dict[str, float]:
    return {"CPU": resources.num_cpus} | ({"GPU": resources.num_gpus} if resources.num_gpus else {})


def _fit_in_thread(trainer: TorchTrainer) -> Result:
    """In the main thread Ray Train would take Ctrl-C for itself and end the process with status 0."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:  # noqa: BLE001  # raised again below, in the caller's thread
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _train_in_worker(plan: TrainingPlan) -> str | None:
    """The whole life of one worker; returns what the user must fix."""
    set_up_logging()
    # Ray Train logs every report, under a name (its file's) that LoggingConfig does not reach; the journal has them.
    logging.getLogger(report_context.__file__).setLevel(logging.WARNING)
    disable_progress_bar()
    if plan.config.resources.num_threads:
        torch.set_num_threads(plan.config.resources.num_threads)
    is_first = ray.train.get_context().get_world_rank() == 0

    def on_step(row: dict[str, Any]) -> None:
        if is_first:
            for name, key in _GAUGES.items():
                if row[key] is not None:
                    metrics.gauge(name, row[key], stage=plan.stage)
            metrics.gauge("sbp_progress", row["step"] / plan.num_steps, stage=plan.stage)
            metrics.count("sbp_tokens", row["text_tokens"], stage=plan.stage)
        if is_evaluation(plan, row["step"]) or row["step"] == plan.num_steps:
            ray.train.report(row)  # every rank waits for all in there: seldom is enough

    try:
        train(plan, on_step, lambda: ray.train.get_preemption_info() is not None)
    except SbpError as error:  # the same on every rank (see `refusing_together`), and a restart would meet it again
        return str(error)
    return None
