"""From sharded weights to the Hugging Face folder that transformers and vLLM load.

model/               safetensors, config, tokenizer
export_check.json    held-out documents, and the trained model's NLL of each of their tokens: for `export_check.py`
exported.json        written last
"""

from __future__ import annotations

import tempfile
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import one_line
from sbp_ray.mixing import Address, Source
from sbp_ray.text.tokenizer import load_tokenizer
from sbp_ray.training.loss import SupervisedLanguageModel
from sbp_ray.training.rows import Batch, RowReader
from sbp_ray.training.sharding import failing_together
from sbp_ray.training.training_plan import MODEL_FOLDER, TrainingPlan

EXPORT_CHECK = "export_check.json"
_CHECKED_ROWS = 4
_MARKER = "exported.json"


def is_exported(out: Artifact) -> bool:
    """Whether `model/` is there and whole: nothing is left to train."""
    return out.exists(_MARKER)


def export_model(
    plan: TrainingPlan, model: SupervisedLanguageModel, reader: RowReader, device: torch.device, step: int
) -> None:
    """Gather the weights on rank 0 and commit `model/`, after what it says of held-out text. Called by every rank.

    Args:
        step: after which the weights are so, which is noted.

    Raises:
        SbpError: there is no room for it.
    """
    documents = _said_of_each_token(plan, model, reader, device)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)  # empty but on rank 0
    with failing_together(plan.out.path(MODEL_FOLDER)):
        if dist.get_rank() == 0:
            plan.out.write_json(EXPORT_CHECK, documents)
            _write(plan.out, plan.tokenizer, model.lm.config, {k.removeprefix("lm."): v for k, v in weights.items()})
            plan.out.write_json(_MARKER, {"step": step})


def exported_step(out: Artifact) -> int:
    """The step whose weights `model/` holds."""
    return int(out.read_json(_MARKER)["step"])


def held_out_addresses(source: Source, num_rows: int) -> list[Address | None]:
    """The first rows of a split, as many as there are."""
    everything = (
        Address(source.name, 0, shard, position)
        for shard, rows in enumerate(source.shard_rows)
        for position in range(rows)
    )
    return list(islice(everything, num_rows))


@torch.no_grad()
def _said_of_each_token(
    plan: TrainingPlan, model: SupervisedLanguageModel, reader: RowReader, device: torch.device
) -> list[dict[str, Any]]:
    """Documents of held-out rows (of training rows where nothing is held out), with the NLL of each supervised token.

    All ranks pass the same rows, since FSDP needs all of them.
    """
    addresses = held_out_addresses(plan.validation, _CHECKED_ROWS)
    if not addresses:
        addresses = [plan.mixture.address(row) for row in range(min(_CHECKED_ROWS, plan.mixture.total_rows))]
    model.eval()
    documents = []
    for batch in reader.batches(addresses, 1):
        placed = batch.to(device)
        nll_S = model(placed.input_ids_BT, placed.loss_mask_BT, placed.documents).tolist()
        documents += _by_document(batch, nll_S, longest=model.lm.config.max_position_embeddings - 1)
    return documents


def _by_document(batch: Batch, nll_S: list[float], longest: int) -> list[dict[str, Any]]:
    """`{input_ids, positions, nll_nats}` of each document of one row that has supervised tokens, cut to `longest`
    tokens: vLLM wants room for one more."""
    [ids], [supervised] = batch.input_ids_BT.tolist(), batch.loss_mask_BT.tolist()
    nll = iter(nll_S)
    documents = []
    for start, end in pairwise(batch.documents.bounds_N1.tolist()):
        positions = [position for position in range(end - start) if supervised[start + position]]
        said = list(islice(nll, len(positions)))
        num_kept = sum(position < longest for position in positions)
        if num_kept:
            document = {"input_ids": ids[start:end][:longest]}
            documents.append(document | {"positions": positions[:num_kept], "nll_nats": said[:num_kept]})
    return documents


def _write(out: Artifact, tokenizer: Artifact, config: Any, weights: dict[str, torch.Tensor]) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    lm.load_state_dict(weights, assign=True)
    lm.tie_weights()
    with tempfile.TemporaryDirectory(prefix="sbp_ray-export-") as folder:
        try:
            lm.save_pretrained(folder)
        except SafetensorError as error:  # how it says that a disk is full
            raise OSError(one_line(error)) from error
        load_tokenizer(tokenizer.local_copy("tokenizer")).save_pretrained(folder)
        out.commit_folder(Path(folder), MODEL_FOLDER)
