"""The export check: transformers must give held-out tokens the NLL that the trained model gave them.

What passes is recorded in `checked.json`. Until then the artifact has no manifest, and no other stage reads it. An
engine that serves the export is asked the same at its start: `engine/start_check.py`.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from sbp_ray.agreement import (
    CHECKED,
    EXPORT_CHECK,
    TOLERANCE,
    describe_excess,
    find_differences,
    is_within,
    summarize,
)
from sbp_ray.artifacts import Artifact
from sbp_ray.config import Dtype, TrainingConfig, TrainingResources
from sbp_ray.errors import Outcome, SbpError, call_for_outcome
from sbp_ray.training.devices import find_device
from sbp_ray.training.training_plan import MODEL_FOLDER

logger = logging.getLogger(__name__)


def check_export(stage: str, cfg: TrainingConfig, out: Artifact) -> dict[str, Any]:
    """Compare in this process, or where it was trained on GPUs in a fresh worker; returns what was compared.

    Raises:
        SbpError: log-probabilities differ by more than `TOLERANCE`: the export is refused.
    """
    if out.exists(CHECKED):
        return out.read_json(CHECKED)
    num_tokens = sum(len(document["positions"]) for document in out.read_json(EXPORT_CHECK))
    if not num_tokens:
        raise SbpError(
            f"{stage}: the export is refused: no token to check it by: ingest more text, or longer documents"
        )
    dtype = cfg.settled_dtype
    tolerance = TOLERANCE[dtype]
    differences = _compare(cfg, out)
    found, largest = summarize(differences), max(differences)
    if not is_within(found, tolerance):
        raise SbpError(
            f"{stage}: the export is refused: transformers {describe_excess(found, tolerance, dtype)}: --redo {stage}, "
            "and report it if it happens again"
        )
    checked = {
        "tokens": num_tokens,
        "mean_difference_nats": found.mean,
        "high_difference_nats": found.high,
        "max_difference_nats": largest,
        "tolerance_nats": tolerance.high,
    }
    out.write_json(CHECKED, checked)
    logger.info(
        f"{stage} | export checked by transformers: {num_tokens:,} held-out tokens, largest difference "
        f"{largest:.1e} nats"
    )
    return checked


def _compare(cfg: TrainingConfig, out: Artifact) -> list[float]:
    resources = cfg.resources
    arguments = out, resources, cfg.settled_dtype
    if resources.in_process or not resources.num_gpus:  # what CPUs have trained is soon read
        return ask_transformers(*arguments)
    import ray

    task = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_calls=1)(call_for_outcome)
    outcome: Outcome = ray.get(task.remote(ask_transformers, *arguments))
    found: list[float] = outcome.get()
    return found


def ask_transformers(out: Artifact, resources: TrainingResources, dtype: Dtype) -> list[float]:
    """Nats between the exported model's log-probability and the trained model's, of each token that was kept for it.

    By none of the training's code.
    """
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    documents, device = out.read_json(EXPORT_CHECK), find_device(resources)
    folder = out.local_copy(MODEL_FOLDER)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    found = []
    with torch.inference_mode():
        for document in documents:
            ids_1T = torch.tensor([document["input_ids"]], device=device)
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
            # The first token has no context.
            found.append([0.0, *cross_entropy(logits_TV, ids_1T[0, 1:], reduction="none").tolist()])
    return find_differences(documents, found)
