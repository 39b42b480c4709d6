"""What a worker's error becomes on its way to the driver."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.config import TrainingResources
from sbp_ray.errors import SbpError
from sbp_ray.shards import map_shards

HERE = TrainingResources(in_process=True)


def _worker(error: OSError) -> type:
    class Worker:
        def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
            raise error

    return Worker


def _run(worker: Callable[..., Any]) -> None:
    map_shards("pair", worker, (), [{"shard": 0}], num_done=0, resources=HERE)


def test_a_full_disk_is_something_that_the_user_can_fix_and_no_other_error_of_the_system_is() -> None:
    with pytest.raises(SbpError, match=r"there is no room to write \(.*No space left.*\): make room, and run the same"):
        _run(_worker(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(PermissionError):
        _run(_worker(PermissionError(errno.EACCES, "Permission denied")))


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    out = Artifact("pairs", str(tmp_path))
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/train/part-00000.parquet'"),
        out.writing("train/part-00000.parquet"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list((tmp_path / "train").iterdir()) == []
