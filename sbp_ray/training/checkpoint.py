"""Distributed checkpoints, written while training goes on; a marker written last says that all is there.

checkpoints/step-000100/    what torch.distributed.checkpoint wrote; readable by any number of ranks
checkpoints/step-000100/complete.json    {step, files: {name: bytes}, best: {step, loss_nats}}

Each rank writes its own part to where the artifact lies, and reads the parts it needs from there: no copy of a
checkpoint ever lies on a node's disk.

A save copies the state to host memory and returns. A thread then writes it, waits until every rank has written, and
commits the marker. The next save, or the end, waits for the thread: the work that a crash can cost is one interval and
what was trained on while its checkpoint was written.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.fs as pafs
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, StorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import SbpError, one_line
from sbp_ray.training.sharding import failing_together
from sbp_ray.training.store_checkpoint import StoreReader, StoreWriter

logger = logging.getLogger(__name__)

NUM_KEPT = 2
_FOLDER = "checkpoints"
_MARKER = "complete.json"


class Best(NamedTuple):
    """The step with the lowest loss on the development split so far. Its checkpoint is kept."""

    step: int
    loss_nats: float


class Checkpoints:
    """The checkpoints of one training run. Every method is called by every rank, at the same step."""

    best: Best | None = None
    """Known again after a resume, since each checkpoint's marker names it."""

    def __init__(
        self,
        out: Artifact,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        average: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """`average`: of the weights, by name; saved, and overwritten by what is loaded."""
        self._out, self._model, self._optimizer, self._average = out, model, optimizer, average
        self._group = dist.new_group(backend="gloo")  # the thread's own: its messages must not mix with the training's
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int) -> None:
        """Begin to save the state after `step` updates; an earlier save is finished first.

        Raises:
            SbpError: the earlier save failed, or this one cannot begin, on whichever rank.
        """
        self.wait()
        folder = _name_folder(step)
        with failing_together(self._out.path(folder), self._group):
            if dist.get_rank() == 0:
                _remove(self._out, folder)  # what an attempt that was cut off left there
        with failing_together(self._out.path(folder), self._group):
            writer = _make_writer(self._out, folder)
        written = dcp.async_save(self._state(), storage_writer=writer, process_group=self._group)
        assert isinstance(written, Future)  # the writer copies the state to host memory before it returns
        self._pending = self._thread.submit(self._commit, step, folder, written, self.best)

    def note_loss(self, step: int, loss_nats: float | None) -> bool:
        """Whether the development split's loss, where it was measured, is the lowest so far; of equals the first."""
        if loss_nats is None or (self.best is not None and self.best.loss_nats <= loss_nats):
            return False
        self.best = Best(step, loss_nats)
        return True

    def wait(self) -> None:
        """Return when nothing is being saved.

        Raises:
            SbpError: the save failed, on whichever rank; what was there before it is untouched.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let go of the thread, whatever became of its work."""
        self._thread.shutdown()

    def load_newest(self) -> int:
        """Restore the newest complete checkpoint; returns its step, 0 when there is none.

        Raises:
            SbpError: its tensors have other shapes than the model's.
        """
        found: list[Any] = [list_checkpoints(self._out)[:1] if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found, group=self._group)  # one rank looks, so that all load the same
        if not found[0]:
            return 0
        [(step, folder)] = found[0]
        self._load(folder)
        best = self._out.read_json(f"{folder}/{_MARKER}").get("best")
        self.best = Best(**best) if best else None
        return step

    def load_best(self, last_step: int) -> int:
        """Put the best weights in the place of the last; returns their step.

        Raises:
            SbpError: its checkpoint has been damaged or has gone.
        """
        if self.best is None or self.best.step == last_step:
            return last_step
        folder = _name_folder(self.best.step)
        is_whole = [dist.get_rank() == 0 and (self.best.step, folder) in list_checkpoints(self._out)]
        dist.broadcast_object_list(is_whole, group=self._group)
        if not is_whole[0]:
            raise SbpError(f"{self._out.path(folder)} was the best checkpoint and is not whole: --redo the stage")
        self._load(folder)
        return self.best.step

    def _load(self, folder: str) -> None:
        reader = _make_reader(self._out, folder)
        state = self._state()
        _refuse_other_shapes(self._out.path(folder), reader, state["model"])
        dcp.load(state, storage_reader=reader, process_group=self._group)
        set_state_dict(
            self._model, self._optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )

    def _state(self) -> dict[str, Any]:
        model_state, optimizer_state = get_state_dict(self._model, self._optimizer)
        average = {"average": self._average} if self._average else {}
        return {"model": model_state, "optimizer": optimizer_state, **average}

    def _commit(self, step: int, folder: str, written: Future[Any], best: Best | None) -> None:
        """In the thread: the marker, once all ranks' files are where they belong."""
        is_first = dist.get_rank() == 0
        try:
            with failing_together(self._out.path(folder), self._group):
                _finish_writing(written)
            with failing_together(self._out.path(folder), self._group):
                if is_first:
                    marker = {"step": step, "files": _list_sizes(self._out, folder), "best": best and best._asdict()}
                    self._out.write_json(f"{folder}/{_MARKER}", marker)
                    for number, old in list_checkpoints(self._out)[NUM_KEPT:]:
                        if best is None or number != best.step:
                            _remove(self._out, old)
        except SbpError:
            if is_first:
                _remove(self._out, folder)  # half a checkpoint is worth nothing, and the room is
            raise


def _name_folder(step: int) -> str:
    return f"{_FOLDER}/step-{step:06d}"


def _finish_writing(written: Future[Any]) -> None:
    """Raises OSError where it failed, on whichever rank."""
    try:
        written.result()
    except CheckpointException as error:
        raise OSError("; ".join(one_line(cause) for cause, _ in error.failures.values())) from error


def list_checkpoints(out: Artifact) -> list[tuple[int, str]]:
    """Step and folder of each checkpoint that has its marker, and files as long as it says; newest first."""
    selector = pafs.FileSelector(out.path(_FOLDER), allow_not_found=True)
    found = []
    for info in out.fs.get_file_info(selector):
        folder = f"{_FOLDER}/{info.base_name}"
        if not out.exists(f"{folder}/{_MARKER}"):
            continue
        marker = out.read_json(f"{folder}/{_MARKER}")
        if _list_sizes(out, folder) == marker["files"]:
            found.append((int(marker["step"]), folder))
        else:
            logger.warning(f"{out.path(folder)} is damaged and is not used")
    return sorted(found, reverse=True)


def _refuse_other_shapes(path: str, reader: StorageReader, model_state: dict[str, Any]) -> None:
    saved = reader.read_metadata().state_dict_metadata
    for name, tensor in model_state.items():
        entry = saved.get(f"model.{name}")
        shape = tuple(entry.size) if isinstance(entry, TensorStorageMetadata) else None
        if shape != tuple(tensor.shape):
            raise SbpError(
                f"{path}: the checkpoint holds {name} as {shape or 'nothing'}, the model as {tuple(tensor.shape)}: "
                "use a new run_dir, or --redo the stage"
            )


def _list_sizes(out: Artifact, folder: str) -> dict[str, int]:
    infos = out.fs.get_file_info(pafs.FileSelector(out.path(folder)))
    return {info.base_name: info.size for info in sorted(infos, key=lambda i: i.base_name) if info.base_name != _MARKER}


def _remove(out: Artifact, folder: str) -> None:
    if out.exists(f"{folder}/{_MARKER}"):
        out.fs.delete_file(out.path(f"{folder}/{_MARKER}"))  # first, so that a half-deleted one is not taken for whole
    if out.exists(folder):
        out.fs.delete_dir(out.path(folder))


def _make_writer(out: Artifact, folder: str) -> FileSystemWriter:
    if not out.is_local:
        return StoreWriter(out, folder)
    Path(out.path(folder)).mkdir(parents=True, exist_ok=True)
    return FileSystemWriter(out.path(folder))


def _make_reader(out: Artifact, folder: str) -> StorageReader:
    return FileSystemReader(out.path(folder)) if out.is_local else StoreReader(out, folder)
