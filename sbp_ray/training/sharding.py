"""FSDP2: parameters, gradients and optimizer state split over the ranks; the process group that it needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from sbp_ray.config import Dtype, TrainingResources
from sbp_ray.errors import SbpError, one_line
from sbp_ray.training.loss import SupervisedLanguageModel
from sbp_ray.training.training_plan import TrainingPlan

logger = logging.getLogger(__name__)


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


def settle_shard_ranks(plan: TrainingPlan) -> TrainingPlan:
    """The plan with the number of ranks that share one copy of the weights. Called by every rank, and the same for all.

    A node tells its ranks how many it has itself, which is not for each to conclude from: so they tell one another.

    Raises:
        SbpError: the ranks do not come out even, and may not be fewer than they are; on every rank.
    """
    ranks_of_node = [0] * dist.get_world_size()
    dist.all_gather_object(ranks_of_node, int(os.environ.get("LOCAL_WORLD_SIZE", 0)))  # of Ray Train, and of torchrun
    resources = plan.config.resources
    found = count_shard_ranks(resources.shard_ranks, ranks_of_node, may_be_more=resources.min_workers is not None)
    if resources.shard_ranks not in (None, found) and dist.get_rank() == 0:
        logger.info(
            f"{plan.stage} | resources.shard_ranks={resources.shard_ranks} does not divide the {len(ranks_of_node)} "
            f"ranks that there are: each copy of the weights is split over {found} instead"
        )
    settled = resources.model_copy(update={"shard_ranks": found})
    return replace(plan, config=plan.config.model_copy(update={"resources": settled}))


def count_shard_ranks(wanted: int | None, ranks_of_node: Sequence[int], may_be_more: bool = False) -> int:
    """Ranks that share one copy of the weights.

    By default all; on more than two nodes of equally many ranks those of a node, between which messages are far
    faster: only the sums of gradients then leave it, once a step.

    Args:
        ranks_of_node: for each rank, how many there are on its node; 0 where nobody knows.
        may_be_more: take the next number that divides the ranks, of which any number may come back when nodes have
            gone. Among more of them a copy takes no more memory than there is.

    Raises:
        SbpError: the ranks do not come out even.
    """
    num_ranks = len(ranks_of_node)
    if wanted is None:
        first = ranks_of_node[0]
        is_even = first > 0 and set(ranks_of_node) == {first} and num_ranks % first == 0
        return first if is_even and num_ranks > 2 * first else num_ranks
    if may_be_more:
        return next((number for number in range(wanted, num_ranks) if num_ranks % number == 0), num_ranks)
    if num_ranks % wanted:
        raise SbpError(
            f"resources.shard_ranks={wanted} does not divide the {num_ranks} ranks: set it to a divisor, such as the "
            "GPUs of a node"
        )
    return wanted


def shard_model(model: SupervisedLanguageModel, dtype: Dtype, device: torch.device, shard_ranks: int) -> None:
    """Shard in place, in units that are gathered together: each decoder layer; the last norm and the head, which the
    loss and the first step of its backward pass need; the rest. Weights stay float32, sums over ranks too.

    A head that is the embedding stays with it in the rest, which is whole from the first layer on.

    FSDP moves what it shards to the device, a layer at a time; tensors without memory stay so.

    Args:
        shard_ranks: ranks, one behind the other, that share one copy of the weights; see `settle_shard_ranks`.
    """
    num_ranks = dist.get_world_size()
    if shard_ranks == num_ranks:
        mesh = init_device_mesh(device.type, (num_ranks,))
    else:
        shape = (num_ranks // shard_ranks, shard_ranks)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("copies", "shards"))
    policy = MixedPrecisionPolicy()
    if dtype == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.lm.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    lm = model.lm
    # The loss takes the head's weight and never calls the head: torch before 2.13 then loses track of the unit.
    if not lm.config.tie_word_embeddings and torch.__version__ >= "2.13":
        fully_shard([lm.model.norm, lm.lm_head], mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy)


@contextmanager
def refusing_together(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Around what each rank does by itself and may refuse, entered by every rank; none leaves it before all are done.

    Without it the ranks that have nothing to refuse would wait for the one that has, until their messages time out. No
    rank may wait for another inside. What is raised there and is no `SbpError` goes on as it is, on its own rank: the
    launcher sees that it has failed, and ends the others.

    Raises:
        SbpError: one of them had one; the same on every rank.
    """
    problem = ""
    try:
        yield
    except SbpError as error:
        problem = str(error)
    problems: list[str] = [""] * dist.get_world_size(group)
    dist.all_gather_object(problems, problem, group=group)
    if any(problems):
        raise SbpError(next(filter(None, problems)))


@contextmanager
def failing_together(path: str, group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """`refusing_together` around what ranks write by themselves.

    Raises:
        SbpError: one of them had an `OSError`, or an `SbpError`; the same on every rank.
    """
    with refusing_together(group):
        try:
            yield
        except OSError as error:
            raise SbpError(
                f"{path} cannot be written ({one_line(error)}): make room, and run the same command again to go on "
                "from the newest checkpoint"
            ) from error


def sum_over_ranks(values: list[float] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Element-wise sums, float64 on the device; nobody waits for them until they are read."""
    total = torch.as_tensor(values, dtype=torch.float64).to(device, non_blocking=True)
    dist.all_reduce(total)
    return total
