"""How a number was made: by which command, at which commit, on which machine."""

from __future__ import annotations

import platform
import re
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
    processor = cpu_line("model name") or platform.processor() or platform.machine()
    return f"{processor}, {num_cpus()} cores, {memory_bytes() / 2**30:.0f} GiB"


def cpu_line(name: str) -> str:
    """What Linux says of the first processor under a name; empty where it says nothing."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else ""
