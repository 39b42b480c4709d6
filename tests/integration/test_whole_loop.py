"""The whole small loop, disturbed as long as it lasts: what it makes is what a run makes that nothing disturbs.

On S3, with its driver killed at five moments; and in a folder, with processes of all kinds killed, in every stage that
lasts long enough. It is run again each time, as an operator would.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import command_line
from s3_server import BUCKET, s3_server
from small_loop import committed, differences, made, small_loop, start

from sbp_ray.stage_table import FOLDERS

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]

SEED = 5
SIGNS = {
    "driver": "jobs/pipeline.py",
    "worker": "ray::",
    "raylet": "/raylet/raylet",
    "gcs": "/gcs/gcs_server",
    "engine": "VLLM::EngineCore",
    "replica": "ray::ServeReplica",
    "controller": "ray::ServeController",
}
"""Of each kind of process a part of its command line."""
STRIKES = {
    "1_corpus": ["driver"],
    "2_embeddings": ["worker", "raylet"],
    "5_base_lm": ["worker", "gcs", "driver"],
    "6_synthesizer": ["worker", "raylet"],
    "7_synthetic": ["engine", "replica", "controller", "driver"],
    "8_lm": ["worker", "gcs"],
}
"""What is killed while an artifact is made, in an order that is drawn."""


def family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        here = psutil.Process(process.pid)
        return [here, *here.children(recursive=True)]
    return []


def run_disturbed(command: list[str], log: Path, strike: Callable[[list[psutil.Process]], None]) -> int:
    """Run the command until it is done; returns how often it was started.

    Args:
        strike: asked again and again, with the command's processes, which it may kill.
    """
    for attempt in range(1, 50):
        process = start(command, log)
        family = family_of(process)
        while process.poll() is None:
            family = family_of(process) or family
            strike(family)
            time.sleep(0.2)  # how often we look
        _, alive = psutil.wait_procs(family, timeout=20)
        for each in alive:  # of its Ray, which takes a minute to see that its driver has gone
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(alive, timeout=60)
        if process.returncode == 0:
            return attempt
    raise AssertionError(log.read_text()[-5000:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the input, which is part of what a run is made from."""
    return tmp_path_factory.mktemp("whole_loop")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, Any]:
    run_dir = f"{folder}/undisturbed"
    assert run_disturbed(small_loop(folder, run_dir), folder / "undisturbed.log", lambda _: None) == 1
    return made(run_dir)


def test_on_s3_the_loop_is_killed_at_five_moments_and_goes_on(
    undisturbed: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    moments = [
        "2_embeddings/started",
        "5_base_lm/checkpoints/",
        "6_synthesizer/rows",
        "7_synthetic/started",
        "8_lm/rows",
    ]
    run_dir = f"s3://{BUCKET}/run"
    with s3_server() as store, pytest.MonkeyPatch.context() as environment:
        for name, value in store.environment.items():
            environment.setenv(name, value)

        def strike(family: list[psutil.Process]) -> None:
            if moments and any(moments[0] in name for name in committed(run_dir)):
                moments.pop(0)
                family[0].kill()

        assert run_disturbed(small_loop(folder, run_dir), tmp_path / "log", strike) == 6
        assert differences(made(run_dir), undisturbed) == []


def test_processes_of_all_kinds_are_killed_and_the_result_is_the_same(
    undisturbed: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    draw = random.Random(SEED)
    waiting = {name: draw.sample(kinds, len(kinds)) for name, kinds in STRIKES.items()}
    run_dir = f"{tmp_path}/run"

    def strike(family: list[psutil.Process]) -> None:
        begun = [name for name in FOLDERS.values() if Path(run_dir, name, "started.json").exists()]
        victims = waiting.get(begun[-1], []) if begun else []
        if victims and (found := [each for each in family if SIGNS[victims[0]] in command_line(each)]):
            time.sleep(draw.uniform(0, 5))
            with suppress(psutil.NoSuchProcess):
                draw.choice(found).kill()
                victims.pop(0)

    attempts = run_disturbed(small_loop(folder, run_dir), tmp_path / "log", strike)
    assert not any(waiting.values()), waiting
    assert attempts > sum(kinds.count("driver") for kinds in STRIKES.values())
    assert differences(made(run_dir), undisturbed) == []
    assert not list(Path(run_dir).rglob(".tmp-*"))
