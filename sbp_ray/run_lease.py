"""One writer for a run directory on an object store, which has no locks and, through Arrow, no conditional writes.

A job writes an object of its own under `run.lock/`, and then lists what lies there. Stores list what has been written,
so of two jobs that come at once one sees the other, or both do. Who sees another that is alive gives way; both may.

A job renews its object as long as it lives. All times are the store's, of when it took an object in, so clocks need not
agree. A job that was killed is known at once by the next one on the same machine, and on another one by its silence.
"""

from __future__ import annotations

import logging
import math
import os
import posixpath
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs as pafs

from sbp_ray.artifacts import RUN_LOCK, Artifact
from sbp_ray.errors import SbpError

logger = logging.getLogger(__name__)

RENEWED_EVERY_S = 15.0
EXPIRES_S = 90.0
"""More than a store may be away (`object_stores.py`) and a renewal."""
_NAME = re.compile("[0-9a-f]{32}")


class _Lease(NamedTuple):
    name: str
    renewed_at: datetime


@contextmanager
def leased(run_dir: str) -> Iterator[None]:
    """Hold a run directory on a store.

    Raises:
        SbpError: another job holds it.
    """
    run, own = Artifact("run", run_dir), f"{RUN_LOCK}/{uuid.uuid4().hex}"
    stop = threading.Event()
    renew = threading.Thread(target=_keep_renewed, args=(run, own, stop), daemon=True, name="run-lease")
    run.write_json(own, _identity())
    try:
        _outlive_others(run, own)
        renew.start()
        yield
    finally:
        stop.set()
        if renew.is_alive():
            renew.join(timeout=10)
        with suppress(OSError):  # it expires
            _delete(run, own)


def is_leased(run_dir: str) -> bool:
    """Whether a job holds the run directory, by this machine's clock."""
    return any(time.time() - lease.renewed_at.timestamp() < EXPIRES_S for lease in _list(Artifact("run", run_dir)))


def _outlive_others(run: Artifact, own: str) -> None:
    """Take over from those that were killed.

    A lease of another machine is looked at until it has been renewed, or has not been for long enough.
    """
    first_seen: dict[str, datetime] = {}
    has_waited = False
    while True:
        leases = {lease.name: lease.renewed_at for lease in _list(run)}
        if own not in leases:
            raise SbpError(f"{run.url} was taken by another job: wait for it to end, or take another run_dir")
        others = {name: at for name, at in leases.items() if name != own}
        for name, at in list(others.items()):
            is_alive = _is_alive(run, name)
            if is_alive is False or (leases[own] - at).total_seconds() > EXPIRES_S:
                with suppress(OSError):  # it has ended by itself
                    _delete(run, name)
                del others[name]
            elif is_alive or first_seen.setdefault(name, at) != at:
                raise SbpError(
                    f"{run.url} is in use by {_describe(run, name)}: wait for it to end, or take another run_dir"
                )
        if not others:
            return
        if not has_waited:
            logger.info(f"{run.url} was in use by {_describe(run, min(others))}: looking whether it still is")
        time.sleep(RENEWED_EVERY_S / 3)
        has_waited = True
        run.write_json(own, _identity())


def _keep_renewed(run: Artifact, own: str, stop: threading.Event) -> None:
    """End the job where it cannot know any more that it is alone."""
    renewed_at = _now()
    while not stop.wait(RENEWED_EVERY_S):
        began_at = _now()
        with suppress(OSError):
            if not run.exists(own):
                renewed_at = -math.inf  # who found it expired has taken it away
            else:
                run.write_json(own, _identity())
                if _now() - renewed_at <= EXPIRES_S:
                    renewed_at = began_at
        if _now() - renewed_at > EXPIRES_S:
            logger.error(f"{run.url} has not heard from this job for {EXPIRES_S:g} s, and another may write there now")
            os.kill(os.getpid(), signal.SIGTERM)  # as `ray job stop` does; SIGINT does nothing in the background
            return


def _now() -> float:
    """Of a clock that goes on where a machine sleeps, if there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _list(run: Artifact) -> list[_Lease]:
    selector = pafs.FileSelector(run.path(RUN_LOCK), allow_not_found=True)
    found = [info for info in run.fs.get_file_info(selector) if _NAME.fullmatch(info.base_name)]
    return [_Lease(posixpath.join(RUN_LOCK, info.base_name), info.mtime) for info in found]


def _delete(run: Artifact, name: str) -> None:
    run.fs.delete_file(run.path(name))


# Who holds a lease


def _identity() -> dict[str, str | int | None]:
    """Where process numbers mean the same, and which one this is; no `where` on a system that does not tell."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    host, pid = socket.gethostname(), os.getpid()
    where = f"{host} {boot.read_text().strip()} {namespace.stat().st_ino}" if boot.exists() else None
    return {"host": host, "where": where, "pid": pid, "started": _started(pid)}


def _started(pid: int) -> int | None:
    """When a process was, in the kernel's ticks, which no clock that is set moves; None of one that is gone, though
    nobody may have asked for its status yet."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])  # field 22 of proc(5), of which three lie before


def _is_alive(run: Artifact, name: str) -> bool | None:
    """None of a process of another machine."""
    with suppress(OSError, ValueError, KeyError):
        found, here = run.read_json(name), _identity()
        if here["where"] is not None and found["where"] == here["where"]:
            return _started(found["pid"]) == found["started"]
    return None


def _describe(run: Artifact, name: str) -> str:
    with suppress(OSError, ValueError, KeyError):
        found = run.read_json(name)
        return f"process {found['pid']} on {found['host']}"
    return "another job"
