"""A Ray of a job's own comes up in odd places, and says nothing that is not ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
OUR_LINE = re.compile(r"\d\d:\d\d:\d\d [IW] ")


@pytest.mark.slow
def test_a_job_runs_with_a_long_odd_temporary_folder_and_a_proxy_that_leads_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / f"zwei Wörter {'a' * 70}"
    folder.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")
    job = subprocess.run(
        [sys.executable, "jobs/ingest.py", "--config", "configs/squad.yaml", f"run_dir={tmp_path}/run",
         "ingest.num_shards=2"],
        cwd=REPO,
        env={**clean, **proxies, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr
    assert (tmp_path / "run/1_corpus/manifest.json").exists()
    assert list(folder.glob("ray/session_*"))  # Ray's files lie where TMPDIR says
    [said] = re.findall(r"is known to Ray as (/\S+)", job.stderr)
    link = Path(said)
    assert link.resolve() == folder
    link.unlink()
    assert [line for line in job.stderr.splitlines() if not OUR_LINE.match(line)] == []
