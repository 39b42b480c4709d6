"""Dropout whose masks are arithmetic: the same for a row wherever, and however often, it is computed.

Which units are left out follows from the seed, the row's address, the layer's place and the unit, not from a generator
that each rank moves on: any number of ranks, any micro-batches, a resumed run and a layer that is computed again for
its gradient all have the same masks.

Legend: B rows, T tokens a row, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch

from sbp_ray.mixing import Address
from sbp_ray.text.hashing import hash64

_POSITIVE = 2**31 - 1


class Dropout:
    """Drops a share of what attention and the MLP of each layer add to the residual stream, while training."""

    def __init__(self, layers: Iterable[Any], share: float) -> None:
        """`layers`: each with `self_attn.o_proj` and `mlp.down_proj`, whose outputs are [B, T, D]."""
        self.share = share
        self.keys_B: torch.Tensor | None = None
        """int32, a number for each row of the batch that comes next."""
        if share:
            outputs = [module for layer in layers for module in (layer.self_attn.o_proj, layer.mlp.down_proj)]
            for place, module in enumerate(outputs):
                module.register_forward_hook(partial(self._drop, place))

    def _drop(self, place: int, module: torch.nn.Module, _: Any, output_BTD: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output_BTD
        assert self.keys_B is not None, "a training batch without its rows' numbers"
        kept_BTD = keep_mask(self.keys_B, place, output_BTD.shape[1], output_BTD.shape[2], self.share)
        return output_BTD * kept_BTD / (1 - self.share)


def row_keys(addresses: Sequence[Address | None], seed: int) -> torch.Tensor:
    """int32 [B]: a number for each row, another one each time that it is read."""
    numbers = [0 if row is None else hash64("dropout", seed, *row) & _POSITIVE for row in addresses]
    return torch.tensor(numbers, dtype=torch.int32)


def keep_mask(keys_B: torch.Tensor, place: int, num_tokens: int, width: int, share: float) -> torch.Tensor:
    """bool [B, T, D]: False for so large a share of the units.

    Args:
        place: of the module in the model, each of which has masks of its own.
    """
    own_B = _mixed(keys_B ^ _mixed(torch.tensor(place + 1, dtype=torch.int32, device=keys_B.device)))
    unit_TD = torch.arange(num_tokens * width, dtype=torch.int32, device=keys_B.device).view(num_tokens, width)
    bits_BTD = _mixed(_mixed(unit_TD) ^ own_B[:, None, None]) & _POSITIVE
    return bits_BTD >= round(share * 2**31)


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 in which each bit of the result depends on many (lowbias32); products wrap around."""
    values = (values ^ _shifted(values, 16)) * 0x7FEB352D
    values = (values ^ _shifted(values, 15)) * (0x846CA68B - 2**32)
    return values ^ _shifted(values, 16)


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, without the sign."""
    return (values >> bits) & (2 ** (32 - bits) - 1)
