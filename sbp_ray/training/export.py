"""From sharded weights to the Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from sbp_ray.artifacts import Artifact
from sbp_ray.text.tokenizer import load_tokenizer
from sbp_ray.training.loss import GradedLanguageModel
from sbp_ray.training.plan import TrainingPlan

MODEL_FOLDER = "model"
_MARKER = "exported.json"


def is_exported(out: Artifact) -> bool:
    """Whether `model/` is there and whole: nothing is left to train."""
    return out.exists(_MARKER)


def export_model(plan: TrainingPlan, model: GradedLanguageModel) -> None:
    """Gather the weights on rank 0 and commit `model/`: safetensors, config, tokenizer. Called by every rank."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)  # empty but on rank 0
    if dist.get_rank() == 0:
        _write(plan.out, plan.tokenizer, model.lm.config, {k.removeprefix("lm."): v for k, v in weights.items()})
    dist.barrier()


def _write(out: Artifact, tokenizer: Artifact, config: Any, weights: dict[str, torch.Tensor]) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    lm.load_state_dict(weights, assign=True)
    lm.tie_weights()
    with tempfile.TemporaryDirectory(prefix="sbp_ray-export-") as folder:
        lm.save_pretrained(folder)
        load_tokenizer(tokenizer.local_copy("tokenizer")).save_pretrained(folder)
        out.commit_folder(Path(folder), MODEL_FOLDER)
    out.write_json(_MARKER, {"parameters": lm.num_parameters()})
