"""Attention within documents: a packed row is computed as if each of its documents stood alone.

Legend: B rows, T tokens a row, H query heads, K key and value heads, D head width, N documents of the batch.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

DOCUMENT_ATTENTION = "sbp_documents"
VARLEN_DTYPES = (torch.bfloat16, torch.float16)
"""What PyTorch's kernel for documents of any length computes in."""
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
"""torch 2.11 shares keys between queries' heads without being told, and does not know the word."""


class Documents(NamedTuple):
    """Where documents begin in a batch of packed rows."""

    positions_BT: torch.Tensor
    """int64; starts again at 0 with each document."""
    bounds_N1: torch.Tensor
    """int32 [N + 1]: starts of the documents in the flattened batch, and its length."""


def find_documents(document_ids_BT: torch.Tensor) -> Documents:
    """Documents are runs of one id within a row; padding is a document of its own."""
    index_T = torch.arange(document_ids_BT.shape[1])
    is_first_BT = torch.ones_like(document_ids_BT, dtype=torch.bool)
    is_first_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    start_BT = torch.where(is_first_BT, index_T, 0).cummax(dim=1).values
    starts = is_first_BT.flatten().nonzero().squeeze(1)
    bounds_N1 = torch.cat([starts, torch.tensor([document_ids_BT.numel()])]).int()
    return Documents(index_T - start_BT, bounds_N1)


def _attend(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    bounds_N1: torch.Tensor,
    scaling: float,
    longest: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Hugging Face's attention interface. Returns [B, T, H, D].

    Args:
        module: tokens see the past only, unless it is an encoder's, whose `is_causal` is False.
        longest: no document is longer. By default the row: a number that varies would have layers compiled anew.
    """
    assert attention_mask is None, "documents are parted by their bounds"
    rows, seq_len = query_BHTD.shape[0], query_BHTD.shape[2]
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query_BHTD, key_BKTD, value_BKTD))
    if query.is_cuda and query.dtype in VARLEN_DTYPES:
        mixed: Any = varlen_attn(  # a tensor: the log-sum-exp beside it was not asked for
            query,
            key,
            value,
            bounds_N1,
            bounds_N1,
            longest or seq_len,
            longest or seq_len,
            scale=scaling,
            window_size=(-1, 0) if module.is_causal else (-1, -1),
            **_GROUPED,
        )
    else:
        mixed = _attend_one_by_one(query, key, value, bounds_N1, scaling, module.is_causal)
    return mixed.unflatten(0, (rows, seq_len)), None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds_N1: torch.Tensor,
    scaling: float,
    is_causal: bool,
) -> torch.Tensor:
    """[B x T, H, D]. On a CPU a call for each document beats one call with a mask over the whole row's square, and
    float32 beats bfloat16, by 8 to 27 % of a training step: its kernel there was not made for it. On a GPU, where this
    is for float32, keys and values are repeated: of grouped heads PyTorch would keep all scores."""
    lengths = bounds_N1.diff().tolist()
    is_on_cpu = query.device.type == "cpu"
    exact = torch.float32 if is_on_cpu else query.dtype
    if not is_on_cpu:
        each = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(each, dim=1) for tensor in (key, value))
    parts = [tensor.to(exact).transpose(0, 1).split(lengths, dim=1) for tensor in (query, key, value)]
    mixed = [
        scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=is_causal, scale=scaling, enable_gqa=is_on_cpu
        )[0]
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(mixed, dim=1).transpose(0, 1).to(query.dtype)


def attend_within_documents(model: Any) -> None:
    """Make a Hugging Face model use the bounds that its forward is then given; its saved config is not affected."""
    AttentionInterface.register(DOCUMENT_ATTENTION, _attend)
    model.set_attn_implementation(DOCUMENT_ATTENTION)
