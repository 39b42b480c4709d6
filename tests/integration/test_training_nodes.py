"""A training on a cluster whose nodes are taken back, with notice and without."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from processes import command_line
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray_head import Head, free_ports, ray_head, wait_for
from training_job import LIMIT_S, Job

from sbp_ray.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.slow

NODE = "SBP_RAY_TEST_NODE"  # in the environment of everything that runs on a node: which one
TOTAL_TOKENS = 1 << 30  # more than it gets to: what is killed in the end has not finished


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster whose head has no CPUs: all ranks are on other nodes."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        environment = {
            "RAY_AUTH_MODE": "disabled",
            "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        [gcs_port] = free_ports(1)
        with ray_head(Path(name), environment=environment, gcs_port=gcs_port, num_cpus=0, stop_timeout_s=2) as running:
            yield running


class Node:
    """A node of the cluster with room for one rank, as processes of this machine."""

    def __init__(self, head: Head, log: Path) -> None:
        self._head, self._mark = head, uuid.uuid4().hex
        names = ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")
        ports = dict(zip(names, free_ports(4), strict=True))
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={head.address}", "--block",
            "--node-ip-address=127.0.0.1", f"--node-name={self._mark}", "--num-cpus=1",
            "--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0",
            *(f"--{name}-port={port}" for name, port in ports.items()),
        ]  # fmt: skip
        environment = head.environment | {NODE: self._mark}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def id(self) -> str:
        """In hexadecimal; empty until the cluster knows the node."""
        known = GcsClient(address=self._head.address).get_all_node_info()
        return next((id_.hex() for id_, info in known.items() if info.node_name == self._mark), "")

    def ranks(self) -> list[psutil.Process]:
        return [process for process in self._processes() if "RayTrainWorker" in command_line(process)]

    def take_back(self) -> None:
        """As the cloud does: everything on it ends at once."""
        while left := self._processes():  # again and again: one of them may be starting another
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=10)
        self._process.wait()

    def _processes(self) -> list[psutil.Process]:
        return [process for process in self._head.processes() if _environment(process).get(NODE) == self._mark]


def _environment(process: psutil.Process) -> dict[str, str]:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.environ()
    return {}


@pytest.fixture
def nodes(head: Head, tmp_path: Path) -> Iterator[list[Node]]:
    """Two: one for the rank, one to go on with."""
    started: list[Node] = []
    try:
        for number in range(2):  # in turn: those that start together choose the same names for their sockets
            started.append(Node(head, tmp_path / f"node{number}.log"))
            wait_for(started[-1].id, "the cluster knows the node", LIMIT_S)
        yield started
    finally:
        for node in started:
            node.take_back()


def one_rank(folder: Path, head: Head, checkpoint_every: int, **budgets: int) -> Job:
    resources = {"num_cpus": 1, "num_threads": 1, "checkpoint_every": checkpoint_every, **budgets}
    settings = {"total_tokens": TOTAL_TOKENS, "resources": resources}
    return Job(folder, folder / "log.txt", head, **settings)


def announce(head: Head, node: Node, notice_s: float) -> float:
    """The cloud's notice that it takes the node back, as Ray is told of it; when that will be, as `time.time`.

    A second notice replaces the first.
    """
    takes_back = time.time() + notice_s
    accepted, why_not = GcsClient(address=head.address).drain_node(
        node.id(), DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "spot", int(takes_back * 1000)
    )
    assert accepted, why_not
    return takes_back


def test_a_node_that_is_gone_costs_a_failure_and_less_than_a_checkpoint_interval(
    head: Head, nodes: list[Node], tmp_path: Path
) -> None:
    every = 100
    job = one_rank(tmp_path, head, every, max_failures=1, max_preemptions=0)
    with job.running() as driver:
        wait_for(lambda: list_checkpoints(job.out), "the first checkpoint", LIMIT_S)
        job.await_step(list_checkpoints(job.out)[0][0] + 5)
        taken, left = sorted(nodes, key=lambda node: len(node.ranks()), reverse=True)
        assert [len(taken.ranks()), len(left.ranks())] == [1, 0]
        taken.take_back()
        done = len(job.rows("metrics.jsonl"))
        wait_for(lambda: len(job.rows("attempts.jsonl")) == 2, "the training goes on elsewhere", LIMIT_S)
        _, second = job.rows("attempts.jsonl")
        assert 0 < second["wasted_steps"] == done - second["resumed_step"] <= every
        job.await_step(done + 1)
        assert len(left.ranks()) == 1
        left.ranks()[0].kill()
        assert "workers died more often than resources.max_failures=1 allows" in job.expect_error(driver)


def test_a_notice_saves_the_work_at_once_and_costs_a_preemption_and_no_failure(
    head: Head, nodes: list[Node], tmp_path: Path
) -> None:
    never = 1_000_000  # but for the notice there would be no checkpoint
    job = one_rank(tmp_path, head, never, max_failures=0, max_preemptions=1)
    with job.running() as driver:
        job.await_step(1)
        taken, left = sorted(nodes, key=lambda node: len(node.ranks()), reverse=True)
        announce(head, taken, 10 * LIMIT_S)
        wait_for(lambda: list_checkpoints(job.out), "the checkpoint that the notice asks for", LIMIT_S)
        [(saved, _)] = list_checkpoints(job.out)
        job.await_step(saved + 1)  # training goes on for as long as the node is there
        takes_back = announce(head, taken, 1.0)
        wait_for(lambda: time.time() > takes_back, "the node's time is up", LIMIT_S)
        taken.take_back()
        wait_for(lambda: len(job.rows("attempts.jsonl")) == 2, "the training goes on elsewhere", LIMIT_S)
        _, second = job.rows("attempts.jsonl")
        assert second["resumed_step"] == saved
        assert second["wasted_steps"] >= 1
        job.await_step(saved + 1)
        assert len(left.ranks()) == 1

        announce(head, left, 1.0)
        assert "nodes were taken back more often than resources.max_preemptions=1 allows" in job.expect_error(driver)
