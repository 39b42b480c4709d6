"""The export check: another implementation must give held-out tokens the NLL that the trained model gave them.

What passes is recorded in `checked.json`. Until then the artifact has no manifest, and no other stage reads it.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Dtype, TrainingConfig, TrainingResources
from sbp_ray.errors import SbpError, call_for_outcome
from sbp_ray.training.export import EXPORT_CHECK
from sbp_ray.training.sharding import find_device
from sbp_ray.training.training_plan import MODEL_FOLDER

logger = logging.getLogger(__name__)

TOLERANCE_NATS: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 0.25}
"""Largest difference of a token's log-probability. bfloat16 keeps 8 bits, and two orders of sums differ by a few."""
_CHECKED = "checked.json"


def check_export(stage: str, cfg: TrainingConfig, out: Artifact) -> dict[str, Any]:
    """Compare in a fresh worker of the cluster, or in this process under `in_process`; returns what was compared.

    Raises:
        SbpError: a token's log-probability differs by more than `TOLERANCE_NATS`: the export is refused.
    """
    if out.exists(_CHECKED):
        return out.read_json(_CHECKED)
    num_tokens = sum(len(document["positions"]) for document in out.read_json(EXPORT_CHECK))
    if not num_tokens:
        raise SbpError(
            f"{stage}: the export is refused: no token to check it by: ingest more text, or longer documents"
        )
    by, tolerance = cfg.resources.export_check, TOLERANCE_NATS[cfg.dtype]
    difference = _compare_in_worker(cfg, out)
    if not difference <= tolerance:
        raise SbpError(
            f"{stage}: the export is refused: {by} gives held-out tokens log-probabilities up to {difference:.2g} nats "
            f"from the trained model's, more than {tolerance} in {cfg.dtype}: --redo {stage}, and report it if it "
            "happens again"
        )
    checked = {"by": by, "tokens": num_tokens, "max_difference_nats": difference, "tolerance_nats": tolerance}
    out.write_json(_CHECKED, checked)
    logger.info(
        f"{stage} | export checked by {by}: {num_tokens:,} held-out tokens, largest difference {difference:.1e} nats"
    )
    return checked


def _compare_in_worker(cfg: TrainingConfig, out: Artifact) -> float:
    """In a fresh worker of the cluster, or here where the training was here."""
    resources = cfg.resources
    arguments = out, resources, cfg.dtype
    if resources.in_process:
        return find_largest_difference(*arguments)
    import ray

    task = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_calls=1)(call_for_outcome)
    quiet = {"env_vars": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}}
    return float(ray.get(task.options(runtime_env=quiet).remote(_compare_and_end, *arguments)).get())


def _compare_and_end(out: Artifact, resources: TrainingResources, dtype: Dtype) -> float:
    """Compare in a process that ends after it, without the hundred lines in which Triton's bindings then list what they
    have not freed."""
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
    return find_largest_difference(out, resources, dtype)


def find_largest_difference(out: Artifact, resources: TrainingResources, dtype: Dtype) -> float:
    """Nats between the exported model's log-probability of a token and the trained model's, where they differ most.

    Infinite where either of them is not a number.
    """
    documents = out.read_json(EXPORT_CHECK)
    folder = out.local_copy(MODEL_FOLDER)
    ids = [document["input_ids"] for document in documents]
    if resources.export_check == "vllm":
        found = _ask_vllm(folder, ids, dtype)
    else:
        found = _ask_transformers(folder, ids, dtype, find_device(resources))
    differences = [
        abs(nll[position] - expected)
        for document, nll in zip(documents, found, strict=True)
        for position, expected in zip(document["positions"], document["nll_nats"], strict=True)
    ]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf  # max alone would pass over NaN


def _ask_transformers(
    folder: Path, documents: list[list[int]], dtype: Dtype, device: torch.device
) -> list[list[float]]:
    """NLL of each token of each document; 0 for the first, which has no context. By none of the training's code."""
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    found = []
    with torch.inference_mode():
        for ids in documents:
            ids_1T = torch.tensor([ids], device=device)
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
            found.append([0.0, *cross_entropy(logits_TV, ids_1T[0, 1:], reduction="none").tolist()])
    return found


def _ask_vllm(folder: Path, documents: list[list[int]], dtype: Dtype) -> list[list[float]]:
    """The same from vLLM, in this process, which it leaves in no state for anything else."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # read on import; GiB
    from vllm import LLM, SamplingParams, TokensPrompt

    longest = max(map(len, documents))
    llm = LLM(
        str(folder),
        dtype=dtype,
        max_model_len=longest + 1,  # vLLM must write a token
        max_num_seqs=8,
        enforce_eager=True,
        disable_log_stats=True,
    )
    scoring = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    outputs = llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in documents], scoring, use_tqdm=False)
    found = []
    for ids, output in zip(documents, outputs, strict=True):
        later = zip(ids[1:], output.prompt_logprobs[1:], strict=True)
        found.append([0.0, *(-candidates[token].logprob for token, candidates in later)])
    return found
