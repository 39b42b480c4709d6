"""The loss: summed cross-entropy of the graded tokens, without ever holding all logits.

Legend: B rows, T tokens a row, G graded tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sbp_ray.training.attention import Documents

_LOGITS_AT_ONCE = {"cuda": 2**27, "cpu": 2**21}  # 512 MiB in float32; 8 MiB, which stays in a core's caches


class GradedLanguageModel(torch.nn.Module):
    """A causal LM whose forward is the loss, so that FSDP gathers the output projection for it too."""

    def __init__(self, lm: Any, z_loss: float = 0.0) -> None:
        super().__init__()
        self.lm = lm
        self._z_loss = z_loss

    def forward(self, input_ids_BT: torch.Tensor, loss_mask_BT: torch.Tensor, documents: Documents) -> torch.Tensor:
        """Sums over the graded tokens, float32 [2]: their NLL in nats, and that with the z-loss, to be minimised.

        Sums, not means: ranks and micro-batches hold different numbers of graded tokens, so the caller divides once,
        by the global count. Without gradients it returns the NLL of each graded token instead, float32 [G] in the order
        of rows and positions.

        Args:
            input_ids_BT: int64.
            loss_mask_BT: bool; True where the token is a target. The first token of a document must be False.
            documents: of the rows; tokens see the past of their own document only.
        """
        # Its length is another in each batch: compiled layers must not be compiled anew for it.
        torch._dynamo.maybe_mark_dynamic(documents.bounds_N1, 0)
        hidden_BTD = self.lm.model(
            input_ids=input_ids_BT,
            position_ids=documents.positions_BT,
            attention_mask=None,  # a mask would be quadratic; the bounds say the same
            use_cache=False,
            bounds_N1=documents.bounds_N1,
        ).last_hidden_state
        row_G, position_G = loss_mask_BT[:, 1:].nonzero(as_tuple=True)  # of the token before the graded one
        hidden_GD = hidden_BTD[row_G, position_G]
        target_G = input_ids_BT[row_G, position_G + 1]
        if torch.is_grad_enabled():
            return summed_cross_entropy(hidden_GD, self.lm.lm_head.weight, target_G, self._z_loss)
        return nll_of_each(hidden_GD, self.lm.lm_head.weight, target_G)


def nll_of_each(hidden_GD: torch.Tensor, weight_VD: torch.Tensor, target_G: torch.Tensor) -> torch.Tensor:
    """NLL of the targets under `hidden @ weight.T`, float32 [G]; logits live a chunk at a time."""
    parts = zip(hidden_GD.split(_chunk(weight_VD)), target_G.split(_chunk(weight_VD)), strict=True)
    nll = [cross_entropy((hidden @ weight_VD.T).float(), target, reduction="none") for hidden, target in parts]
    return torch.cat(nll)


def summed_cross_entropy(
    hidden_GD: torch.Tensor,
    weight_VD: torch.Tensor,
    target_G: torch.Tensor,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> torch.Tensor:
    """Sums over the targets, float32 [2]: the NLL under `hidden @ weight.T`, and NLL + z_loss x log-partition².

    Logits live a chunk of so many tokens at a time.

    Raises:
        ValueError: the shapes disagree.
    """
    if hidden_GD.shape[0] != target_G.shape[0] or hidden_GD.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"hidden {hidden_GD.shape}, weight {weight_VD.shape} and targets {target_G.shape} disagree")
    return _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_GD, weight_VD, target_G, z_loss, chunk or _chunk(weight_VD)
    )


def _chunk(weight_VD: torch.Tensor) -> int:
    return max(1, _LOGITS_AT_ONCE[weight_VD.device.type] // weight_VD.shape[0])


class _SummedCrossEntropy(torch.autograd.Function):
    """Takes the gradients in the forward pass, where a chunk's logits are at hand: nothing is computed twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden_GD: torch.Tensor, weight_VD: torch.Tensor, target_G: torch.Tensor, z_loss: float, chunk: int
    ) -> torch.Tensor:
        nll, z_total = hidden_GD.new_zeros(2, dtype=torch.float32)
        hidden_grad_GD = torch.empty_like(hidden_GD)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, len(target_G), chunk):
            part = slice(start, start + chunk)
            logits_GV = (hidden_GD[part] @ weight_VD.T).float()
            target_G1 = target_G[part, None]
            picked_G1 = logits_GV.gather(1, target_G1)
            log_p_GV = torch.log_softmax(logits_GV, dim=1)
            nll_G1 = -log_p_GV.gather(1, target_G1)
            log_z_G1 = picked_G1 + nll_G1
            nll += nll_G1.sum()
            z_total += log_z_G1.square().sum()
            grad_GV = log_p_GV.exp_()  # p; the gradient is p (1 + 2 z log Z) - [target]
            if z_loss:
                grad_GV.mul_(1 + 2 * z_loss * log_z_G1)
            grad_GV.scatter_add_(1, target_G1, -torch.ones_like(nll_G1))
            grad_GV = grad_GV.to(hidden_GD.dtype)
            torch.mm(grad_GV, weight_VD, out=hidden_grad_GD[part])
            weight_grad_VD += grad_GV.T @ hidden_GD[part]
        ctx.save_for_backward(hidden_grad_GD, weight_grad_VD)
        ctx.weight_dtype = weight_VD.dtype
        return torch.stack([nll, nll + z_loss * z_total])

    @staticmethod
    def backward(ctx: Any, grad_2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:  # type: ignore[override]
        """Of the second sum; the first one is for reading."""
        hidden_grad_GD, weight_grad_VD = ctx.saved_tensors
        grad = grad_2[1]
        # In float32: bfloat16 would round the scale, one over the tokens, by up to 0.4 %, and on this path only.
        scaled_GD = (hidden_grad_GD.float() * grad).to(hidden_grad_GD.dtype)
        return scaled_GD, (weight_grad_VD * grad).to(ctx.weight_dtype), None, None, None
