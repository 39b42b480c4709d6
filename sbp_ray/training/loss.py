"""The loss: summed cross-entropy of the supervised tokens, without ever holding all logits.

Legend: B rows, T tokens a row, S supervised tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from sbp_ray.attention import Documents
from sbp_ray.nll import States, Targets, count_chunk, mean_probability, nll_of_each
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
        is_loss_compiled: bool = False,
    ) -> None:
        """`teachers`: causal LMs without gradients; no part of this module, so nobody shards, trains or saves them."""
        super().__init__()
        self._teachers, self._teacher_share = tuple(teachers), teacher_share
        self.lm = lm
        self._z_loss = z_loss
        self._is_loss_compiled = is_loss_compiled
        self._dropout = Dropout(lm.model.layers, dropout)

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        targets: Targets,
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
            targets: never the first token of a document.
            documents: of the rows; tokens see the past of their own document only.
            shown_ids_BT: what is seen of the past, where it is not `input_ids_BT`, which stay the targets.
            keys_B: int32, what the rows' dropout follows from; needed while training with dropout.
        """
        self._dropout.keys_B = keys_B
        # Its length is another in each batch: compiled layers must not be compiled anew for it.
        torch._dynamo.maybe_mark_dynamic(documents.bounds_N1, 0)

        def states(lm: Any, ids_BT: torch.Tensor) -> States:
            hidden_BTD = lm.model(
                input_ids=ids_BT,
                position_ids=documents.positions_BT,
                attention_mask=None,  # a mask would be quadratic; the bounds say the same
                use_cache=False,
                bounds_N1=documents.bounds_N1,
            ).last_hidden_state
            return States(hidden_BTD[targets.row_S, targets.position_S], lm.lm_head.weight)

        own = states(self.lm, input_ids_BT if shown_ids_BT is None else shown_ids_BT)
        if not torch.is_grad_enabled():
            return nll_of_each(*own, targets.token_S)
        if not self._teachers:
            return sum_cross_entropy(*own, targets.token_S, self._z_loss, is_compiled=self._is_loss_compiled)
        with torch.no_grad():
            taught = Teaching([states(teacher, input_ids_BT) for teacher in self._teachers], self._teacher_share)
        return sum_cross_entropy(*own, targets.token_S, self._z_loss, taught=taught)


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
    *,
    is_compiled: bool = False,
) -> torch.Tensor:
    """Sums over the targets, float32 [2]: the NLL under `hidden @ weight.T`, and NLL + z_loss x log-partition².

    With teachers the second has, instead of the NLL, the cross-entropy to their mean probabilities for their share.
    Logits live a chunk of so many tokens at a time. Compiled, a GPU reads and writes them three times and not eleven.

    Raises:
        ValueError: the shapes disagree.
    """
    if hidden_SD.shape[0] != target_S.shape[0] or hidden_SD.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"hidden {hidden_SD.shape}, weight {weight_VD.shape} and targets {target_S.shape} disagree")
    return _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_SD, weight_VD, target_S, z_loss, chunk or count_chunk(weight_VD), taught, is_compiled
    )


class _OfChunk(NamedTuple):
    """What a chunk's logits come to: sums, and the gradient by the logits, in their type."""

    nll: torch.Tensor
    squared_log_z: torch.Tensor
    taught: torch.Tensor
    """Cross-entropy to the teachers' probabilities."""
    grad_SV: torch.Tensor


def _differentiate(
    logits_SV: torch.Tensor,
    target_S1: torch.Tensor,
    z_loss: float,
    teacher_SV: torch.Tensor | None = None,
    share: float = 0.0,
) -> _OfChunk:
    exact_SV = logits_SV.float()
    picked_S1 = exact_SV.gather(1, target_S1)
    log_p_SV = torch.log_softmax(exact_SV, dim=1)
    nll_S1 = -log_p_SV.gather(1, target_S1)
    log_z_S1 = picked_S1 + nll_S1
    taught = nll_S1.new_zeros(()) if teacher_SV is None else -(teacher_SV * log_p_SV).sum()
    grad_SV = log_p_SV.exp_()  # p; the gradient is p (1 + 2 z log Z) - [target], of which teachers take a share
    if z_loss:
        grad_SV.mul_(1 + 2 * z_loss * log_z_S1)
    grad_SV.scatter_add_(1, target_S1, torch.full_like(nll_S1, share - 1))
    if teacher_SV is not None:
        grad_SV.sub_(teacher_SV, alpha=share)
    return _OfChunk(nll_S1.sum(), log_z_S1.square().sum(), taught, grad_SV.to(logits_SV.dtype))


@functools.cache
def _compiled() -> Callable[..., _OfChunk]:
    return torch.compile(_differentiate, dynamic=True)  # the last chunk is shorter, in each batch by another length


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
        is_compiled: bool,
    ) -> torch.Tensor:
        differentiate = _compiled() if is_compiled else _differentiate
        nll, z_total, taught_total = hidden_SD.new_zeros(3, dtype=torch.float32)
        share = taught.share if taught else 0.0
        hidden_grad_SD = torch.empty_like(hidden_SD)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, len(target_S), chunk):
            part = slice(start, start + chunk)
            teacher_SV = None
            if taught:
                hidden_KSD, weight_KVD = zip(*((hidden[part], weight) for hidden, weight in taught.states), strict=True)
                teacher_SV = mean_probability(hidden_KSD, weight_KVD)
            of_chunk = differentiate(hidden_SD[part] @ weight_VD.T, target_S[part, None], z_loss, teacher_SV, share)
            nll += of_chunk.nll
            z_total += of_chunk.squared_log_z
            taught_total += of_chunk.taught
            grad_SV = of_chunk.grad_SV
            torch.mm(grad_SV, weight_VD, out=hidden_grad_SD[part])
            weight_grad_VD += grad_SV.T @ hidden_SD[part]
        ctx.save_for_backward(hidden_grad_SD, weight_grad_VD)
        ctx.weight_dtype = weight_VD.dtype
        return torch.stack([nll, (1 - share) * nll + share * taught_total + z_loss * z_total])

    @staticmethod
    def backward(ctx: Any, grad_2: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Of the second sum; the first one is for reading."""
        hidden_grad_SD, weight_grad_VD = ctx.saved_tensors
        grad = grad_2[1]
        # In float32: bfloat16 would round the scale, one over the tokens, by up to 0.4 %, and on this path only.
        scaled_SD = (hidden_grad_SD.float() * grad).to(hidden_grad_SD.dtype)
        return scaled_SD, (weight_grad_VD * grad).to(ctx.weight_dtype), None, None, None, None, None
