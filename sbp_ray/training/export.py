"""From sharded weights to the Hugging Face folder that transformers and vLLM load.

model/               safetensors, config, tokenizer, card
export_check.json    held-out documents, and the trained model's NLL of each of their tokens: for the export check
exported.json        written last

No rank holds the whole model: it is written in files of 4 GiB, each by another rank, which gathers their tensors one
after the other. A model of less is one file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from sbp_ray.agreement import EXPORT_CHECK, ScoredDocument
from sbp_ray.artifacts import Artifact
from sbp_ray.errors import one_line
from sbp_ray.mixing import Address, Source
from sbp_ray.text.tokenizer import load_tokenizer
from sbp_ray.training.batches import Batch
from sbp_ray.training.loss import SupervisedLanguageModel
from sbp_ray.training.rows import RowReader
from sbp_ray.training.sharding import failing_together
from sbp_ray.training.training_plan import MODEL_FOLDER, TrainingPlan

FILE_BYTES = 4 << 30
"""Tensors in one file of weights; also what a rank holds in host memory while it exports."""
_CHECKED_ROWS = 4
_MARKER = "exported.json"
_INDEX = "model.safetensors.index.json"
_USE = {
    "tune": "It is given `<bos>`, a document and `<|related|>`, and writes a document that is related to it.",
    "pretrain": "It continues text, and was not taught to follow instructions.",
}


def is_exported(out: Artifact) -> bool:
    """Whether `model/` is there and whole: nothing is left to train."""
    return out.exists(_MARKER)


def export_model(
    plan: TrainingPlan, model: SupervisedLanguageModel, reader: RowReader, device: torch.device, step: int
) -> None:
    """Commit `model/`, after what it says of held-out text. Called by every rank.

    Args:
        step: after which the weights are so, which is noted.

    Raises:
        SbpError: there is no room for it.
    """
    documents = _score_held_out(plan, model, reader, device)
    state = model.state_dict()  # sharded and in float32, which the parameters are not after a forward pass
    weights: dict[str, torch.Tensor] = {name.removeprefix("lm."): state[name] for name, _ in model.named_parameters()}
    files = split_weights({name: weight.numel() * weight.element_size() for name, weight in weights.items()})
    is_first, where = dist.get_rank() == 0, plan.out.path(MODEL_FOLDER)
    with failing_together(where):
        if is_first:
            plan.out.write_json(EXPORT_CHECK, documents)
            _write_config(plan.out, plan.tokenizer, model.lm.config)
    for name, tensors in _gather_files(weights, files):
        with failing_together(where):
            if name:
                _write_tensors(plan.out, f"{MODEL_FOLDER}/{name}", tensors)
    with failing_together(where):
        if is_first:
            total = {"total_size": sum(weight.numel() * weight.element_size() for weight in weights.values())}
            if len(files) > 1:
                places = {name: file for file, names in files.items() for name in names}
                plan.out.write_json(f"{MODEL_FOLDER}/{_INDEX}", {"metadata": total, "weight_map": places})
            card = _describe_model(plan, sum(weight.numel() for weight in weights.values()), step)
            plan.out.write_bytes(f"{MODEL_FOLDER}/README.md", card.encode())
            plan.out.write_json(_MARKER, {"step": step})


def split_weights(num_bytes: dict[str, int]) -> dict[str, list[str]]:
    """The tensors of each file, by its name, in the order given: as many as `FILE_BYTES` hold, but at least one."""
    parts: list[list[str]] = [[]]
    filled = 0
    for name, size in num_bytes.items():
        if parts[-1] and filled + size > FILE_BYTES:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    if len(parts) == 1:
        return {"model.safetensors": parts[0]}
    return {f"model-{number:05d}-of-{len(parts):05d}.safetensors": part for number, part in enumerate(parts, start=1)}


def _gather_files(
    weights: dict[str, torch.Tensor], files: dict[str, list[str]]
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """The files in rounds of one for each rank: name and tensors of the rank's own, or an empty name."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    for first in range(0, len(files), num_ranks):
        own, tensors = "", dict[str, torch.Tensor]()
        for writer, (file, names) in enumerate(islice(files.items(), first, first + num_ranks)):
            own = file if writer == rank else own
            for name in names:
                weight = weights[name]
                whole = weight.full_tensor() if isinstance(weight, DTensor) else weight  # on every rank
                if writer == rank:
                    tensors[name] = whole.cpu()
        yield own, tensors


def read_exported_step(out: Artifact) -> int:
    """The step whose weights `model/` holds."""
    return int(out.read_json(_MARKER)["step"])


def list_held_out(source: Source, num_rows: int) -> list[Address | None]:
    """The first rows of a split, as many as there are."""
    everything = (
        Address(source.name, 0, shard, position)
        for shard, rows in enumerate(source.shard_rows)
        for position in range(rows)
    )
    return list(islice(everything, num_rows))


@torch.no_grad()
def _score_held_out(
    plan: TrainingPlan, model: SupervisedLanguageModel, reader: RowReader, device: torch.device
) -> list[ScoredDocument]:
    """Documents of held-out rows (of training rows where nothing is held out), with the NLL of each supervised token.

    All ranks pass the same rows, since FSDP needs all of them.
    """
    addresses = list_held_out(plan.validation, _CHECKED_ROWS)
    if not addresses:
        addresses = [plan.mixture.address(row) for row in range(min(_CHECKED_ROWS, plan.mixture.total_rows))]
    model.eval()
    documents: list[ScoredDocument] = []
    for batch in reader.batches(addresses, 1):
        placed = batch.to(device)
        nll_S = model(placed.input_ids_BT, placed.targets, placed.documents).tolist()
        documents += _split_by_document(batch, nll_S, longest=model.lm.config.max_position_embeddings - 1)
    return documents


def _split_by_document(batch: Batch, nll_S: list[float], longest: int) -> list[ScoredDocument]:
    """`{input_ids, positions, nll_nats}` of each document of one row that has supervised tokens, cut to `longest`
    tokens: vLLM wants room for one more."""
    [ids] = batch.input_ids_BT.tolist()
    supervised = {position + 1 for position in batch.targets.position_S.tolist()}
    nll = iter(nll_S)
    documents: list[ScoredDocument] = []
    for start, end in pairwise(batch.documents.bounds_N1.tolist()):
        positions = [position for position in range(end - start) if start + position in supervised]
        nll_nats = list(islice(nll, len(positions)))
        num_kept = sum(position < longest for position in positions)
        if num_kept:
            documents.append(
                {
                    "input_ids": ids[start:end][:longest],
                    "positions": positions[:num_kept],
                    "nll_nats": nll_nats[:num_kept],
                }
            )
    return documents


def _write_config(out: Artifact, tokenizer: Artifact, config: Any) -> None:
    """All of `model/` but the weights, in place of what an interrupted attempt left there."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    with tempfile.TemporaryDirectory(prefix="sbp_ray-export-") as folder:
        lm.save_pretrained(folder, state_dict={})
        load_tokenizer(tokenizer.local_copy("tokenizer")).save_pretrained(folder)
        out.commit_folder(Path(folder), MODEL_FOLDER)


def _write_tensors(out: Artifact, name: str, tensors: dict[str, torch.Tensor]) -> None:
    with out.writing(name) as stream:
        try:
            save_file(tensors, stream.name, metadata={"format": "pt"})
        except SafetensorError as error:  # how it says that a disk is full
            raise OSError(one_line(error)) from error


def _describe_model(plan: TrainingPlan, num_parameters: int, step: int) -> str:
    """The card: what a reader must know before using the model, whose weights are so after `step`."""
    base = plan.base.url if isinstance(plan.base, Artifact) else plan.base
    settings = {
        name: value
        for name, value in plan.config.model_dump(mode="json").items()
        if isinstance(value, int | float | str) and name != "base"
    }
    facts = {
        "stage": plan.stage,
        "parameters": f"{num_parameters:,}",
        "weights after step": f"{step:,} of {plan.num_steps:,}",
        "begun from": base or "random weights",
        **settings,
    }
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "# A language model made by Synthetic Bootstrapped Pretraining",
        "",
        _USE["tune" if plan.stage.startswith("tune") else "pretrain"],
        "sbp_ray made it (arXiv 2509.15248). It knows what its corpus says, and repeats it unchecked.",
        "Its licence follows from the corpus' and from that of the weights that it was begun from.",
        "",
        "| what | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
    ]
    return "\n".join([*lines, ""])
