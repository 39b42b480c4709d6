"""A job in a run directory, and how to end its processes: what the tests that kill jobs share."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from processes import command_line

REPO = Path(__file__).parents[2]


class JobRun:
    """A run directory, and attempts at one job in it."""

    def __init__(self, folder: Path, job: str, worker_title: str, settings: dict[str, Any]) -> None:
        """Write the config.

        Args:
            folder: the run directory, which exists.
            job: under jobs/.
            worker_title: a part of the name that Ray gives its worker processes.
            settings: sections that replace those of the smallest config.
        """
        self.folder, self.log = folder, folder / "log.txt"
        self._job, self._worker_title = job, worker_title
        config = yaml.safe_load((REPO / "tests/unit/small.yaml").read_text())
        config |= {"run_dir": str(folder), "cluster": {"num_cpus": 2, "object_store_gib": 0.2}, **settings}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))

    def start(self) -> subprocess.Popen[bytes]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        with self.log.open("ab") as log:
            command = [sys.executable, f"jobs/{self._job}.py", "--config", str(self.folder / "config.yaml")]
            return subprocess.Popen(command, cwd=REPO, env=environment, stdout=log, stderr=log)

    def workers(self, driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """The processes of the driver's own Ray that do the work."""
        with suppress(psutil.NoSuchProcess):  # it ends by itself at this moment
            children = psutil.Process(driver.pid).children(recursive=True)
            return [child for child in children if self._worker_title in command_line(child)]
        return []

    def kill_driver(self, driver: subprocess.Popen[bytes]) -> None:
        """Its workers end by themselves; the rest of its Ray, which takes a minute for that, is ended here."""
        family, workers = psutil.Process(driver.pid).children(recursive=True), self.workers(driver)
        driver.kill()
        driver.wait()
        _, alive = psutil.wait_procs(workers, timeout=240)
        assert alive == []
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
