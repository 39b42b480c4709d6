"""One writer for each run directory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sbp_ray.artifacts import RUN_LOCK
from sbp_ray.errors import SbpError

logger = logging.getLogger(__name__)


@contextmanager
def locked(run_dir: str) -> Iterator[None]:
    """Hold the run directory. The lock is the kernel's and goes with the process, however it ends.

    An object store has no locks: jobs on one Ray cluster hold one another off (`cluster.py`), and others get a warning.
    A shared file system keeps the lock between machines where it supports `flock`, as NFS does.
    """
    if "://" in run_dir:
        if "RAY_ADDRESS" not in os.environ:
            logger.warning(f"{run_dir} has no lock, since no cluster is joined: see that nothing else writes to it")
        yield
        return
    import fcntl

    try:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SbpError(f"run_dir={run_dir}: cannot be made: {error.strerror}: choose another") from None
    with open(Path(run_dir) / RUN_LOCK, "a+") as file:
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
    if "://" in run_dir or not (Path(run_dir) / RUN_LOCK).exists():
        return None
    import fcntl

    with open(Path(run_dir) / RUN_LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
