"""A Ray head of a test's own: real processes, free ports, its own temporary folder, and no process left behind."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

_MARK = "SBP_RAY_TEST_CLUSTER"  # in the environment of the head and, inherited, of everything that it starts


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    """Of the control store, as `RAY_ADDRESS` wants it."""
    dashboard_url: str
    metrics_url: str
    """Prometheus endpoint of the head node."""
    environment: dict[str, str]
    """For drivers and commands that talk to this cluster."""
    mark: str

    def processes(self) -> list[psutil.Process]:
        """Every living process of this cluster, on whichever of its nodes."""
        return [process for process in psutil.process_iter() if _carries(process, self.mark)]


_GIVEN: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different, also from those of earlier calls.

    Below those that the kernel hands out and above those of Ray's workers: nobody gets one by chance before it is used.
    Of two processes that run tests, one takes the even ports and the other the odd.
    """
    found: list[int] = []
    odd = os.environ.get("PYTEST_XDIST_WORKER") == "gw1"
    while len(found) < count:
        port = 20_000 + 2 * secrets.randbelow(6_000) + odd
        with socket.socket() as one, suppress(OSError):  # taken
            one.bind(("127.0.0.1", port))
            if port not in _GIVEN:
                _GIVEN.add(port)
                found.append(port)
    return found


def wait_for(condition: Callable[[], object], what: str, timeout_s: float) -> None:
    """Return once `condition()` is true.

    Raises:
        TimeoutError: it did not become true; names `what`.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.2)


@contextmanager
def ray_head(
    folder: Path, *options: str, environment: dict[str, str], gcs_port: int, num_cpus: int, stop_timeout_s: float = 10
) -> Iterator[Head]:
    """`ray start --head --block` in a process group of its own; every process that it led to ends with the block.

    Args:
        folder: short (Unix sockets have room for 107 characters), for the session's files and the head's log.
        options: more arguments of `ray start`.
        environment: added to this process's, for the head.
        gcs_port: port of the control store.
        num_cpus: logical CPUs of the head.
        stop_timeout_s: how long the processes get to leave on their own.
    """
    dashboard, client, agent_grpc, agent_http, metrics, runtime_env = free_ports(6)
    mark = uuid.uuid4().hex
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SBP_RAY_API_KEYS"))}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{Path(sys.executable).parent}:{env['PATH']}", _MARK: mark}
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
        "--node-ip-address=127.0.0.1", f"--port={gcs_port}", f"--num-cpus={num_cpus}",
        f"--temp-dir={folder}", "--object-store-memory=200000000",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-grpc-port={agent_grpc}", f"--dashboard-agent-listen-port={agent_http}",
        f"--metrics-export-port={metrics}", f"--runtime-env-agent-port={runtime_env}", *options,
    ]  # fmt: skip
    head = Head(
        address=f"127.0.0.1:{gcs_port}",
        dashboard_url=f"http://127.0.0.1:{dashboard}",
        metrics_url=f"http://127.0.0.1:{metrics}/metrics",
        environment=env | environment,
        mark=mark,
    )
    log = folder / "head.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=head.environment, stdout=output, stderr=output, start_new_session=True, cwd=folder
        )
        try:
            wait_for(lambda: process.poll() is not None or _answers(dashboard), "the dashboard answers", 300)
            assert process.poll() is None, log.read_text()
            yield head
        finally:
            _stop(process, head, stop_timeout_s)


def _answers(port: int) -> bool:
    """It listens before that, and lets connections go."""
    with suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/api/version", timeout=60).status_code in (200, 401, 403)
    return False


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _stop(process: subprocess.Popen[bytes], head: Head, timeout_s: float) -> None:
    """Ask the head to leave, then kill by pid what still carries the mark."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    while left := head.processes():  # again and again: one of them may be starting another
        for each in left:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=10)
