"""Checkpoints of an artifact that is not on a local file system: each rank reads its part, and no node holds a copy."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.fs as pafs
import pytest
from ranks import run_ranks
from tiny import tiny_plan

from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.training import loop
from sbp_ray.training.checkpoint import list_checkpoints
from sbp_ray.training.store_checkpoint import StoreReader

NUM_RANKS = 2


def on_a_store(folder: Path) -> Artifact:
    """An artifact whose files are reached as those of an object store are: through streams, not by their paths."""
    artifact = Artifact("base_lm", f"store://{folder}")
    artifact.__dict__["_fs_and_root"] = (pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("file"))), str(folder))
    assert not artifact.is_local
    return artifact


def read_through(plan: Any, stop_after: int) -> int:
    """Bytes of tensors that this rank read while it resumed and trained."""
    read: list[int] = []
    cut = StoreReader._slice_file

    def counted(self: StoreReader, file: Any, place: Any) -> Any:
        read.append(place.length)
        return cut(self, file, place)

    StoreReader._slice_file = counted  # type: ignore[method-assign]  # in a forked process
    loop.train(plan, stop_after=stop_after)
    return sum(read)


def test_a_checkpoint_on_a_store_is_read_in_parts_and_leaves_nothing_on_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    local = tiny_plan(tmp_path / "run", num_workers=NUM_RANKS, checkpoint_every=2)
    out = on_a_store(tmp_path / "run")
    out.write_json(STARTED, {"fingerprint": "00c0ffee00c0ffee"})
    plan = replace(local, out=out)
    assert run_ranks(NUM_RANKS, tmp_path, lambda: read_through(plan, 3)) == [0] * NUM_RANKS  # nothing to resume
    [(step, folder)] = list_checkpoints(out)
    assert step == 2
    saved = sum(file.stat().st_size for file in Path(local.out.path(folder)).glob("*.distcp"))

    read = run_ranks(NUM_RANKS, tmp_path, lambda: read_through(plan, 4))
    assert [step for step, _ in list_checkpoints(out)] == [4, 2]
    assert all(0 < part < 0.75 * saved for part in read)  # a half, and what each rank has in full
    assert sum(read) < 1.5 * saved
    assert list(scratch.rglob("*")) == []

    whole = tiny_plan(tmp_path / "whole", num_workers=NUM_RANKS)
    run_ranks(NUM_RANKS, tmp_path, lambda: loop.train(whole, stop_after=4))
    resumed, expected = (
        [json.loads(line)["loss_nats"] for line in Path(each.path("metrics.jsonl")).read_text().splitlines()]
        for each in (local.out, whole.out)
    )
    assert resumed == expected
