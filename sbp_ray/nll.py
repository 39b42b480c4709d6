"""Negative log-likelihood of supervised tokens, without ever holding all logits.

Legend: B rows, T tokens a row, S supervised tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

_LOGITS_AT_ONCE = {"cuda": 2**27, "cpu": 2**21}
"""512 MiB in float32; 8 MiB, which stays in a core's caches."""


class Targets(NamedTuple):
    """Where supervised tokens are predicted, in the order of rows and positions."""

    row_S: torch.Tensor
    position_S: torch.Tensor
    """Of the token before the supervised one."""
    token_S: torch.Tensor


def find_targets(input_ids_BT: torch.Tensor, loss_mask_BT: torch.Tensor) -> Targets:
    """The supervised tokens of a batch; the first of a row, which nothing predicts, is none."""
    row_S, position_S = loss_mask_BT[:, 1:].nonzero(as_tuple=True)
    return Targets(row_S, position_S, input_ids_BT[row_S, position_S + 1])


def nll_of_each(hidden_SD: torch.Tensor, weight_VD: torch.Tensor, token_S: torch.Tensor) -> torch.Tensor:
    """NLL of the tokens under `hidden @ weight.T`, float32 [S]; logits live a chunk at a time."""
    chunk = count_chunk(weight_VD)
    parts = zip(hidden_SD.split(chunk), token_S.split(chunk), strict=True)
    return torch.cat(
        [cross_entropy((hidden @ weight_VD.T).float(), token, reduction="none") for hidden, token in parts]
    )


def top_of_each(hidden_SD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    """The likeliest token after each state, int64 [S]."""
    chunk = count_chunk(weight_VD)
    return torch.cat([(hidden @ weight_VD.T).argmax(dim=-1) for hidden in hidden_SD.split(chunk)])


def count_chunk(weight_VD: torch.Tensor) -> int:
    """Tokens whose logits are held at once."""
    return max(1, _LOGITS_AT_ONCE[weight_VD.device.type] // weight_VD.shape[0])
