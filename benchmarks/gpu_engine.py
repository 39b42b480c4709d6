"""Cases of `gpu.py` for machines with vLLM: an engine starts without a compiler, and a seed's text is its own.

Not part of `--piece all`'s bare machine: without vLLM, and on a CPU, they are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu_setting import Setting, Skip

from sbp_ray.model import build_model
from sbp_ray.text.tokenizer import train_tokenizer


def writes(setting: Setting) -> dict[str, Any]:
    """Seconds to the first text and tokens/s of 0.1 B random weights, in the environment and with the arguments that
    our engines have; and whether a sample is the same alone and among others."""
    if setting.is_tiny or importlib.util.find_spec("vllm") is None:
        raise Skip("no vLLM for GPUs here")
    from sbp_ray.engine.deploy import quiet_environment

    os.environ.update(quiet_environment() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    from vllm import LLM, SamplingParams, TokensPrompt

    rng = np.random.default_rng(0)
    prompts = [TokensPrompt(prompt_token_ids=rng.integers(3, 300, 256).tolist()) for _ in range(1024)]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        build_model(setting.shape, setting.vocab_size, (0, 1, 2), 0).save_pretrained(folder)
        train_tokenizer(["a few words"], 300).save_pretrained(folder)
        graphs = {"max_cudagraph_capture_size": 1024}
        llm = LLM(folder, dtype="bfloat16", max_model_len=1024, max_num_seqs=1024, compilation_config=graphs)
    seeded = [SamplingParams(max_tokens=256, top_p=0.9, seed=seed, ignore_eos=True) for seed in range(len(prompts))]

    def write(number: int) -> list[list[int]]:
        outputs = llm.generate(prompts[:number], seeded[:number], use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    alone = write(1)
    start_s = time.perf_counter() - start
    began = time.perf_counter()
    together = write(len(prompts))
    seconds = time.perf_counter() - began
    some = {number: write(number) for number in (8, 256)}
    same = {
        number: float(np.mean([text == other for text, other in zip(texts, together[:number], strict=True)]))
        for number, texts in some.items()
    }
    return {
        "has_nvcc": shutil.which("nvcc") is not None or Path("/usr/local/cuda/bin/nvcc").exists(),
        "start_s": round(start_s, 1),
        "tokens_per_s": round(256 * len(prompts) / seconds),
        "alone_is_the_same": alone[0] == together[0],
        "share_the_same": same,
    }


CASES: dict[str, Callable[[Setting], dict[str, Any]]] = {"writes": writes}
