"""The export check: another implementation must give held-out tokens the NLL that the trained model gave them.

What passes is recorded in `checked.json`. Until then the artifact has no manifest, and no other stage reads it.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Dtype, TrainingConfig, TrainingResources
from sbp_ray.errors import Outcome, SbpError, call_for_outcome
from sbp_ray.training.devices import find_device
from sbp_ray.training.export import EXPORT_CHECK
from sbp_ray.training.tolerance import TOLERANCE, summarize
from sbp_ray.training.training_plan import MODEL_FOLDER

logger = logging.getLogger(__name__)


VLLM_HERE = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
"""Environment of vLLM in the checking process: no process more, and no sampler that is compiled first, by nvcc."""
_CHECKED = "checked.json"
_VLLM_SHARE = 0.92
"""Of the GPU's memory, as vLLM 0.29 has it."""
_LET_GO_S = 60.0
"""How long a process that has ended may still hold it."""


def check_export(stage: str, cfg: TrainingConfig, out: Artifact) -> dict[str, Any]:
    """Compare in a fresh worker of the cluster, or in this process under `in_process`; returns what was compared.

    Raises:
        SbpError: log-probabilities differ by more than `TOLERANCE`: the export is refused.
    """
    if out.exists(_CHECKED):
        return out.read_json(_CHECKED)
    num_tokens = sum(len(document["positions"]) for document in out.read_json(EXPORT_CHECK))
    if not num_tokens:
        raise SbpError(
            f"{stage}: the export is refused: no token to check it by: ingest more text, or longer documents"
        )
    by, tolerance = cfg.resources.export_check, TOLERANCE[cfg.settled_dtype]
    differences = _compare_in_worker(cfg, out)
    found, largest = summarize(differences), max(differences)
    if not (found.mean <= tolerance.mean and found.high <= tolerance.high):
        raise SbpError(
            f"{stage}: the export is refused: {by} gives held-out tokens log-probabilities {found.mean:.2g} nats from "
            f"the trained model's on average and up to {found.high:.2g}, more than {tolerance.mean} or "
            f"{tolerance.high} in {cfg.dtype}: --redo {stage}, and report it if it happens again"
        )
    checked = {
        "by": by,
        "tokens": num_tokens,
        "mean_difference_nats": found.mean,
        "high_difference_nats": found.high,
        "max_difference_nats": largest,
        "tolerance_nats": tolerance.high,
    }
    out.write_json(_CHECKED, checked)
    logger.info(
        f"{stage} | export checked by {by}: {num_tokens:,} held-out tokens, largest difference {largest:.1e} nats"
    )
    return checked


def _compare_in_worker(cfg: TrainingConfig, out: Artifact) -> list[float]:
    """In a fresh worker of the cluster, or here where the training was here."""
    resources = cfg.resources
    arguments = out, resources, cfg.settled_dtype
    if resources.in_process:
        return find_differences(*arguments)
    import ray

    task = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_calls=1)(call_for_outcome)
    outcome: Outcome = ray.get(task.options(runtime_env={"env_vars": VLLM_HERE}).remote(_compare_and_end, *arguments))
    found: list[float] = outcome.get()
    return found


def _compare_and_end(out: Artifact, resources: TrainingResources, dtype: Dtype) -> list[float]:
    """Compare in a process that ends after it, without the hundred lines in which Triton's bindings then list what they
    have not freed."""
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
    return find_differences(out, resources, dtype)


def find_differences(out: Artifact, resources: TrainingResources, dtype: Dtype) -> list[float]:
    """Nats between the exported model's log-probability and the trained model's, of each token that was kept for it."""
    documents = out.read_json(EXPORT_CHECK)
    folder = out.local_copy(MODEL_FOLDER)
    ids = [document["input_ids"] for document in documents]
    if resources.export_check == "vllm":
        if resources.num_gpus:
            _wait_for_memory()
        found = _ask_vllm(folder, ids, dtype)
    else:
        found = _ask_transformers(folder, ids, dtype, find_device(resources))
    return [
        abs(nll[position] - expected)
        for document, nll in zip(documents, found, strict=True)
        for position, expected in zip(document["positions"], document["nll_nats"], strict=True)
    ]


def _wait_for_memory() -> None:
    """Until the training's process has let go of the GPU: vLLM refuses to begin on less than its share.

    Raises:
        SbpError: something else keeps it.
    """
    began = time.monotonic()
    while True:
        free, total = torch.cuda.mem_get_info()
        if free >= _VLLM_SHARE * total:
            return
        if time.monotonic() - began > _LET_GO_S:
            raise SbpError(
                f"{free / 2**30:.1f} of the GPU's {total / 2**30:.1f} GiB are free, and vLLM wants {_VLLM_SHARE:.0%} "
                "to check the export: end what else runs there, or set resources.export_check=transformers"
            )
        time.sleep(0.5)


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
