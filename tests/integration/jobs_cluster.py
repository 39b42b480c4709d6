"""A cluster of a test's own that asks for its token, and takes jobs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray.job_submission import JobSubmissionClient
from ray_head import Head, free_ports, ray_head, wait_for

REPO = Path(__file__).parents[2]
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
CODE = {"working_dir": str(REPO)}
"""The runtime environment of a job that runs the repository's code."""


@dataclass(frozen=True)
class Cluster:
    """Takes jobs."""

    head: Head
    token: str

    def client(self) -> JobSubmissionClient:
        """Of the Jobs API."""
        return JobSubmissionClient(self.head.dashboard_url, headers={"Authorization": f"Bearer {self.token}"})

    def takes_jobs(self) -> bool:
        """The dashboard listens some time before there is an agent that could run a job."""
        try:
            self.client().submit_job(entrypoint="true")
        except RuntimeError as error:
            assert "No available agent" in str(error), error
            return False
        return True

    def submit(self, entrypoint: str) -> tuple[str, str, int | None]:
        """Run a job with the repository as its working folder; its status, its log and its exit status."""
        client = self.client()
        job = client.submit_job(entrypoint=entrypoint, runtime_env=CODE)
        wait_for(lambda: client.get_job_status(job).value in ENDED, entrypoint, timeout_s=600)
        info = client.get_job_info(job)
        return info.status.value, client.get_job_logs(job), info.driver_exit_code


@contextmanager
def token_cluster() -> Iterator[Cluster]:
    """A cluster of one node that asks for its token."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        environment = {"RAY_AUTH_MODE": "token", "HOME": name, "RAY_metrics_report_interval_ms": "1000"}
        environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.5"  # how often Ray Train looks, else every 2 s
        environment["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # on a busy machine; else 5 s
        made = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"],
            env={key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        token = made.stdout.strip()
        [gcs_port] = free_ports(1)
        with ray_head(home, environment=environment, gcs_port=gcs_port, num_cpus=4) as head:
            running = Cluster(head, token)
            wait_for(running.takes_jobs, "the head takes jobs", timeout_s=240)
            yield running
        assert head.processes() == []
