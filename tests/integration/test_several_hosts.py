"""The whole small loop on hosts that share nothing but a store, and whose cables and power fail."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from hosts import Host, hosts
from ray_head import wait_for
from s3_server import BUCKET, s3_server
from small_loop import ON_ONE_CPU, committed, differences, made, small_loop, start

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]


class Fleet(NamedTuple):
    """Hosts that become a cluster of a CPU each."""

    head: Host
    workers: list[Host]
    environment: dict[str, str]
    """Where the store is, for whatever runs on them."""
    logs: Path

    @property
    def address(self) -> str:
        return f"{self.head.address}:6379"  # on the hosts' own network no port is taken

    def begin(self, host: Host) -> None:
        """Start its part of Ray."""
        where = ["--head", "--port=6379"] if host is self.head else [f"--address={self.address}"]
        sizes = ["--num-cpus=1", "--object-store-memory=100000000"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where, *sizes]
        host.start(*command, f"--node-ip-address={host.address}", log=self.logs / host.name, **self.environment)

    def is_whole(self) -> bool:
        """Whether all hosts are in the cluster."""
        count = "import ray; ray.init(log_to_driver=False); print('nodes:', len(ray.nodes()))"
        log = self.logs / "nodes"
        asked = self.head.start(sys.executable, "-c", count, log=log, RAY_ADDRESS=self.address)
        return asked.wait() == 0 and f"nodes: {1 + len(self.workers)}" in log.read_text()

    def strike(self, host: Host, how: str) -> None:
        if how == "cable":
            host.cut()
            time.sleep(20)  # how long it is out
            host.mend()
        elif how == "slow":
            host.slow_down("8mbit")
        else:
            host.vanish()
            host.begin()
            self.begin(host)

    def run(self, command: list[str]) -> subprocess.Popen[bytes]:
        """A job's driver, on the head."""
        return self.head.start(*command, log=self.logs / "job", **self.environment, RAY_ADDRESS=self.address)

    def power_cut(self) -> None:
        """Of all; they come back with the addresses that they had."""
        for host in (self.head, *self.workers):
            host.vanish()
        for host in (self.head, *self.workers):
            host.begin()
        self.begin_all()

    def begin_all(self) -> None:
        for host in (self.head, *self.workers):
            self.begin(host)
        wait_for(self.is_whole, "all hosts are in the cluster", 300)


def test_the_loop_outlives_cut_slow_and_lost_links_and_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cable is out for 20 s while vectors are made; a host with a rank of a training vanishes and comes back with the
    address that it had, and so does one with an engine; all vanish, and the job is run again; one with a rank is
    slow."""
    strikes = [
        ("2_embeddings/started", "ray::", "cable"),
        ("5_base_lm/checkpoints/", "RayTrainWorker", "lost"),
        ("6_synthesizer/started", "RayTrainWorker", "power"),
        ("7_synthetic/started", "SynthesizerServer", "lost"),
        ("8_lm/started", "RayTrainWorker", "slow"),
    ]
    run_dir, source = f"s3://{BUCKET}/run", f"s3://{BUCKET}/docs.jsonl"
    alone = f"{tmp_path}/alone"
    assert start(small_loop(tmp_path, alone), tmp_path / "alone.log").wait() == 0
    with hosts(4) as (here, [head, *workers]), s3_server(here) as store:
        fleet = Fleet(head, workers, store.environment, tmp_path)
        for name, value in fleet.environment.items():
            monkeypatch.setenv(name, value)
        text = (tmp_path / "docs.jsonl").read_bytes()
        assert store.ask_server("PUT", source.removeprefix("s3:/"), text, {}).status == 200
        fleet.begin_all()
        command = small_loop(tmp_path, run_dir, source, *ON_ONE_CPU)
        job = fleet.run(command)
        while job.poll() is None:
            if strikes and any(strikes[0][0] in name for name in committed(run_dir)):
                found = [host for host in workers if host.runs(strikes[0][1])]
                if found and strikes[0][2] == "power":
                    strikes.pop(0)
                    fleet.power_cut()
                    assert job.wait() != 0
                    job = fleet.run(command)
                elif found:
                    fleet.strike(found[0], strikes.pop(0)[2])
            time.sleep(0.2)  # how often we look
        assert job.returncode == 0, (tmp_path / "job").read_text()[-5000:]
        assert not strikes
        assert differences(made(run_dir), made(alone)) == []
