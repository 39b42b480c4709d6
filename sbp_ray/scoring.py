"""Negative log-likelihood of texts under a model: held-out perplexity, conditional gain, multiple choice.

Legend: B rows, T tokens a row, S supervised tokens, D hidden width (of a head in attention, H query heads, K key and
value heads), V vocabulary, N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.masking_utils import sdpa_mask

from sbp_ray.config import Resources
from sbp_ray.nll import States, Targets, find_targets, nll_of_ensemble, top_of_ensemble
from sbp_ray.text.packing import plan_batches
from sbp_ray.text.pair_format import Example

if TYPE_CHECKING:  # pyarrow
    from sbp_ray.artifacts import Artifact

EQUAL_HEADS = "sbp_equal_heads"


def load_model(folder: Path, resources: Resources) -> Any:
    """A Hugging Face causal LM in float32, on the GPU where the worker has one, with the worker's threads."""
    if resources.num_threads:
        torch.set_num_threads(resources.num_threads)
    return load_float32(folder, "cuda" if resources.num_gpus else "cpu")


def load_float32(folder: Path | str, device: str) -> Any:
    """A Hugging Face causal LM in float32 on the device.

    On a GPU, grouped heads in float32 leave PyTorch no kernel but the one that keeps all scores: 26 GB for 16 rows of
    4096 tokens under 24 heads. With keys and values repeated the memory-efficient kernel takes them.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if device.startswith("cuda"):
        AttentionInterface.register(EQUAL_HEADS, attend_with_equal_heads)
        AttentionMaskInterface.register(EQUAL_HEADS, sdpa_mask)
        model.set_attn_implementation(EQUAL_HEADS)
    return model.to(device)


def attend_with_equal_heads(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Hugging Face's attention interface. Returns [B, T, H, D]."""
    times = query_BHTD.shape[1] // key_BKTD.shape[1]
    key, value = (tensor.repeat_interleave(times, dim=1) for tensor in (key_BKTD, value_BKTD))
    is_causal = attention_mask is None and query_BHTD.shape[2] > 1  # one token more sees all that is cached
    mixed = scaled_dot_product_attention(
        query_BHTD, key, value, attn_mask=attention_mask, is_causal=is_causal, scale=scaling
    )
    return mixed.transpose(1, 2).contiguous(), None


def load_models(trained: Sequence[Artifact], resources: Resources) -> Any:
    """`model/` of a training artifact, or of several as an ensemble."""
    models = tuple(load_model(made.local_copy("model"), resources) for made in trained)
    return models[0] if len(models) == 1 else Ensemble(models)


class Ensemble(NamedTuple):
    """Models of one vocabulary, whose probabilities are averaged."""

    members: tuple[Any, ...]


class TokenScores(NamedTuple):
    """What a model makes of an example's supervised tokens."""

    nll_S: np.ndarray
    """float64, in nats."""
    is_top_S: np.ndarray
    """bool: no other token is likelier. Greedy decoding writes the tokens if and only if it is true of all."""


def sum_nll(
    model: Any, examples: Sequence[Example], *, batch_tokens: int, on_batch: Callable[[int], None] | None = None
) -> np.ndarray:
    """Summed NLL of each example's supervised tokens.

    Args:
        model: a Hugging Face causal LM, or an `Ensemble` of several, on the device to use.
        examples: scored independently of one another, in any order of lengths.
        batch_tokens: positions in a forward pass, padding included; a longer example goes alone.
        on_batch: gets the number of examples of each pass.

    Returns:
        float64 [N], in nats; 0 for an example without supervised tokens.
    """
    nll_N = np.zeros(len(examples))
    for batch, states, targets in _forward_batches(model, examples, batch_tokens):
        nll_S = nll_of_ensemble(states, targets.token_S).double()
        sum_B = torch.zeros(len(batch), dtype=torch.float64, device=nll_S.device)
        nll_N[batch] = sum_B.index_add_(0, targets.row_S, nll_S).cpu().numpy()
        if on_batch:
            on_batch(len(batch))
    return nll_N


def score_tokens(model: Any, examples: Sequence[Example], *, batch_tokens: int) -> list[TokenScores]:
    """Score each supervised token of each example; the arguments are those of `sum_nll`."""
    found: dict[int, TokenScores] = {}
    for batch, states, targets in _forward_batches(model, examples, batch_tokens):
        nll_S = nll_of_ensemble(states, targets.token_S).double().cpu().numpy()
        is_top_S = (top_of_ensemble(states) == targets.token_S).cpu().numpy()
        row_S = targets.row_S.cpu().numpy()
        found |= {
            place: TokenScores(nll_S[row_S == row], is_top_S[row_S == row]) for row, place in enumerate(batch.tolist())
        }
    return [found[place] for place in range(len(examples))]


def _forward_batches(
    model: Any, examples: Sequence[Example], batch_tokens: int
) -> Iterator[tuple[np.ndarray, list[States], Targets]]:
    """The places of each batch's examples, each model's states that predict their supervised tokens, and these."""
    num_tokens_N = np.array([len(example.input_ids) for example in examples], np.int64)
    models = model.members if isinstance(model, Ensemble) else (model,)
    was_training = [one.training for one in models]
    for one in models:
        one.eval()
    with torch.inference_mode():
        for batch in plan_batches(num_tokens_N, batch_tokens):
            yield batch, *_forward(models, [examples[i] for i in batch])
    for one, before in zip(models, was_training, strict=True):
        one.train(before)


def _forward(models: Sequence[Any], examples: Sequence[Example]) -> tuple[list[States], Targets]:
    """Padding stands right of the text, where causal attention never sees it."""
    longest = len(examples[0].input_ids)  # which comes first
    input_ids_BT = torch.zeros(len(examples), longest, dtype=torch.int64)
    loss_mask_BT = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        input_ids_BT[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        loss_mask_BT[row, : len(example.loss_mask)] = torch.tensor(example.loss_mask)
    device = models[0].device
    input_ids_BT, loss_mask_BT = input_ids_BT.to(device), loss_mask_BT.to(device)
    targets = find_targets(input_ids_BT, loss_mask_BT)
    states = []
    for model in models:
        hidden_BTD = model.get_decoder()(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        states.append(States(hidden_BTD[targets.row_S, targets.position_S], model.lm_head.weight))
    return states, targets
