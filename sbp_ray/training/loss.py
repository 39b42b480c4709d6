"""The loss: summed cross-entropy of the graded tokens, without ever holding all logits.

Legend: B rows, T tokens a row, G graded tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sbp_ray.training.attention import Documents

_LOGITS_AT_ONCE = 2**27  # 512 MiB in float32


class GradedLanguageModel(torch.nn.Module):
    """A causal LM whose forward is the loss, so that FSDP gathers the output projection for it too."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, input_ids_BT: torch.Tensor, loss_mask_BT: torch.Tensor, documents: Documents) -> torch.Tensor:
        """Sum of the graded tokens' NLL, a float32 scalar in nats.

        A sum, not a mean: ranks and micro-batches hold different numbers of graded tokens, so the caller divides once,
        by the global count.

        Args:
            input_ids_BT: int64.
            loss_mask_BT: bool; True where the token is a target. The first token of a document must be False.
            documents: of the rows; tokens see the past of their own document only.
        """
        hidden_BTD = self.lm.model(
            input_ids=input_ids_BT,
            position_ids=documents.positions_BT,
            attention_mask={"full_attention": None},  # masks would be quadratic; the bounds say the same
            use_cache=False,
            bounds_N1=documents.bounds_N1,
            longest=documents.longest,
        ).last_hidden_state
        row_G, position_G = loss_mask_BT[:, 1:].nonzero(as_tuple=True)  # of the token before the graded one
        hidden_GD = hidden_BTD[row_G, position_G]
        return summed_cross_entropy(hidden_GD, self.lm.lm_head.weight, input_ids_BT[row_G, position_G + 1])


def summed_cross_entropy(
    hidden_GD: torch.Tensor, weight_VD: torch.Tensor, targets_G: torch.Tensor, logits_at_once: int = _LOGITS_AT_ONCE
) -> torch.Tensor:
    """Sum of the cross-entropies of `hidden @ weight.T`, a float32 scalar in nats; logits live a chunk at a time.

    Raises:
        ValueError: the shapes disagree.
    """
    if hidden_GD.shape[0] != targets_G.shape[0] or hidden_GD.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"hidden {hidden_GD.shape}, weight {weight_VD.shape} and targets {targets_G.shape} disagree")
    chunk = max(1, logits_at_once // weight_VD.shape[0])
    if not torch.is_grad_enabled():
        total = hidden_GD.new_zeros((), dtype=torch.float32)
        for hidden, targets in zip(hidden_GD.split(chunk), targets_G.split(chunk), strict=True):
            total += cross_entropy((hidden @ weight_VD.T).float(), targets, reduction="sum")
        return total
    return _SummedCrossEntropy.apply(hidden_GD, weight_VD, targets_G, chunk)  # type: ignore[no-untyped-call]


class _SummedCrossEntropy(torch.autograd.Function):
    """Takes the gradients in the forward pass, where a chunk's logits are at hand: nothing is computed twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden_GD: torch.Tensor, weight_VD: torch.Tensor, targets_G: torch.Tensor, chunk: int
    ) -> torch.Tensor:
        total = hidden_GD.new_zeros((), dtype=torch.float32)
        hidden_grad_GD = torch.empty_like(hidden_GD)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, len(targets_G), chunk):
            part = slice(start, start + chunk)
            log_p_GV = torch.log_softmax((hidden_GD[part] @ weight_VD.T).float(), dim=-1)
            target_G1 = targets_G[part, None]
            total -= log_p_GV.gather(1, target_G1).sum()
            logits_grad_GV = log_p_GV.exp_()
            logits_grad_GV.scatter_add_(1, target_G1, -torch.ones_like(target_G1, dtype=torch.float32))
            logits_grad_GV = logits_grad_GV.to(hidden_GD.dtype)
            torch.mm(logits_grad_GV, weight_VD, out=hidden_grad_GD[part])
            weight_grad_VD += logits_grad_GV.T @ hidden_GD[part]
        ctx.save_for_backward(hidden_grad_GD, weight_grad_VD)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:  # type: ignore[override]
        hidden_grad_GD, weight_grad_VD = ctx.saved_tensors
        return hidden_grad_GD * grad.to(hidden_grad_GD.dtype), (weight_grad_VD * grad).to(ctx.weight_dtype), None, None
