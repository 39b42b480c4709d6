"""Negative log-likelihood of texts under a model: held-out perplexity, conditional gain, multiple choice.

Legend: B rows, T tokens a row, S supervised tokens, D hidden width, V vocabulary, N examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from sbp_ray.config import Resources
from sbp_ray.text.pair_format import Example

_LOGITS_AT_ONCE = 2**25  # 128 MiB of float32


def load_model(folder: Path, resources: Resources) -> Any:
    """A Hugging Face causal LM in float32, on the GPU where the worker has one, with the worker's threads."""
    if resources.num_threads:
        torch.set_num_threads(resources.num_threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.to("cuda" if resources.num_gpus else "cpu")


def sum_nll(model: Any, examples: Sequence[Example], *, batch_tokens: int) -> np.ndarray:
    """Summed NLL of each example's supervised tokens.

    Args:
        model: a Hugging Face causal LM, on the device to use.
        examples: scored independently of one another, in any order of lengths.
        batch_tokens: positions in a forward pass, padding included; a longer example goes alone.

    Returns:
        float64 [N], in nats; 0 for an example without supervised tokens.
    """
    nll_N = np.zeros(len(examples))
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for batch in _by_length(examples, batch_tokens):
            nll_N[batch] = _batch_nll(model, [examples[i] for i in batch])
    model.train(was_training)
    return nll_N


def _by_length(examples: Sequence[Example], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of examples of like length, so that little is padded: longest first, to meet memory's limit early."""
    batch: list[int] = []
    for index in sorted(range(len(examples)), key=lambda i: -len(examples[i].input_ids)):
        longest = len(examples[batch[0]].input_ids) if batch else 0
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _batch_nll(model: Any, examples: Sequence[Example]) -> np.ndarray:
    """float64 [B]. Padding stands right of the text, where causal attention never sees it."""
    longest = len(examples[0].input_ids)
    input_ids_BT = torch.zeros(len(examples), longest, dtype=torch.int64)
    loss_mask_BT = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        input_ids_BT[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        loss_mask_BT[row, : len(example.loss_mask)] = torch.tensor(example.loss_mask)
    input_ids_BT, loss_mask_BT = input_ids_BT.to(model.device), loss_mask_BT.to(model.device)
    hidden_BTD = model.get_decoder()(input_ids=input_ids_BT, use_cache=False).last_hidden_state
    row_S, position_S = loss_mask_BT[:, 1:].nonzero(as_tuple=True)  # of the token before the supervised one
    hidden_SD, target_S = hidden_BTD[row_S, position_S], input_ids_BT[row_S, position_S + 1]
    chunk = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    nll_B = torch.zeros(len(examples), dtype=torch.float64, device=model.device)
    for start in range(0, len(target_S), chunk):
        part = slice(start, start + chunk)
        nll_S = cross_entropy(model.lm_head(hidden_SD[part]).float(), target_S[part], reduction="none")
        nll_B.index_add_(0, row_S[part], nll_S.double())
    return nll_B.cpu().numpy()
