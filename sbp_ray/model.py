"""The architecture: `Qwen3ForCausalLM` of a `ModelConfig`, its size and its cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sbp_ray.config import ModelConfig
from sbp_ray.errors import SbpError, one_line

if TYPE_CHECKING:
    from transformers import Qwen3Config, Qwen3ForCausalLM

VOCAB_MULTIPLE = 64
"""Rows of the embedding are rounded up to a multiple of this, as tensor cores like them."""
SUPPORTED = ("llama", "qwen2", "qwen3")
"""Architectures that training can go on from: decoders whose layers attend through transformers' interface."""


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
    """Forward and backward FLOPs of one trained position, attention over a full causal row of `seq_len`."""
    return training_flops(model, vocab_size, 1, seq_len)


def training_flops(model: ModelConfig, vocab_size: int, num_tokens: int, attended: int) -> int:
    """Forward and backward FLOPs of so many tokens, whose documents' squared lengths add up to `attended`.

    6 for each token and parameter that is multiplied (the input embedding is looked up, not multiplied), plus
    attention's two products: 12 x layers x heads x head_dim x attended, halved because causal attention needs half of
    each square. What is computed twice to save memory does not count.
    """
    multiplied = _matrix_parameters(model) + vocab_size * model.hidden_size
    return 6 * multiplied * num_tokens + 6 * model.num_layers * model.num_heads * model.head_dim * attended


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


def load_base(path: str, vocab_size: int, special: tuple[int, int, int], seed: int) -> Any:
    """A float32 Hugging Face causal LM to go on from, with an embedding of at least `vocab_size` rows.

    Rows that it lacks (new special tokens) are drawn like fresh ones, the same for the same seed.

    Raises:
        SbpError: it cannot be loaded, or its architecture is not supported.
    """
    import torch
    from transformers import AutoModelForCausalLM

    read_base_shape(path)
    lm = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if lm.config.vocab_size < vocab_size:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lm.resize_token_embeddings(vocab_size, mean_resizing=False)
    lm.config.bos_token_id, lm.config.eos_token_id, _ = special
    return lm


def read_base_shape(path: str) -> tuple[ModelConfig, int]:
    """The shape of a Hugging Face causal LM, and its embedding's rows, from its config alone.

    Raises:
        SbpError: there is none, or its architecture is not supported.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise SbpError(
            f"{path}: no Hugging Face model can be loaded from there ({one_line(error)}): give a folder or a hub name"
        ) from None
    if config.model_type not in SUPPORTED:
        raise SbpError(f"{path}: {config.model_type} models are not supported: use one of {', '.join(SUPPORTED)}")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise SbpError(f"{path}: sliding-window attention is not supported: use a model with full attention")
    return shape_of(config), config.vocab_size


def shape_of(config: Any) -> ModelConfig:
    """A Hugging Face config as ours; what ours cannot say (biases, QK-norm) costs next to nothing."""
    heads = config.num_attention_heads
    return ModelConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        ffn_size=config.intermediate_size,
        max_positions=config.max_position_embeddings,
        tie_embeddings=config.tie_word_embeddings,
    )
