"""Which device and attention kernel a rank trains with, and what is wrong with them, told before the model is built."""

from __future__ import annotations

import logging
from collections import Counter
from importlib.util import find_spec

import torch
import torch.distributed as dist

from sbp_ray.config import TrainingResources
from sbp_ray.errors import SbpError, one_line

logger = logging.getLogger(__name__)

_HOPPER = 9
"""Major compute capability of the only GPUs that FlashAttention-3 runs on."""


def find_device(resources: TrainingResources) -> torch.device:
    """The rank's GPU where it was given one, else the CPU: a GPU that is there may be another's.

    Raises:
        SbpError: it was given a GPU, and torch finds none that it can use.
    """
    if not resources.num_gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SbpError(
            f"resources.num_gpus={resources.num_gpus:g}, and torch finds no GPU on this node ({_reason()}): set it to "
            f"0, or install {_wanted()}"
        )
    return torch.device("cuda", torch.cuda.current_device())


def _reason() -> str:
    """In torch's own words: no driver, one that is too old, or a torch without CUDA."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return one_line(error).split(". ")[0].removesuffix(".")
    return "CUDA_VISIBLE_DEVICES hides them"


def _wanted() -> str:
    if torch.version.cuda is None:
        return "the extra `gpu`, whose torch has CUDA"
    return f"an NVIDIA driver for CUDA {torch.version.cuda}, which this torch was built for"


def refuse_shared_gpu(device: torch.device) -> None:
    """Called by every rank, since NCCL would say no more than that something is wrong.

    Raises:
        SbpError: two ranks have the same GPU; on every rank.
    """
    if device.type == "cuda":
        refuse_same_name(str(torch.cuda.get_device_properties(device).uuid))


def refuse_same_name(name: str) -> None:
    """
    Args:
        name: of this rank's GPU, which no other in the world has.

    Raises:
        SbpError: another rank has a GPU of that name; on every rank.
    """
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, name)
    [(most, number)] = Counter(names).most_common(1)
    if number > 1:
        raise SbpError(
            f"{number} of {len(names)} ranks have the same GPU ({most}): set resources.num_gpus to 1, and see that "
            "CUDA_VISIBLE_DEVICES gives each rank its own"
        )


def choose_kernel(device: torch.device) -> None:
    """Let the process' attention on a Hopper GPU be that of FlashAttention-3, where its package is installed, and say
    which it is. Called by every rank.

    Raises:
        RuntimeError: the package lacks a kernel.
    """
    if device.type != "cuda":
        return
    is_third = torch.cuda.get_device_capability(device)[0] == _HOPPER and find_spec("flash_attn_interface") is not None
    if is_third:
        torch.nn.attention.activate_flash_attention_impl("FA3")
    if dist.get_rank() == 0:
        logger.info(f"attention in bfloat16 | {'FlashAttention-3' if is_third else 'FlashAttention-2, of PyTorch'}")
