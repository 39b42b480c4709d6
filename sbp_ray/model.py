"""The architecture: `Qwen3ForCausalLM` of a `ModelConfig`, its size and its cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sbp_ray.config import ModelConfig
from sbp_ray.errors import SbpError

if TYPE_CHECKING:
    from transformers import Qwen3Config, Qwen3ForCausalLM

VOCAB_MULTIPLE = 64  # matrix shapes that tensor cores like


def padded_vocab_size(model: ModelConfig, num_tokens: int) -> int:
    """Rows of the embedding for a tokenizer of `num_tokens`.

    Raises:
        SbpError: `model.vocab_size` is set and smaller than the tokenizer.
    """
    if model.vocab_size is None:
        return -(-num_tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if model.vocab_size < num_tokens:
        raise SbpError(
            f"model.vocab_size={model.vocab_size} is smaller than the tokenizer ({num_tokens} tokens): "
            "raise it, or leave it out to follow the tokenizer"
        )
    return model.vocab_size


def num_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Trainable parameters, by arithmetic alone."""
    return (
        _matrix_parameters(model)
        + _norm_parameters(model)
        + vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    )


def flops_per_token(model: ModelConfig, vocab_size: int, seq_len: int) -> int:
    """Forward and backward FLOPs of one trained position, attention over a full causal row of `seq_len`.

    6 for each parameter that is multiplied (the input embedding is looked up, not multiplied), plus attention's two
    products: 12 x layers x heads x head_dim x seq_len, halved because causal attention needs half of the square.
    """
    multiplied = _matrix_parameters(model) + vocab_size * model.hidden_size
    return 6 * multiplied + 6 * model.num_layers * model.num_heads * model.head_dim * seq_len


def _matrix_parameters(model: ModelConfig) -> int:
    attention = model.hidden_size * model.head_dim * (2 * model.num_heads + 2 * model.num_kv_heads)
    mlp = 3 * model.hidden_size * model.ffn_size
    return model.num_layers * (attention + mlp)


def _norm_parameters(model: ModelConfig) -> int:
    in_layer = 2 * model.hidden_size + 2 * model.head_dim  # before attention, before the MLP, QK-norm
    return model.num_layers * in_layer + model.hidden_size


def qwen3_config(model: ModelConfig, vocab_size: int, special: tuple[int, int, int]) -> Qwen3Config:
    """The Hugging Face config; `special` is (bos, eos, related)."""
    from transformers import Qwen3Config

    bos, eos, _ = special
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_embeddings,
        initializer_range=math.sqrt(2 / (5 * model.hidden_size)),
        bos_token_id=bos,
        eos_token_id=eos,
    )


def build_model(model: ModelConfig, vocab_size: int, special: tuple[int, int, int], seed: int) -> Qwen3ForCausalLM:
    """A float32 model with fresh weights, the same for the same seed; leaves the global random state alone."""
    import torch
    from transformers import Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(qwen3_config(model, vocab_size, special)).float()
