"""The first weights of a model that starts from scratch, drawn when each rank has room for its own part only."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

_DRAWS = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}


class _DrawWhole(TorchDispatchMode):
    """Draws a sharded tensor as if it were whole and on the CPU, and keeps the rank's part of it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = args[0] if args else None
        if func not in _DRAWS or not isinstance(own, DTensor):
            return func(*args, **(kwargs or {}))
        whole = func(torch.empty(own.shape, dtype=own.dtype), *args[1:], **(kwargs or {}))
        return own.copy_(distribute_tensor(whole, own.device_mesh, own.placements, src_data_rank=None))


@torch.no_grad()
def draw_weights(lm: Any, seed: int) -> None:
    """Fill a sharded model's parameters and buffers, whose memory may hold anything, as `build_model` does, to the bit.

    Each rank draws all numbers, in the order in which a whole model draws them, and never holds more of them than one
    parameter: the weights depend on the seed, and neither on the number of ranks nor on their device. Nothing is sent.

    Args:
        lm: Qwen3, whose head is drawn last.
    """
    with torch.random.fork_rng(devices=[]), _DrawWhole():
        torch.manual_seed(seed)
        for module in lm.model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                module.reset_parameters()  # as when it is made: drawn over below, and yet drawn before
        lm.model.initialize_weights()
        if not lm.config.tie_word_embeddings:  # tied, it is the embedding's, which has been drawn
            lm.lm_head.reset_parameters()
            torch.nn.init.normal_(lm.lm_head.weight, std=lm.config.initializer_range)
