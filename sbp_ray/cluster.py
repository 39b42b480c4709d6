"""The driver's connection to Ray: a submitted job joins its cluster, anything else starts its own.

`connected` is what a job runs in: it joins or starts a Ray, refuses what the cluster can never have room for
(`cluster_limits`), and holds the run directory on it. `shared_cluster` starts one for the many jobs of an experiment.
`MemoryMeter` measures what this process and its children hold meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from sbp_ray.cluster_limits import is_in_process, limited_by, refuse_what_cannot_fit
from sbp_ray.cluster_waiting import report_waiting
from sbp_ray.config import ClusterConfig, Config
from sbp_ray.errors import SbpError, one_line
from sbp_ray.logs import set_up_logging
from sbp_ray.ray_environment import drop_chatter, go_around_proxies, shorten_temporary_folder

logger = logging.getLogger(__name__)

NAMESPACE = "sbp_ray"
_DASHBOARD = "RAY_API_SERVER_ADDRESS"


@contextmanager
def connected(config: Config, jobs: Sequence[str]) -> Iterator[None]:
    """Hold a connection to Ray in which `jobs` can run.

    With RAY_ADDRESS in the environment (a submitted job has it) that cluster is joined. Without it a Ray of our own is
    started; an implicit `ray.init()` would join any cluster that happens to run on the machine. Jobs that all work in
    their own process need none.

    Raises:
        SbpError: no connection, or a stage that the cluster can never fit.
    """
    if all(is_in_process(job, config) for job in jobs):
        yield
        return
    with shared_cluster(config.cluster):
        for job in jobs:
            refuse_what_cannot_fit(job, config)
        lock = _lock_on_cluster(config.run_dir) if os.environ.get("RAY_ADDRESS") else None
        yield
        del lock


@contextmanager
def shared_cluster(cluster: ClusterConfig) -> Iterator[dict[str, str]]:
    """Hold a connection to Ray; gives the environment in which other processes join the same one.

    Raises:
        SbpError: no connection.
    """
    # Read when Ray is imported. Train reports its runs to the dashboard only when asked to; the token is Ray's own
    # default for a Ray that we start, said aloud so that it does not warn: the dashboard can run code.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    drop_chatter()
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        # Workers of a Ray that only this job uses give way to nothing; Ray's own default is 15.
        os.environ.setdefault("RAY_worker_niceness", "0")
        shorten_temporary_folder()
    import ray

    hook: dict[str, Any] = {
        "worker_process_setup_hook": set_up_logging,
        "env_vars": {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **go_around_proxies(address)},
    }
    dashboard = os.environ.get(_DASHBOARD)
    if address:
        if dashboard:  # of the experiment that started both this process and the cluster
            hook["env_vars"][_DASHBOARD] = dashboard
        try:
            ray.init(address=address, namespace=NAMESPACE, runtime_env=hook, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise SbpError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}): start one or unset it"
            ) from None
    else:
        dashboard = _start_local(cluster, hook)
    _quiet_ray_data()
    try:
        gcs_address = ray.get_runtime_context().gcs_address
        there = {"RAY_ADDRESS": address or gcs_address}
        with limited_by(cluster), report_waiting(gcs_address):
            yield {**there, _DASHBOARD: dashboard} if dashboard else there
    finally:
        ray.shutdown()


def _start_local(cluster: ClusterConfig, runtime_env: dict[str, Any]) -> str:
    """Start a Ray of our own; returns the address of its dashboard."""
    import ray

    port = _free_port(cluster.dashboard_port)
    # Ray Train's watchers ask the dashboard whether their run is alive, and look for one by themselves. Where another
    # Ray runs on the machine they would ask that one, which says no, and end the training.
    env_vars = {**runtime_env["env_vars"], _DASHBOARD: f"http://127.0.0.1:{port}"}
    try:
        context = ray.init(
            address="local",
            num_cpus=cluster.num_cpus,
            object_store_memory=int(cluster.object_store_gib * 2**30),
            namespace=NAMESPACE,
            runtime_env={**runtime_env, "env_vars": env_vars},
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            logging_level=logging.WARNING,
        )
    except Exception as error:  # Ray's own error for a start that takes too long is a bare one
        if type(error) is not Exception and not isinstance(error, TimeoutError | ConnectionError):
            raise
        raise SbpError(
            f"Ray did not start ({one_line(error)}): see that the machine has memory and processors to spare, and run "
            "the same command again"
        ) from None
    token = (
        "" if os.environ["RAY_AUTH_MODE"] != "token" else " | it asks for the token that `ray get-auth-token` prints"
    )
    logger.info(f"Ray dashboard: http://{context.dashboard_url}{token}")
    return f"http://127.0.0.1:{port}"


def _free_port(wanted: int) -> int:
    """`wanted`, or the next port above it that nobody listens on."""
    for port in range(wanted, wanted + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise SbpError(f"cluster.dashboard_port={wanted}: that port and the next 99 are taken: choose another")


def _quiet_ray_data() -> None:
    """Our own progress lines say more than Ray Data's bars, and do not overwrite one another."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that there are no bars


# One pipeline for each run directory on a cluster


def _lock_on_cluster(run_dir: str) -> Any:
    """An actor whose name is the run directory's: it ends with this driver, however that ends. It stands in for the
    kernel's lock on shared folders that do not keep that between machines.

    Raises:
        SbpError: another driver of this cluster holds it.
    """
    import ray

    class RunLock:
        """Holds a name."""

    name = f"run-{hashlib.sha256(run_dir.encode()).hexdigest()[:16]}"
    try:
        return ray.remote(RunLock).options(name=name, num_cpus=0).remote()
    except ValueError:
        raise SbpError(
            f"{run_dir} is in use by another job on this cluster: wait for it to end, or take another run_dir"
        ) from None


# Memory


class MemoryMeter:
    """The most memory that a process and its descendants held at once, shared pages counted once, in GiB.

    Of the driver, on a laptop, these are Ray and all its workers; on a cluster it is the driver alone.
    """

    def __init__(self, every_s: float = 2.0, pid: int | None = None) -> None:
        """`pid`: this process if it is not given."""
        self.peak_gib = 0.0
        self._every_s, self._pid = every_s, pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            start = time.perf_counter()
            self.peak_gib = max(self.peak_gib, _tree_gib(self._pid))
            took_s = time.perf_counter() - start
            if self._stop.wait(max(self._every_s, 30 * took_s)):  # looking costs 3 % of a CPU at most
                return


def _tree_gib(pid: int | None) -> float:
    import psutil

    total = 0
    try:
        first = psutil.Process(pid)
        tree = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in tree:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended while we looked
    return total / 2**30
