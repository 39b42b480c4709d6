"""The record of a training's steps: each row once, whatever is killed, and no row written twice."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs
import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.training.journal import METRICS, Journal, count_attempts, read_row


@pytest.fixture(params=["file system", "store"])
def out(request: pytest.FixtureRequest, new_artifact: Callable[[str], Artifact]) -> Artifact:
    artifact = new_artifact("base_lm")
    if request.param == "store":
        Path(artifact.url).mkdir(parents=True)
        store = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("file")))
        artifact.__dict__["_fs_and_root"] = (store, artifact.url)
    return artifact


def begin(out: Artifact, resumed_step: int = 0) -> Journal:
    return Journal(out, "pretrain", num_steps=9, resumed_step=resumed_step, num_ranks=1)


def row(step: int) -> dict[str, Any]:
    numbers = dict.fromkeys(("loss_nats", "grad_norm", "lr", "tokens_per_s", "mem_gib", "data_wait_s", "eta_s"), 1.0)
    return {"step": step, "mfu": None, "wall_s": 0.5 * step, **numbers}


def record(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.add(row(step))


def recorded(out: Artifact) -> list[int]:
    return [json.loads(line)["step"] for line in out.read_bytes(METRICS).splitlines()]


def test_a_resumed_training_has_each_row_once(out: Artifact) -> None:
    journal = begin(out)
    record(journal, range(1, 4))
    journal.flush()  # with the checkpoint of step 3
    record(journal, range(4, 6))
    if out.is_local:  # killed while it wrote the sixth
        with open(out.path(METRICS), "a") as file:
            file.write('{"step": 6, "loss')
    journal = begin(out, resumed_step=3)
    assert recorded(out) == [1, 2, 3]
    assert journal.wall_s_before == 1.5
    assert count_attempts(out) == {"attempts": 2, "wasted_steps": 2 if out.is_local else 0}
    record(journal, range(4, 8))
    journal.flush()
    assert recorded(out) == [1, 2, 3, 4, 5, 6, 7]
    assert read_row(out, 7) == row(7)


def test_on_a_file_system_rows_are_there_at_once_and_the_file_is_never_written_anew(tmp_path: Path) -> None:
    out = Artifact("base_lm", str(tmp_path))
    journal = begin(out)
    file = Path(out.path(METRICS))
    inode = file.stat().st_ino
    for step in range(1, 4):
        journal.add(row(step))
        assert recorded(out) == list(range(1, step + 1))
        journal.flush()
    assert file.stat().st_ino == inode


def test_rows_that_found_no_room_are_on_record_once_there_is_some(tmp_path: Path) -> None:
    out = Artifact("base_lm", str(tmp_path))
    journal = begin(out)
    record(journal, range(1, 3))
    room = len(out.read_bytes(METRICS)) + 40  # for half a row
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        record(journal, range(3, 5))
        with pytest.raises(OSError, match="too large"):
            journal.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert len(out.read_bytes(METRICS)) == room
    journal.add(row(5))
    assert recorded(out) == [1, 2, 3, 4, 5]
