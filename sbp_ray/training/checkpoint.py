"""Distributed checkpoints: each rank writes its shards, and a marker written last says that all is there.

checkpoints/step-000100/    what torch.distributed.checkpoint wrote; readable by any number of ranks
checkpoints/step-000100/complete.json    {step, files: {name: bytes}}
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from sbp_ray.artifacts import Artifact

logger = logging.getLogger(__name__)

NUM_KEPT = 2
_FOLDER = "checkpoints"
_MARKER = "complete.json"


def save_checkpoint(out: Artifact, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Save the state after `step` updates, and delete all but the newest checkpoints. Called by every rank."""
    folder = f"{_FOLDER}/step-{step:06d}"
    if dist.get_rank() == 0:
        _remove(out, folder)  # what an attempt that was cut off left there
    dist.barrier()
    with _writable(out, folder) as path:
        dcp.save(_state(model, optimizer), checkpoint_id=path)
    dist.barrier()
    if dist.get_rank() == 0:
        out.write_json(f"{folder}/{_MARKER}", {"step": step, "files": _sizes(out, folder)})
        for _, old in _complete(out)[NUM_KEPT:]:
            _remove(out, old)
    dist.barrier()


def load_newest(out: Artifact, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore the newest complete checkpoint; returns its step, 0 when there is none. Called by every rank."""
    found: list[Any] = [_complete(out)[:1] if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)  # one rank looks, so that all load the same
    if not found[0]:
        return 0
    [(step, folder)] = found[0]
    state = _state(model, optimizer)
    dcp.load(state, checkpoint_id=out.local_copy(folder))
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return step


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def _complete(out: Artifact) -> list[tuple[int, str]]:
    """Step and folder of each checkpoint that has its marker, and files as long as it says; newest first."""
    selector = pafs.FileSelector(out.path(_FOLDER), allow_not_found=True)
    found = []
    for info in out.fs.get_file_info(selector):
        folder = f"{_FOLDER}/{info.base_name}"
        if not out.exists(f"{folder}/{_MARKER}"):
            continue
        marker = out.read_json(f"{folder}/{_MARKER}")
        if _sizes(out, folder) == marker["files"]:
            found.append((int(marker["step"]), folder))
        else:
            logger.warning(f"{out.path(folder)} is damaged and is not used")
    return sorted(found, reverse=True)


def _sizes(out: Artifact, folder: str) -> dict[str, int]:
    infos = out.fs.get_file_info(pafs.FileSelector(out.path(folder)))
    return {info.base_name: info.size for info in sorted(infos, key=lambda i: i.base_name) if info.base_name != _MARKER}


def _remove(out: Artifact, folder: str) -> None:
    if out.exists(f"{folder}/{_MARKER}"):
        out.fs.delete_file(out.path(f"{folder}/{_MARKER}"))  # first, so that a half-deleted one is not taken for whole
    if out.exists(folder):
        out.fs.delete_dir(out.path(folder))


@contextmanager
def _writable(out: Artifact, folder: str) -> Iterator[str]:
    """A local path for this rank's files: the folder itself, or a scratch one that is uploaded."""
    if out.is_local:
        Path(out.path(folder)).mkdir(parents=True, exist_ok=True)
        yield out.path(folder)
        return
    scratch = tempfile.mkdtemp(prefix="sbp_ray-checkpoint-")
    try:
        yield scratch
        pafs.copy_files(scratch, out.path(folder), destination_filesystem=out.fs)
    finally:
        shutil.rmtree(scratch)
