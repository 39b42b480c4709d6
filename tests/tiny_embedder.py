"""sentence-transformers models with random weights, small enough to make and run in a moment."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from sbp_ray.text.tokenizer import train_tokenizer

_TOKENIZER_TEXT = Path(__file__).read_text(encoding="utf-8")
_SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}


def _tokenizer(folder: Path, *, padding_side: str) -> int:
    """Save a byte-level tokenizer; returns the size of its vocabulary."""
    tokenizer: PreTrainedTokenizerFast = train_tokenizer([_TOKENIZER_TEXT], 320)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = padding_side
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def make_bert(folder: Path, dim: int = 16, seed: int = 0, spread: float = 0.02) -> str:
    """An encoder that pools the mean and does not normalise; the path to give as `embed.model`.

    Args:
        spread: of its weights, about zero. As small as by default, hardly anything follows from what is attended to.
    """
    torch.manual_seed(seed)
    vocab_size = _tokenizer(folder / "hf", padding_side="right")
    config = BertConfig(vocab_size=vocab_size, hidden_size=dim, initializer_range=spread, **_SHAPE)
    BertModel(config).save_pretrained(folder / "hf")
    modules = [Transformer(str(folder / "hf")), Pooling(dim, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return str(folder / "model")


def make_qwen3(folder: Path, dim: int = 32) -> str:
    """A decoder that pools its last token, pads on the left and puts a prompt first, as Qwen3-Embedding can."""
    torch.manual_seed(0)
    vocab_size = _tokenizer(folder / "hf", padding_side="left")
    config = Qwen3Config(vocab_size=vocab_size, hidden_size=dim, num_key_value_heads=1, head_dim=16, **_SHAPE)
    Qwen3Model(config).save_pretrained(folder / "hf")
    modules = [Transformer(str(folder / "hf")), Pooling(dim, "lasttoken"), Normalize()]
    prompts = {"document": "Represent this document: "}
    made = SentenceTransformer(modules=modules, device="cpu", prompts=prompts, default_prompt_name="document")
    made.save(str(folder / "model"))
    return str(folder / "model")
