"""What ranks say of their devices before they train."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from ranks import run_ranks

from sbp_ray.errors import SbpError
from sbp_ray.training.devices import refuse_same_name


def test_two_ranks_on_one_gpu_are_told_so(tmp_path: Path) -> None:
    assert run_ranks(3, tmp_path, _name_gpu, ("GPU-a", "GPU-b", "GPU-c")) == [""] * 3
    [*said] = run_ranks(3, tmp_path, _name_gpu, ("GPU-a", "GPU-b", "GPU-a"))
    assert (
        said
        == [
            "2 of 3 ranks have the same GPU (GPU-a): set resources.num_gpus to 1, and see that "
            "CUDA_VISIBLE_DEVICES gives each rank its own"
        ]
        * 3
    )


def _name_gpu(names: tuple[str, ...]) -> str:
    try:
        refuse_same_name(names[dist.get_rank()])
    except SbpError as error:
        return str(error)
    return ""
