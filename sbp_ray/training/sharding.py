"""FSDP2: parameters, gradients and optimizer state split over the ranks; the process group that it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from sbp_ray.config import Dtype, TrainingResources
from sbp_ray.errors import SbpError, one_line
from sbp_ray.training.loss import SupervisedLanguageModel


@contextmanager
def process_group(resources: TrainingResources) -> Iterator[None]:
    """The group that a launcher has set up, or, in a process of its own, a group of one."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group(name_backend(resources), store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def name_backend(resources: TrainingResources) -> str:
    """What the ranks' messages go through: gloo between hosts, NCCL between GPUs."""
    return "cpu:gloo,cuda:nccl" if resources.num_gpus else "gloo"


def find_device(resources: TrainingResources) -> torch.device:
    """The rank's GPU where it was given one, else the CPU: a GPU that is there may be another's.

    Raises:
        SbpError: it was given a GPU, and torch finds none.
    """
    if not resources.num_gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SbpError(
            f"resources.num_gpus={resources.num_gpus:g}, and torch finds no GPU on this node: set it to 0, or install "
            "the extra `gpu` and a driver"
        )
    return torch.device("cuda", torch.cuda.current_device())


def shard_model(model: SupervisedLanguageModel, dtype: Dtype, device: torch.device) -> None:
    """Shard in place: each decoder layer by itself, the rest together. Weights stay float32, sums over ranks too."""
    model.to(device)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if dtype == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.lm.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


@contextmanager
def failing_together(path: str, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Around what ranks write by themselves, entered by every rank; none leaves it before all have written.

    Without it the ranks that could write would wait for the one that could not, until their messages time out.

    Raises:
        SbpError: one of them had an `OSError`, on every rank.
    """
    problem = ""
    try:
        yield
    except OSError as error:
        problem = one_line(error)
    problems: list[str] = [""] * dist.get_world_size(group)
    dist.all_gather_object(problems, problem, group=group)
    if any(problems):
        raise SbpError(
            f"{path} cannot be written ({next(filter(None, problems))}): make room, and run the same command again "
            "to go on from the newest checkpoint"
        )


def sum_over_ranks(values: list[float]) -> list[float]:
    """Element-wise sums, in float64; between the hosts, so that no GPU has to be waited for."""
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()
