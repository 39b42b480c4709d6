"""Cases of `gpu.py` that measure what comes before and after a training: embedding, searching, scoring.

On a CPU they run at a tiny size and measure nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_setting import SIZES, TINY, Setting, synchronize
from transformers import Qwen3Config, Qwen3Model

from sbp_ray.config import EmbedConfig
from sbp_ray.model import build_model
from sbp_ray.scoring import load_float32, sum_nll
from sbp_ray.text.pair_format import Example
from sbp_ray.text.tokenizer import train_tokenizer

Numbers = dict[str, Any]
_QWEN_06 = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
_QWEN_TINY = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
_WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they"


def embeds(setting: Setting) -> Numbers:
    """Texts of 828 tokens on average under a Qwen3 of 0.6 B random weights: ours, and `SentenceTransformer.encode`."""
    from sentence_transformers import SentenceTransformer

    from sbp_ray.embedder import Embedder

    rng = np.random.default_rng(0)
    words = np.array(_WORDS.split())
    lengths = np.clip(rng.lognormal(np.log(setting.pick(20, 700)) - 0.5, 1.0, setting.pick(8, 2000)), 4, 1000)
    texts = [" ".join(rng.choice(words, int(length))) for length in lengths]
    config = Qwen3Config(vocab_size=320, **setting.pick(_QWEN_TINY, _QWEN_06))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        Qwen3Model(config).save_pretrained(folder)
        tokenizer = train_tokenizer([_WORDS], 320)
        tokenizer.pad_token = tokenizer.eos_token  # which `encode` wants
        tokenizer.save_pretrained(folder)
        resources = {"num_gpus": setting.resources.num_gpus, "batch_tokens": setting.pick(256, 65_536)}
        ours = Embedder(EmbedConfig(model=folder, max_tokens=1024, resources=resources))  # type: ignore[arg-type]
        tokens = int(ours.tokenize(texts).num_tokens_N.sum())
        theirs = SentenceTransformer(folder, device=setting.device.type, model_kwargs={"dtype": torch.bfloat16})
        theirs.max_seq_length = 1024
        cases: dict[str, Callable[[], Any]] = {"ours": partial(ours, texts)}
        for size in (32, 256):
            cases[f"encode({size})"] = partial(theirs.encode, texts, batch_size=size, show_progress_bar=False)
        for name, work in cases.items():
            work()
            found[f"{name}, tokens/s"] = round(tokens / _seconds(setting, work))
    return {} if setting.is_tiny else found


def searches(setting: Setting) -> Numbers:
    """Exact neighbours by products and `topk` on the device, in blocks: what every other search must beat."""
    found = {}
    for num in setting.pick((500,), (100_000, 1_000_000)):
        for k in setting.pick((5,), (50, 200)):
            dim = setting.pick(32, 1024)
            vectors_ND = torch.nn.functional.normalize(torch.randn(num, dim, device=setting.device), dim=1).bfloat16()
            rows = setting.pick(100, min(num, 20_000))
            seconds = _seconds(setting, partial(_search_exactly, vectors_ND[:rows], vectors_ND, k))
            found[f"{num:,} x {dim}, k {k}, documents/s"] = round(rows / seconds)
    return {} if setting.is_tiny else found


def _search_exactly(query_QD: torch.Tensor, vectors_ND: torch.Tensor, k: int, block: int = 2048) -> torch.Tensor:
    parts = [(part_QD @ vectors_ND.T).topk(k, dim=1).indices for part_QD in query_QD.split(block)]
    return torch.cat(parts)


def scores(setting: Setting) -> Numbers:
    """Likelihoods of documents under 0.1 B parameters in float32."""
    rng = np.random.default_rng(0)
    shape = setting.pick(TINY, SIZES["0.1 B"])
    lengths = np.clip(rng.lognormal(np.log(setting.pick(20, 828)) - 0.5, 1.0, setting.pick(8, 500)), 4, 4096).astype(
        int
    )
    examples = [Example(rng.integers(3, 300, length).astype(np.int32), 1) for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        build_model(shape, setting.vocab_size, (0, 1, 2), 0).save_pretrained(folder)
        model = load_float32(Path(folder), setting.device.type)
        seconds = _seconds(setting, lambda: sum_nll(model, examples, batch_tokens=setting.pick(256, 65_536)))
    return {} if setting.is_tiny else {"tokens_per_s": round(lengths.sum() / seconds)}


def _seconds(setting: Setting, work: Callable[[], Any]) -> float:
    """Of the second run."""
    for _ in range(setting.pick(1, 2)):
        synchronize(setting.device)
        start = time.perf_counter()
        work()
        synchronize(setting.device)
    return time.perf_counter() - start


CASES: dict[str, Callable[[Setting], Numbers]] = {case.__name__: case for case in (embeds, searches, scores)}
