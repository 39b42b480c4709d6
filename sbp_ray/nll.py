"""Negative log-likelihood of supervised tokens, without ever holding all logits.

Of several models together, an ensemble, it is that of their mean probability.

Legend: B rows, T tokens a row, S supervised tokens, D hidden width, V vocabulary, K models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

LOGITS_AT_ONCE = {"cuda": 2**27, "cpu": 2**21}
"""512 MiB in float32; 8 MiB, which stays in a core's caches."""


class States(NamedTuple):
    """What one model's next token follows from."""

    hidden_SD: torch.Tensor
    weight_VD: torch.Tensor
    """The output projection."""


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
    return torch.cat([cross_entropy(_logits(hidden, weight_VD), token, reduction="none") for hidden, token in parts])


def _logits(hidden_SD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    """In float32. A GPU can keep the sums of its bfloat16 products, whose rounding is 0.06 nats for a logit of 16."""
    if hidden_SD.is_cuda and hidden_SD.dtype == torch.bfloat16:
        return torch.mm(hidden_SD, weight_VD.T, out_dtype=torch.float32)
    return (hidden_SD @ weight_VD.T).float()


def nll_of_ensemble(states: Sequence[States], token_S: torch.Tensor) -> torch.Tensor:
    """NLL of the tokens by the mean of the models' probabilities, float32 [S]; of one model its own."""
    nll_KS = torch.stack([nll_of_each(hidden_SD, weight_VD, token_S) for hidden_SD, weight_VD in states])
    return math.log(len(states)) - torch.logsumexp(-nll_KS, dim=0)


def top_of_ensemble(states: Sequence[States]) -> torch.Tensor:
    """The token that is likeliest by the mean of the models' probabilities, int64 [S]."""
    chunk = min(count_chunk(weight_VD) for _, weight_VD in states)
    parts = zip(*(hidden_SD.split(chunk) for hidden_SD, _ in states), strict=True)
    weights = [weight_VD for _, weight_VD in states]
    return torch.cat([mean_probability(part, weights).argmax(dim=-1) for part in parts])


def mean_probability(hidden_KSD: Sequence[torch.Tensor], weight_KVD: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each token after each state, float32 [S, V]: all logits are held, so for a chunk at a time."""
    pairs = zip(hidden_KSD, weight_KVD, strict=True)
    each = (_logits(hidden_SD, weight_VD).softmax(dim=-1) for hidden_SD, weight_VD in pairs)
    return reduce(torch.add, each) / len(weight_KVD)


def count_chunk(weight_VD: torch.Tensor) -> int:
    """Tokens whose logits are held at once."""
    return max(1, LOGITS_AT_ONCE[weight_VD.device.type] // weight_VD.shape[0])
