"""Jobs through the Jobs API of a running cluster that asks for its token."""

import ast
import json
import shlex
from pathlib import Path

import pytest
import requests
from jobs_cluster import CODE, ENDED, Cluster
from ray_head import wait_for

from sbp_ray.schema import SPLITS


@pytest.mark.slow
def test_a_request_without_the_token_is_refused(cluster: Cluster) -> None:
    jobs = f"{cluster.head.dashboard_url}/api/jobs/"
    assert requests.get(jobs, timeout=240).status_code == 401
    assert requests.get(jobs, headers={"Authorization": "Bearer wrong"}, timeout=240).status_code == 403
    right = {"Authorization": f"Bearer {cluster.token}"}
    before = requests.get(jobs, headers=right, timeout=240).json()
    submission = {"entrypoint": "true"}
    assert requests.post(jobs, json=submission, timeout=240).status_code == 401
    assert requests.get(jobs, headers=right, timeout=240).json() == before


WHOSE_CODE = """
import os, sbp_ray, ray
ray.init(log_to_driver=False)
print('DRIVER', sbp_ray.__file__)
print('WORKER', ray.get(ray.remote(lambda: __import__('sbp_ray').__file__).remote()))
print('FILES', sorted(os.listdir()))
"""


@pytest.mark.slow
def test_the_submitted_code_runs_not_the_installed_one(cluster: Cluster) -> None:
    # -P: like a script under jobs/, this has no working folder on its path of its own accord.
    status, log, _ = cluster.submit(f"python -P -c {shlex.quote(WHOSE_CODE)}")
    assert status == "SUCCEEDED", log
    said = dict(line.split(" ", 1) for line in log.splitlines() if line.startswith(("DRIVER", "WORKER", "FILES")))
    assert "/working_dir_files/" in said["DRIVER"]
    assert "/working_dir_files/" in said["WORKER"]
    sent = set(ast.literal_eval(said["FILES"]))
    assert {"configs", "data", "jobs", "sbp_ray", "serve_apps"} <= sent
    assert not {".venv", ".git", "runs", "tests"} & sent


COUNTING = """
import sys, time, requests, ray
from sbp_ray import metrics
ray.init(log_to_driver=False)
metrics.count("sbp_documents", 7, stage="embed")
metrics.count_drops({"empty": 2}, stage="ingest")
metrics.gauge("sbp_loss_nats", 2.5, stage="tune")
end, seen = time.monotonic() + 240, ""
while not all(name in seen for name in ("sbp_documents", "sbp_drops", "sbp_loss_nats")) and time.monotonic() < end:
    time.sleep(0.5)
    seen = requests.get(sys.argv[1], timeout=10).text
print(*[line for line in seen.splitlines() if line.startswith("ray_sbp_")], sep="\\n")
"""


@pytest.mark.slow
def test_the_pipelines_own_numbers_are_on_the_metrics_endpoint(cluster: Cluster) -> None:
    status, log, _ = cluster.submit(f"python -P -c {shlex.quote(COUNTING)} {cluster.head.metrics_url}")
    assert status == "SUCCEEDED", log
    lines = {line.split("{")[0]: line for line in log.splitlines() if line.startswith("ray_sbp_")}
    for name, tags, value in [
        ("ray_sbp_documents_total", ['stage="embed"'], 7),
        ("ray_sbp_drops_total", ['stage="ingest"', 'reason="empty"'], 2),
        ("ray_sbp_loss_nats", ['stage="tune"'], 2.5),
    ]:
        assert all(tag in lines[name] for tag in tags)
        assert float(lines[name].rsplit(" ", 1)[1]) == value


@pytest.mark.slow
def test_a_stage_runs_once_and_is_then_done(cluster: Cluster, tmp_path: Path) -> None:
    command = f"python jobs/ingest.py --config configs/squad.yaml run_dir={tmp_path}/run"
    status, log, code = cluster.submit(command)
    assert (status, code) == ("SUCCEEDED", 0), log
    manifest = tmp_path / "run" / "1_corpus" / "manifest.json"
    stats = json.loads(manifest.read_text())["stats"]
    assert sum(stats[split]["documents"] for split in SPLITS) == 2067
    written = manifest.stat().st_mtime_ns

    status, log, code = cluster.submit(command)
    assert (status, code) == ("SUCCEEDED", 0), log
    assert "ingest | done already" in log
    assert manifest.stat().st_mtime_ns == written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "run_dir=/nowhere/run ingest.num_shard=4",
            "ingest.num_shard=4: no such setting; did you mean ingest.num_shards?",
        ),
        ("run_dir=runs/demo", "run_dir='runs/demo' is relative"),
        (
            "run_dir={tmp_path} ingest.resources.num_workers=99",
            "ingest.resources wants 99 CPUs, the cluster can have at most 4",
        ),
    ],
)
def test_a_mistake_ends_the_job_with_status_1_and_one_line(
    cluster: Cluster, tmp_path: Path, settings: str, message: str
) -> None:
    settings = settings.format(tmp_path=tmp_path)
    status, log, code = cluster.submit(f"python jobs/ingest.py --config configs/squad.yaml {settings}")
    assert (status, code) == ("FAILED", 1)
    [line] = [line for line in log.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_anew_and_an_id_counts_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The second submission under an id is refused by Ray, whatever has become of the first."""
    client, corpus = cluster.client(), tmp_path / "run/1_corpus"
    command = f"python jobs/ingest.py --config configs/squad.yaml run_dir={tmp_path}/run"
    submission = {"entrypoint": command, "runtime_env": CODE, "submission_id": "ingest-once"}
    client.submit_job(**submission)
    wait_for(lambda: (corpus / "started.json").exists(), "the stage begins", timeout_s=240)
    with pytest.raises(RuntimeError, match="ingest-once already exists"):
        client.submit_job(**submission)
    client.stop_job("ingest-once")
    wait_for(lambda: client.get_job_status("ingest-once").value in ENDED, "the job stops", timeout_s=240)
    assert client.get_job_status("ingest-once").value == "STOPPED"
    assert not (corpus / "manifest.json").exists()
    with pytest.raises(RuntimeError, match="ingest-once already exists"):
        client.submit_job(**submission)
    status, log, _ = cluster.submit(command)  # the lock has gone with the first one's driver
    assert status == "SUCCEEDED", log
    stats = json.loads((corpus / "manifest.json").read_text())["stats"]
    assert sum(stats[split]["documents"] for split in SPLITS) == 2067
