"""`jobs/status.py` tells from storage alone what is done, running, stopped or stale."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config
from sbp_ray.config_file import load_config
from sbp_ray.errors import SbpError
from sbp_ray.plan import plan_run
from sbp_ray.run_status import status_rows
from sbp_ray.stage_table import FOLDERS

REPO = Path(__file__).parents[2]
BEGUN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Of a run whose corpus is done, and whose base LM is at step 40 of its second attempt."""
    (tmp_path / "docs.jsonl").write_text('{"text": "one"}\n')
    text = Path(__file__).with_name("small.yaml").read_text()
    file = tmp_path / "small.yaml"
    file.write_text(text.replace("INPUT", str(tmp_path / "docs.jsonl")).replace("RUN_DIR", str(tmp_path / "run")))
    config = load_config(file)
    nodes = plan_run(config)
    for noun in ("corpus", "base_lm"):
        recipe = {"fingerprint": nodes[noun].fingerprint, "recipe": nodes[noun].recipe}
        _artifact(tmp_path, noun).write_json("started.json", {**recipe, "started_at": BEGUN.isoformat()})
    stats = {"documents": 1200, "drops": {"empty": 3, "too_long": 20, "exact_duplicate": 7, "broken_json": 0}}
    ended = BEGUN + timedelta(hours=2)
    manifest = {"stats": stats, "wall_s": 5400.0, "finished_at": ended.isoformat()}
    _artifact(tmp_path, "corpus").write_json("manifest.json", manifest)
    attempts = [{"wasted_steps": 0}, {"wasted_steps": 5}]
    for name, rows in {"attempts.jsonl": attempts, "metrics.jsonl": [{"step": 39}, {"step": 40, "eta_s": 125}]}.items():
        being_written = '{"step": 41, "wasted_st'
        text = "".join(json.dumps(row) + "\n" for row in rows) + being_written
        _artifact(tmp_path, "base_lm").write_bytes(name, text.encode())
    return config


def _artifact(folder: Path, noun: str) -> Artifact:
    return Artifact(noun, str(folder / "run" / FOLDERS[noun]))


def _rows(config: Config, *, settings: Config | None, hours_later: float = 0) -> dict[str, tuple[str, ...]]:
    now = datetime.now(UTC) + timedelta(hours=hours_later)
    return {row[0]: row[1:] for row in status_rows(config.run_dir, settings, 4.0, now)}


@contextmanager
def _held(run_dir: str) -> Iterator[None]:
    with open(f"{run_dir}/run.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_what_is_done_says_what_it_holds_dropped_and_cost(config: Config) -> None:
    state, how_far, since, dropped, cost = _rows(config, settings=config)["1_corpus"]
    assert (state, how_far) == ("done", "1,200 documents")
    assert since == "2026-03-01 12:00 UTC, took 2h00m"
    assert dropped == "20 too_long, 7 exact_duplicate and 1 more"
    assert cost == "1h30m, $6.00"


@pytest.mark.parametrize("with_settings", [True, False])
def test_a_stage_runs_while_a_job_holds_the_run_directory(config: Config, with_settings: bool) -> None:
    settings = config if with_settings else None
    with _held(config.run_dir):
        state, how_far, *_ = _rows(config, settings=settings, hours_later=5)["5_base_lm"]
        assert state == "running"
        assert how_far.startswith("step 40, 2m05s to go; attempt 2, 5 steps done again; 2 files, 0.0 MiB, the last 5h")
    rows = _rows(config, settings=settings)
    assert rows["5_base_lm"][0] == "stopped"  # although its files are a second old
    assert rows["2_embeddings"] == ("absent", "", "", "", "")


def test_without_a_lock_the_age_of_the_newest_file_tells(config: Config) -> None:
    assert _rows(config, settings=None)["5_base_lm"][0] == "running"
    assert _rows(config, settings=None, hours_later=1)["5_base_lm"][0] == "stopped"


def test_what_other_settings_made_is_stale(config: Config) -> None:
    other = config.model_copy(update={"ingest": config.ingest.model_copy(update={"num_shards": 5})})
    assert _rows(config, settings=other)["1_corpus"][0].startswith("stale: ingest.num_shards")


def test_without_settings_what_was_made_from_another_input_is_stale(config: Config, tmp_path: Path) -> None:
    corpus = _artifact(tmp_path, "corpus")
    corpus.write_json("started.json", corpus.read_json("started.json") | {"fingerprint": "0123456789abcdef"})
    rows = _rows(config, settings=None)
    assert (rows["1_corpus"][0], rows["5_base_lm"][0]) == ("done", "stale: made from another corpus")


def test_without_settings_what_an_outside_model_wrote_is_no_synthesizers(config: Config, tmp_path: Path) -> None:
    """It reads pairs in the synthesizer's place: the stage's own list of what it reads says otherwise."""
    for noun in ("synthesizer", "pairs"):
        _artifact(tmp_path, noun).write_json("started.json", {"fingerprint": noun, "recipe": {"inputs": {}}})
    synthetic = _artifact(tmp_path, "synthetic")
    synthetic.write_json("started.json", {"fingerprint": "0", "recipe": {"inputs": {"pairs": "pairs"}}})
    synthetic.write_json("manifest.json", {"stats": {}, "wall_s": 1.0, "finished_at": BEGUN.isoformat()})
    assert _rows(config, settings=None)["7_synthetic"][0] == "done"
    synthetic.write_json("started.json", {"fingerprint": "0", "recipe": {"inputs": {"pairs": "other"}}})
    assert _rows(config, settings=None)["7_synthetic"][0] == "stale: made from another pairs"


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match=r"holds no artifact: see that run_dir is the one of the run"):
        list(status_rows(str(tmp_path), None, 0.0, BEGUN))


def test_the_command_prints_a_table_and_imports_no_ray(config: Config) -> None:
    check = "import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_path('jobs/status.py', run_name='__main__')\n"
    check += "finally: assert 'ray' not in sys.modules and 'torch' not in sys.modules"
    shown = subprocess.run(
        [sys.executable, "-c", check, "status.py", f"run_dir={config.run_dir}"],
        cwd=REPO, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(REPO)},
    )  # fmt: skip
    lines = shown.stdout.splitlines()
    assert len(lines) == 10
    assert lines[0].split() == ["artifact", "state", "how", "far", "since", "dropped", "cost"]
