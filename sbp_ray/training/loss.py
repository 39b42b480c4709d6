"""The loss: summed cross-entropy of the supervised tokens, without ever holding all logits.

Legend: B rows, T tokens a row, S supervised tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from sbp_ray.nll import States, count_chunk, find_targets, mean_probability, nll_of_each
from sbp_ray.training.attention import Documents
from sbp_ray.training.dropout import Dropout


class SupervisedLanguageModel(torch.nn.Module):
    """A causal LM whose forward is the loss, so that FSDP gathers the output projection for it too."""

    def __init__(
        self,
        lm: Any,
        z_loss: float = 0.0,
        dropout: float = 0.0,
        *,
        teachers: Sequence[Any] = (),
        teacher_share: float = 0.0,
    ) -> None:
        """
        Args:
            teachers: causal LMs without gradients; no part of this module, so that nobody shards, trains or saves them.
        """
        super().__init__()
        self._teachers, self._teacher_share = tuple(teachers), teacher_share
        self.lm = lm
        self._z_loss = z_loss
        self._dropout = Dropout(lm.model.layers, dropout)

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        loss_mask_BT: torch.Tensor,
        documents: Documents,
        shown_ids_BT: torch.Tensor | None = None,
        keys_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sums over the supervised tokens, float32 [2]: their NLL in nats, and that with the z-loss, to be minimised.

        Sums, not means: ranks and micro-batches hold different numbers of supervised tokens, so the caller divides
        once, by the global count. Without gradients it returns the NLL of each supervised token instead, float32 [S] in
        the order of rows and positions.

        Args:
            input_ids_BT: int64.
            loss_mask_BT: bool; True where the token is a target. The first token of a document must be False.
            documents: of the rows; tokens see the past of their own document only.
            shown_ids_BT: what is seen of the past, where it is not `input_ids_BT`, which stay the targets.
            keys_B: int32, what the rows' dropout follows from; needed while training with dropout.
        """
        self._dropout.keys_B = keys_B
        # Its length is another in each batch: compiled layers must not be compiled anew for it.
        torch._dynamo.maybe_mark_dynamic(documents.bounds_N1, 0)
        row_S, position_S, target_S = find_targets(input_ids_BT, loss_mask_BT)

        def states(lm: Any, ids_BT: torch.Tensor) -> States:
            hidden_BTD = lm.model(
                input_ids=ids_BT,
                position_ids=documents.positions_BT,
                attention_mask=None,  # a mask would be quadratic; the bounds say the same
                use_cache=False,
                bounds_N1=documents.bounds_N1,
            ).last_hidden_state
            return States(hidden_BTD[row_S, position_S], lm.lm_head.weight)

        own = states(self.lm, input_ids_BT if shown_ids_BT is None else shown_ids_BT)
        if not torch.is_grad_enabled():
            return nll_of_each(*own, target_S)
        with torch.no_grad():
            taught = Teaching([states(teacher, input_ids_BT) for teacher in self._teachers], self._teacher_share)
        return sum_cross_entropy(*own, target_S, self._z_loss, taught=taught if self._teachers else None)


class Teaching(NamedTuple):
    """What other models say of the same next tokens."""

    states: Sequence[States]
    share: float
    """Weight of their mean probabilities; the tokens themselves have the rest."""


def sum_cross_entropy(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor,
    target_S: torch.Tensor,
    z_loss: float = 0.0,
    chunk: int | None = None,
    taught: Teaching | None = None,
) -> torch.Tensor:
    """Sums over the targets, float32 [2]: the NLL under `hidden @ weight.T`, and NLL + z_loss x log-partition².

    With teachers the second has, instead of the NLL, the cross-entropy to their mean probabilities for their share.
    Logits live a chunk of so many tokens at a time.

    Raises:
        ValueError: the shapes disagree.
    """
    if hidden_SD.shape[0] != target_S.shape[0] or hidden_SD.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"hidden {hidden_SD.shape}, weight {weight_VD.shape} and targets {target_S.shape} disagree")
    return _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_SD, weight_VD, target_S, z_loss, chunk or count_chunk(weight_VD), taught
    )


class _SummedCrossEntropy(torch.autograd.Function):
    """Takes the gradients in the forward pass, where a chunk's logits are at hand: nothing is computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: torch.Tensor,
        weight_VD: torch.Tensor,
        target_S: torch.Tensor,
        z_loss: float,
        chunk: int,
        taught: Teaching | None,
    ) -> torch.Tensor:
        nll, z_total, taught_total = hidden_SD.new_zeros(3, dtype=torch.float32)
        share = taught.share if taught else 0.0
        hidden_grad_SD = torch.empty_like(hidden_SD)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, len(target_S), chunk):
            part = slice(start, start + chunk)
            logits_SV = (hidden_SD[part] @ weight_VD.T).float()
            target_S1 = target_S[part, None]
            picked_S1 = logits_SV.gather(1, target_S1)
            log_p_SV = torch.log_softmax(logits_SV, dim=1)
            nll_S1 = -log_p_SV.gather(1, target_S1)
            log_z_S1 = picked_S1 + nll_S1
            nll += nll_S1.sum()
            z_total += log_z_S1.square().sum()
            teacher_SV = None
            if taught:
                hidden_KSD, weight_KVD = zip(*((hidden[part], weight) for hidden, weight in taught.states), strict=True)
                teacher_SV = mean_probability(hidden_KSD, weight_KVD)
                taught_total -= (teacher_SV * log_p_SV).sum()
            grad_SV = log_p_SV.exp_()  # p; the gradient is p (1 + 2 z log Z) - [target], of which teachers take a share
            if z_loss:
                grad_SV.mul_(1 + 2 * z_loss * log_z_S1)
            grad_SV.scatter_add_(1, target_S1, torch.full_like(nll_S1, share - 1))
            if teacher_SV is not None:
                grad_SV.sub_(teacher_SV, alpha=share)
            grad_SV = grad_SV.to(hidden_SD.dtype)
            torch.mm(grad_SV, weight_VD, out=hidden_grad_SD[part])
            weight_grad_VD += grad_SV.T @ hidden_SD[part]
        ctx.save_for_backward(hidden_grad_SD, weight_grad_VD)
        ctx.weight_dtype = weight_VD.dtype
        return torch.stack([nll, (1 - share) * nll + share * taught_total + z_loss * z_total])

    @staticmethod
    def backward(ctx: Any, grad_2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None, None]:  # type: ignore[override]
        """Of the second sum; the first one is for reading."""
        hidden_grad_SD, weight_grad_VD = ctx.saved_tensors
        grad = grad_2[1]
        # In float32: bfloat16 would round the scale, one over the tokens, by up to 0.4 %, and on this path only.
        scaled_SD = (hidden_grad_SD.float() * grad).to(hidden_grad_SD.dtype)
        return scaled_SD, (weight_grad_VD * grad).to(ctx.weight_dtype), None, None, None, None
