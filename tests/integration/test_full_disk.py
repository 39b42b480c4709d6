"""A training whose disk fills up while it saves a checkpoint: a small real file system, mounted for the test."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_cluster import Cluster
from ray_head import wait_for
from training_job import LIMIT_S, Job

from sbp_ray.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.slow

NUM_STEPS = 400
CHECKPOINT_EVERY = 20
SETTINGS = {"total_tokens": 2 * 64 * NUM_STEPS}
ROOM = 150_000  # bytes: enough for metrics.jsonl, and half of a checkpoint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_training_whose_disk_is_full_says_so_and_once_there_is_room_makes_the_same_model(
    cluster: Cluster, small_disk: Path, tmp_path: Path
) -> None:
    resources = {"num_threads": 1, "checkpoint_every": CHECKPOINT_EVERY}
    job = Job(small_disk, tmp_path / "log.txt", cluster.head, **SETTINGS, resources=resources)
    filler = small_disk / "something else"
    with job.running() as driver:
        wait_for(lambda: list_checkpoints(job.out), "the first checkpoint", LIMIT_S)
        with filler.open("wb", buffering=0) as file:
            file.write(bytes(shutil.disk_usage(small_disk).free - ROOM))
        said = job.expect_error(driver)
    assert f"{small_disk}/5_base_lm/" in said  # a checkpoint, or the journal where the checkpoint has filled the disk
    assert "cannot be written (" in said
    assert "No space left on device" in said
    assert said.endswith("make room, and run the same command again to go on from the newest checkpoint")
    (saved, _), *_ = list_checkpoints(job.out)
    assert saved < NUM_STEPS

    filler.unlink()
    with job.running() as driver:
        job.expect_success(driver)
    _, second = job.rows("attempts.jsonl")
    assert second["resumed_step"] == saved
    assert second["wasted_steps"] <= 2 * CHECKPOINT_EVERY  # the error of a save is met at the next one

    alone = {"num_threads": 1, "in_process": True}  # quicker than on the cluster, and the same to the last bit
    undisturbed = Job(tmp_path / "other", tmp_path / "other.txt", cluster.head, **SETTINGS, resources=alone)
    with undisturbed.running() as driver:
        undisturbed.expect_success(driver)
    losses, expected = ([row["loss_nats"] for row in each.rows("metrics.jsonl")] for each in (job, undisturbed))
    assert losses == expected
    weights = "model/model.safetensors"
    assert job.out.read_bytes(weights) == undisturbed.out.read_bytes(weights)
