"""One job at a time writes to a run directory on a store; here the store is a folder, opened by its URL."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sbp_ray import run_lease
from sbp_ray.artifacts import RUN_LOCK, Artifact
from sbp_ray.errors import SbpError
from sbp_ray.run_lease import is_leased, leased
from sbp_ray.run_lock import is_held, locked

ELSEWHERE = {"host": "elsewhere", "where": "elsewhere", "pid": 7, "started": 1}


@pytest.fixture
def run(tmp_path: Path) -> Artifact:
    return Artifact("run", f"file://{tmp_path}/run")


def lease_of(run: Artifact, holder: dict[str, object], name: str = "0" * 32) -> str:
    """What another job has left there."""
    run.write_json(f"{RUN_LOCK}/{name}", holder)
    return f"{RUN_LOCK}/{name}"


def quickly(monkeypatch: pytest.MonkeyPatch, expires_s: float) -> None:
    monkeypatch.setattr(run_lease, "RENEWED_EVERY_S", 0.05)
    monkeypatch.setattr(run_lease, "EXPIRES_S", expires_s)


class StoppedError(Exception):
    """This process was asked to end."""


@pytest.fixture
def told_to_end() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise StoppedError

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_second_job_on_the_machine_is_refused_at_once_and_let_in_afterwards(run: Artifact) -> None:
    assert is_held(run.url) is False
    with locked(run.url):
        assert is_held(run.url)
        with (
            pytest.raises(SbpError, match=r"is in use by process \d+ on .*: wait for it to end, or take another"),
            locked(run.url),
        ):
            pass
        assert len(run.files(RUN_LOCK)) == 1  # the second one has left nothing
    with locked(run.url):
        pass
    assert run.files(RUN_LOCK) == []


@pytest.mark.parametrize("its_number_is_used_again", [False, True])
def test_a_job_of_this_machine_that_was_killed_keeps_nobody_out(run: Artifact, its_number_is_used_again: bool) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    holder = run_lease._identity() | {"started": 1}
    if not its_number_is_used_again:
        holder["pid"] = int(ended.stdout)
    left = lease_of(run, holder)
    with leased(run.url):
        assert left not in run.files(RUN_LOCK)


def test_a_killed_job_whose_status_nobody_asks_for_keeps_nobody_out(run: Artifact) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = run_lease._started(killed.pid)
    left = lease_of(run, run_lease._identity() | {"pid": killed.pid, "started": started})
    with pytest.raises(SbpError, match=f"in use by process {killed.pid}"), leased(run.url):
        pass
    killed.kill()
    eventually(lambda: psutil.Process(killed.pid).status() == psutil.STATUS_ZOMBIE)
    with leased(run.url):
        assert left not in run.files(RUN_LOCK)
    killed.communicate()


def test_a_job_of_another_machine_is_refused_once_it_shows_that_it_lives(
    run: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(monkeypatch, expires_s=60)
    left, stop = lease_of(run, ELSEWHERE), threading.Event()

    def keep_renewed() -> None:
        while not stop.wait(0.05):
            lease_of(run, ELSEWHERE)

    renewing = threading.Thread(target=keep_renewed)
    renewing.start()
    try:
        with pytest.raises(SbpError, match="is in use by process 7 on elsewhere"), leased(run.url):
            pass
    finally:
        stop.set()
        renewing.join()
    assert run.files(RUN_LOCK) == [left]


@pytest.mark.parametrize("silent_s", [58.5, 10_000])
def test_a_job_of_another_machine_that_is_silent_is_outlived(
    run: Artifact, monkeypatch: pytest.MonkeyPatch, silent_s: float
) -> None:
    quickly(monkeypatch, expires_s=60)
    left = lease_of(run, ELSEWHERE)
    silent_since = time.time() - silent_s
    os.utime(run.path(left), (silent_since, silent_since))
    with leased(run.url):
        assert time.time() - silent_since > 60
        assert left not in run.files(RUN_LOCK)


def test_a_lease_is_renewed_for_as_long_as_it_is_held(run: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch, expires_s=60)
    with leased(run.url):
        seen = set()
        eventually(lambda: len(seen) > 3 or bool(seen.add(run_lease._list(run)[0].renewed_at)))
    assert not is_leased(run.url)


@pytest.mark.usefixtures("told_to_end")
def test_who_was_taken_for_dead_stops(run: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch, expires_s=60)
    with pytest.raises(StoppedError), leased(run.url):
        [own] = run.files(RUN_LOCK)
        run.fs.delete_file(run.path(own))
        time.sleep(60)
        raise AssertionError("nothing has stopped it")


@pytest.mark.usefixtures("told_to_end")
def test_who_could_not_renew_for_too_long_stops(run: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch, expires_s=0.3)
    with pytest.raises(StoppedError), leased(run.url):

        def away(*_: object) -> None:
            raise OSError("the store is away")

        monkeypatch.setattr(Artifact, "write_bytes", away)
        time.sleep(60)
        raise AssertionError("nothing has stopped it")


def test_of_jobs_that_come_at_one_moment_never_two_are_in(run: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each on a machine of its own."""
    quickly(monkeypatch, expires_s=60)
    monkeypatch.setattr(run_lease, "_is_alive", lambda *_: None)
    inside, most, refused, lock = 0, 0, 0, threading.Lock()
    barrier = threading.Barrier(3)

    def come() -> None:
        nonlocal inside, most, refused
        barrier.wait()
        try:
            with leased(run.url):
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.1)
                with lock:
                    inside -= 1
        except SbpError:
            refused += 1

    for _ in range(5):
        jobs = [threading.Thread(target=come) for _ in range(3)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
    assert most <= 1
    assert refused >= 5
