"""One writer for each run directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sbp_ray.artifacts import RUN_LOCK
from sbp_ray.errors import SbpError
from sbp_ray.run_lease import is_leased, leased


@contextmanager
def locked(run_dir: str) -> Iterator[None]:
    """Hold the run directory. The lock is the kernel's and goes with the process, however it ends.

    A shared file system keeps the lock between machines where it supports `flock`, as NFS does. An object store has no
    locks: there a lease takes its place (`run_lease.py`).
    """
    if "://" in run_dir:
        with leased(run_dir):
            yield
        return
    import fcntl

    lock = Path(run_dir) / RUN_LOCK
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.open("a+").close()
    except OSError as error:
        raise SbpError(f"run_dir={run_dir}: cannot be made or written: {error.strerror}: choose another") from None
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            remedy = "wait for it to end, or take another run_dir"
            raise SbpError(f"{run_dir} is in use by process {owner}: {remedy}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_held(run_dir: str) -> bool | None:
    """Whether a job holds the run directory; None where there is no lock to ask."""
    if "://" in run_dir:
        return is_leased(run_dir)
    if not (Path(run_dir) / RUN_LOCK).exists():
        return None
    import fcntl

    with open(Path(run_dir) / RUN_LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
