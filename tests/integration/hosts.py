"""Hosts of a cluster on one machine: namespaces with processes, shared memory and files of their own, and a cable.

Only the code and its environment are the same files, as an image would bring them. All else that hosts share goes
through a bridge, at whose address the test itself can listen.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from processes import command_line
from ray_head import wait_for

REPO = Path(__file__).parents[2]
OWN = "/mnt"
"""Where a host has its own files: in memory, and seen by nobody else."""
_BEGIN = f"mount -t tmpfs own {OWN} && mount -t tmpfs own /dev/shm && touch {OWN}/up && exec sleep infinity"


@dataclass
class Host:
    """One of them; it may vanish, and come back with the address that it had."""

    name: str
    address: str
    gateway: str
    _init: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Power on."""
        cable = f"{self.name}v"
        _ip("netns", "add", self.name)
        card = "02:00:" + ":".join(f"{int(part):02x}" for part in self.address.split("."))  # stays the same, too
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "address", card, "netns", self.name)
        _ip("link", "set", cable, "master", self.gateway_device, "up")
        for words in (
            ["link", "set", "lo", "up"],
            ["address", "add", f"{self.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["route", "add", "default", "via", self.gateway],
        ):
            _ip("-n", self.name, *words)
        isolate = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._init = subprocess.Popen(["ip", "netns", "exec", self.name, *isolate, "sh", "-c", _BEGIN])
        wait_for(lambda: psutil.Process(self._init.pid).children(), f"{self.name} has a process", 60)
        wait_for(lambda: self.run("test", "-e", f"{OWN}/up", check=False) == 0, f"{self.name} is up", 60)

    @property
    def gateway_device(self) -> str:
        return self.name.rpartition("h")[0]

    def vanish(self) -> None:
        """Power off: nothing says goodbye."""
        if self._init is not None:
            os.kill(self._first(), signal.SIGKILL)  # and with it all others of its namespace
            self._init.wait()
            self._init = None
            _ip("link", "delete", f"{self.name}v")
            _ip("netns", "delete", self.name)

    def cut(self) -> None:
        """Pull the cable."""
        _ip("link", "set", f"{self.name}v", "down")

    def mend(self) -> None:
        """Plug it in again."""
        _ip("link", "set", f"{self.name}v", "up")

    def slow_down(self, rate: str) -> None:
        """All that it sends, such as to `8mbit`."""
        shape = ["tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"]
        command = ["tc", "-n", self.name, "qdisc", "add", "dev", "eth0", "root", *shape]
        subprocess.run(command, check=True, capture_output=True)

    def runs(self, sign: str) -> bool:
        """Whether a process with this in its command line runs here."""
        mine = _network_of(self._first())
        return any(sign in command_line(one) and _network_of(one.pid) == mine for one in psutil.process_iter())

    def start(self, *command: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """A process on this host."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = {"TMPDIR": OWN, "HOME": OWN, "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}"}
        with log.open("ab") as output:
            return subprocess.Popen(
                self._enter(*command), env=clean | own | environment, cwd=REPO, stdout=output, stderr=output
            )

    def run(self, *command: str, check: bool = True) -> int:
        """A short command on this host; returns its status."""
        return subprocess.run(self._enter(*command), check=check, capture_output=True).returncode

    def _enter(self, *command: str) -> list[str]:
        return ["nsenter", f"--target={self._first()}", "--net", "--mount", "--pid", f"--wd={REPO}", "--", *command]

    def _first(self) -> int:
        """The process that is the first of its namespace."""
        assert self._init is not None, f"{self.name} is off"
        [first] = psutil.Process(self._init.pid).children()
        return first.pid


@contextmanager
def hosts(count: int) -> Iterator[tuple[str, list[Host]]]:
    """The address at which this process is reached by them, and hosts that are up."""
    if not _may_isolate():
        pytest.skip("namespaces and cables between them are not permitted here, or there is no iproute2")
    number = secrets.randbelow(200)
    bridge, net = f"sbp{number}", f"10.78.{number}"
    _ip("link", "add", bridge, "type", "bridge")
    made = [Host(f"{bridge}h{index}", f"{net}.{index + 1}", f"{net}.254") for index in range(count)]
    try:
        _ip("address", "add", f"{net}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in made:
            host.begin()
        yield f"{net}.254", made
    finally:
        for host in made:
            host.vanish()
        _ip("link", "delete", bridge)


def _network_of(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:  # it has ended
        return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _may_isolate() -> bool:
    try:
        cable = ["ip", "link", "add", "sbp-try", "type", "veth", "peer", "name", "sbp-tri"]
        trial = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if subprocess.run([*trial, *cable], capture_output=True, check=False).returncode:
            return False
        named = f"sbp-try{os.getpid()}"
        made = subprocess.run(["ip", "netns", "add", named], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", named], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return made.returncode == 0
