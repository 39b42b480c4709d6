"""The whole loop with real parts: killed at three stages, then finished job by job on a cluster, then run again.

Nothing is lost, nothing is done twice.
"""

import json
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from jobs_cluster import Cluster
from small_loop import REPO, small_loop, start

from sbp_ray.stage_table import FOLDERS, STAGES


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pipeline")
    return small_loop(folder, str(folder / "run"))


def run_dir_of(command: list[str]) -> Path:
    return Path(next(part for part in command if part.startswith("run_dir=")).removeprefix("run_dir="))


def stop_when(command: list[str], log: Path, reached: Callable[[], bool], how: signal.Signals) -> list[psutil.Process]:
    """Run the pipeline until the condition holds, send the signal, and return the processes it had then."""
    process = start(command, log)
    while not reached():
        assert process.poll() is None, log.read_text()[-5000:]
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    process.wait(timeout=180)
    return family


def files(folder: Path, pattern: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.glob(pattern)}


@pytest.fixture(scope="module")
def finished(command: list[str], cluster: Cluster) -> Path:
    """A run directory whose pipeline was killed while it trained and interrupted while it synthesized; jobs did the
    rest."""
    run = run_dir_of(command)
    log = run.with_suffix(".log")
    moments: list[tuple[Callable[[], bool], signal.Signals]] = [
        (lambda: bool(files(run, "5_base_lm/checkpoints/step-*/*")), signal.SIGKILL),
        (lambda: (run / "7_synthetic/started.json").exists(), signal.SIGINT),
    ]
    stopped: list[psutil.Process] = []
    for reached, how in moments:
        done_before = files(run, "*/manifest.json")
        stopped += stop_when(command, log, reached, how)
        assert done_before.items() <= files(run, "*/manifest.json").items()
    settings = shlex.join(command[2:])
    arms = {s.writes: f"pretrain.arm={s.arm}" if s.arm else "" for s in STAGES}
    commands = {s.writes: f"python jobs/{s.job}.py {settings} {arms[s.writes]}" for s in STAGES}
    done = [noun for noun in commands if (run / FOLDERS[noun] / "manifest.json").exists()]
    assert done == list(commands)[:6]  # all before the synthetic text
    at_once = " && ".join(commands.pop(noun) for noun in done)  # one job: they only say that they are done
    for entrypoint in (at_once, *commands.values()):
        status, said, code = cluster.submit(entrypoint)
        assert (status, code) == ("SUCCEEDED", 0), said[-8000:]
        assert said.count("done already") == (len(done) if entrypoint == at_once else 0)
        assert "EngineDeadError" not in said, said[-8000:]  # a replica that leaves ends its engine first
    _, alive = psutil.wait_procs(stopped, timeout=300)  # Ray's agents look for their node only now and then
    assert not alive, f"left behind: {alive}"
    return run


@pytest.mark.slow
@pytest.mark.timeout(1500)  # the fixture is in it: two starts of the pipeline, and four jobs
def test_a_killed_pipeline_is_finished_by_submitted_jobs(finished: Path) -> None:
    for folder in FOLDERS.values():
        assert (finished / folder / "manifest.json").exists(), folder
    assert not list(finished.rglob(".tmp-*"))


@pytest.mark.slow
def test_every_document_has_one_vector(finished: Path) -> None:
    for split in ("train", "validation"):
        ids = [
            sorted(
                doc_id
                for part in sorted(finished.glob(f"{folder}/{split}/part-*.parquet"))
                for doc_id in pq.read_table(part, columns=["doc_id"])["doc_id"].to_pylist()
            )
            for folder in ("1_corpus", "2_embeddings")
        ]
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == len(ids[0]) > 0


@pytest.mark.slow
def test_each_sample_was_written_once_or_dropped_for_a_reason(finished: Path) -> None:
    rows = [
        (row["d1_id"], row["sample"])
        for part in finished.glob("7_synthetic/part-*.parquet")
        for row in pq.read_table(part, columns=["d1_id", "sample"]).to_pylist()
    ]
    stats = json.loads((finished / "7_synthetic/manifest.json").read_text())["stats"]
    assert len(set(rows)) == len(rows) > 0
    assert len(rows) + sum(stats["drops"].values()) == 24


@pytest.mark.slow
def test_both_arms_trained_on_the_same_number_of_tokens(finished: Path) -> None:
    last = [
        json.loads((finished / arm / "metrics.jsonl").read_text().splitlines()[-1]) for arm in ("5_base_lm", "8_lm")
    ]
    assert last[0]["tokens"] == last[1]["tokens"] == 40960


@pytest.mark.slow
def test_a_second_run_does_nothing(finished: Path, command: list[str]) -> None:
    before = files(finished, "**/*")
    answer = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, check=True)
    lock = str(finished / "run.lock")
    assert {k: v for k, v in files(finished, "**/*").items() if k != lock} == {
        k: v for k, v in before.items() if k != lock
    }
    assert answer.stderr.count("done already") == 9
    assert str(finished / "9_report/report.html") in answer.stdout


@pytest.mark.slow
def test_a_changed_setting_is_refused_and_named(finished: Path, command: list[str]) -> None:
    answer = subprocess.run([*command, "pair.min_cosine=0.45"], cwd=REPO, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 1
    assert "pair.min_cosine=0.4, which is 0.45 now" in answer.stderr
    assert "--redo pair" in answer.stderr
