"""How a number was made: by which command, at which commit, on which machine."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

from sbp_ray import __version__
from sbp_ray.processor import memory_bytes, num_cpus

_PACKAGE = Path(__file__).resolve().parent


def provenance() -> dict[str, str | None]:
    """`command`, `commit`, `version` and `hardware` of this process, for a manifest or a report."""
    return {"command": command(), "commit": commit(), "version": __version__, "hardware": hardware()}


def command() -> str:
    """The command line, as it would be typed."""
    return shlex.join(["python", *sys.argv])


@cache
def commit() -> str | None:
    """The checkout that the package runs from, with `+changes` where files differ from it; None outside of one."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+changes" if changed else head


def _git(*arguments: str) -> str:
    found = subprocess.run(  # noqa: S603  fixed arguments
        ["git", "-C", str(_PACKAGE), *arguments],  # noqa: S607  of the user's path, as everything that is run here
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return found.stdout.strip()


@cache
def hardware() -> str:
    """The driver's machine: processor, cores and memory."""
    return f"{_processor()}, {num_cpus()} cores, {memory_bytes() / 2**30:.0f} GiB"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
