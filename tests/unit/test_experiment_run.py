"""Walking the graph: processes side by side, what a failure takes with it, and going on.

The jobs are the real ones but for their stages, which are one line each, and for Ray, which is not started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_experiment import small_grid

from sbp_ray.artifacts import MANIFEST, STARTED
from sbp_ray.errors import SbpError
from sbp_ray.experiment.attempts import ATTEMPTS, lost_hours
from sbp_ray.experiment.checks import refuse_missing_models
from sbp_ray.experiment.execute import Execution
from sbp_ray.experiment.gpu_shares import OwnShares, list_gpus
from sbp_ray.experiment.grid import Grid
from sbp_ray.plan import is_done
from sbp_ray.stage_table import STAGES

JOB = """
import json, os, sys, time
from contextlib import contextmanager
from pathlib import Path
from sbp_ray import cluster, job
from sbp_ray.errors import SbpError

@contextmanager
def no_ray(config, jobs):
    yield

cluster.connected = no_ray

def run(job):
    here = Path(__file__).parent
    with open(here / "ran.jsonl", "a") as file:
        known = {"ray": os.environ["RAY_ADDRESS"], "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
        file.write(json.dumps({"stage": job.stage.name, "at": time.time(), **known}) + "\\n")
    failing = here / f"{job.stage.name}-fails"
    if failing.exists():
        raise SbpError(failing.read_text())
    while (here / f"{job.stage.name}-waits").exists():
        time.sleep(0.05)
    exported = {"development_nats": abs(job.config.pretrain.weight_decay - 0.3) + job.config.pretrain.peak_lr}
    drops = {"exported": exported, "samples": 100, "drops": {"too_short": 3, "copy_of_corpus": 7}}
    return {"documents": 90, "tokens": 40_000, "train": {"documents": 100}, **drops}

job.main(Path(__file__).stem, run)
"""


class Small:
    """An experiment on one line of text, and its jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, folder / "jobs"
        self.plan_of: Callable[[], Grid] | None = None
        self.jobs.mkdir()
        for name in {stage.job for stage in STAGES}:
            (self.jobs / f"{name}.py").write_text(JOB)

    def plan(self, *arms: str, **settings: Any) -> Grid:
        small = {"seeds": [0], "shares": [0.02], "oracle_times": 1.001}
        return small_grid(self.folder, *arms, **(small | settings))

    def run(self, grid: Grid, cpus: float = 8, *, gpus: float = 0, has_ray: bool = True) -> Execution:
        execution = Execution(
            grid,
            run_dir=self.folder / "run",
            jobs=self.jobs,
            room={"CPU": cpus, "GPU": gpus},
            environment={"RAY_ADDRESS": "127.0.0.1:1"},
            has_ray=has_ray,
            replan=self.plan_of,
        )
        execution.run()
        return execution

    def ran(self) -> list[dict[str, Any]]:
        path = self.jobs / "ran.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return found


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


def test_every_artifact_is_made_once_from_what_the_plan_says(small: Small) -> None:
    grid = small.plan("repetition", "sbp", "unconditional")
    assert small.run(grid).dead == {}
    ran = small.ran()
    assert sorted(row["stage"] for row in ran) == sorted(node.stage.name for node in grid.nodes.values())
    assert {row["ray"] for row in ran} == {"127.0.0.1:1"}
    for node in grid.nodes.values():
        manifest = node.artifact.manifest()
        assert manifest is not None
        assert manifest["fingerprint"] == node.fingerprint  # the plan foresaw it
    assert small.run(small.plan("repetition", "sbp", "unconditional")).dead == {}
    assert small.ran() == []


SWEEP = {"settings": {"pretrain.weight_decay": [0.3, 1.0], "pretrain.peak_lr": [0.001]}}


def test_a_sweep_goes_on_from_its_losses_and_a_rerun_from_where_it_was(small: Small) -> None:
    """The loss is lowest at a weight decay of 0.3, and falls with the learning rate."""
    small.plan_of = partial(small.plan, "repetition", "tuned", sweep=SWEEP, seeds=[0, 1])
    (small.jobs / "pretrain-repetition-fails").write_text("the disk is full: make room")
    stopped = small.run(small.plan_of())
    assert set(stopped.grid.waiting) == {"tuned seed 0", "tuned seed 1"}
    assert all(stopped.dead[node.key].endswith("make room") for node in stopped.grid.sweeps[0].trials)
    (small.jobs / "pretrain-repetition-fails").unlink()
    small.ran()
    execution = small.run(small.plan_of())
    assert execution.dead == {}
    [sweep] = execution.grid.sweeps
    assert sweep.chosen == {"pretrain.weight_decay": 0.3, "pretrain.peak_lr": 0.001}
    # Three weight decays; the other learning rate; the two other weight decays there, and nothing moves any more.
    assert len(sweep.trials) == 6
    assert all(is_done(training.model) for training in execution.grid.trainings)
    assert len(execution.grid.trainings) == 4
    assert len(small.ran()) == 6 + 2  # repetition's and the tuned arm's second seed
    assert small.run(small.plan_of()).dead == {}
    assert small.ran() == []


def test_a_failure_takes_what_depends_on_it_and_a_rerun_goes_on(small: Small) -> None:
    (small.jobs / "tune-fails").write_text("the disk is full: make room")
    grid = small.plan("repetition", "sbp", "unconditional")
    execution = small.run(grid)
    [lm] = [training.model.key for training in grid.trainings if training.arm == "sbp"]
    assert execution.dead[lm] == "tune: the disk is full: make room"
    done = {training.arm for training in grid.trainings if is_done(training.model)}
    assert done == {"repetition", "unconditional"}
    small.ran()
    (small.jobs / "tune-fails").unlink()
    assert small.run(grid).dead == {}
    assert [row["stage"] for row in small.ran()] == ["tune", "synthesize", "pretrain-sbp"]


def test_a_job_that_breaks_names_its_log(small: Small) -> None:
    (small.jobs / "ingest.py").write_text("1 / 0\n")
    grid = small.plan("repetition")
    [cause, _] = small.run(grid).dead.values()
    assert cause.startswith("ingest: ended with status 1, see ")
    assert "ZeroDivisionError" in Path(cause.partition("see ")[2]).read_text()


def test_as_many_run_at_once_as_there_is_room_for(small: Small) -> None:
    """Each pretraining holds 2 CPUs."""
    grid = small.plan("repetition", seeds=[0, 1, 2])
    for cpus, at_once in ((4, 2), (1, 1)):
        running: list[int] = []
        execution = Execution(
            grid, run_dir=small.folder / "run", jobs=small.jobs, room={"CPU": cpus}, environment={"RAY_ADDRESS": "x"}
        )
        start = execution._start

        def counted(node: Any, start: Any = start, execution: Any = execution, running: list = running) -> Any:
            running.append(len(execution._running) + 1)
            return start(node)

        execution._start = counted  # type: ignore[method-assign]
        execution.run()
        assert execution.dead == {}
        assert max(running) == at_once
        for node in grid.nodes.values():
            if node.stage.job == "pretrain":
                node.artifact.remove()


def test_a_job_that_needs_more_room_is_not_passed_over_by_smaller_ones(small: Small) -> None:
    """Of 4 CPUs trainings hold 2 and pairing 3: it waits for one training to end, and the next waits for it."""
    overrides = ("base.pair.resources.num_cpus=3",)
    grid = small.plan("repetition", "sbp", "regularised", seeds=[0, 1], overrides=overrides)
    execution = Execution(
        grid, run_dir=small.folder / "run", jobs=small.jobs, room={"CPU": 4}, environment={"RAY_ADDRESS": "x"}
    )
    [pair] = [key for key, node in grid.nodes.items() if node.stage.job == "pair"]
    first, second = [training.model.key for training in grid.trainings if training.arm == "regularised"]
    done = {training.model.key for training in grid.trainings if training.arm == "repetition"}
    execution._done = {*done, *grid.nodes[pair].ancestry()} - {pair}
    execution._start = lambda node: SimpleNamespace(node=node)  # type: ignore[method-assign, assignment, return-value]
    execution._running = {first: execution._start(grid.nodes[first])}
    assert not execution._start_what_can()
    execution._running.clear()
    execution._done.add(first)
    assert execution._start_what_can()
    assert list(execution._running) == [pair]
    assert second not in execution._running


def test_what_most_others_wait_for_starts_first(small: Small) -> None:
    """Of two trainings that are ready, the base LM of all that is synthetic, though the plan names the other first."""
    arms = {"repetition": {}, "regularised": {}, "unconditional": {}}
    grid = small.plan(arms=arms, seeds=[1, 0], synthesizer_per_seed=False)
    execution = Execution(
        grid, run_dir=small.folder / "run", jobs=small.jobs, room={"CPU": 2}, environment={"RAY_ADDRESS": "x"}
    )
    execution._done = {key for key, node in grid.nodes.items() if node.stage.job in ("ingest", "embed")}
    execution._start = lambda node: SimpleNamespace(node=node)  # type: ignore[method-assign, assignment, return-value]
    assert execution._start_what_can()
    base_lm, *_ = [training.model.key for training in grid.trainings if training.arm == "repetition"]
    assert list(execution._running) == [base_lm]
    execution._running.clear()
    execution._done.add(base_lm)
    assert execution._start_what_can()
    assert [grid.nodes[key].stage.job for key in execution._running] == ["synthesize"]


def test_every_attempt_is_noted_with_how_it_ended(small: Small) -> None:
    (small.jobs / "ingest-fails").write_text("the disk is full: make room")
    grid = small.plan("repetition")
    small.run(grid)
    (small.jobs / "ingest-fails").unlink()
    small.run(grid)
    rows = [json.loads(line) for line in (small.folder / "run" / ATTEMPTS).read_text().splitlines()]
    corpus, base_lm = grid.nodes
    assert [(row["artifact"], row["status"]) for row in rows] == [(corpus, 1), (corpus, 0), (base_lm, 0)]
    assert lost_hours(small.folder / "run") == {corpus: pytest.approx(rows[0]["seconds"] / 3600)}


def test_without_ray_only_trainings_in_process_run(small: Small) -> None:
    overrides = ("base.pretrain.resources={in_process: true, num_workers: 1}",)
    grid = small.plan("repetition", "sbp", overrides=overrides)
    corpus = next(node for node in grid.nodes.values() if node.stage.job == "ingest")
    made = small.run(grid, has_ray=False)
    assert set(made.dead.values()) == {"ingest needs Ray"}
    assert small.ran() == []
    corpus.artifact.write_json(STARTED, {"fingerprint": corpus.fingerprint})
    corpus.artifact.write_json(MANIFEST, {"stats": {"train": {"documents": 100}}})
    dead = small.run(grid, has_ray=False).dead
    assert {grid.nodes[key].stage.name: why for key, why in dead.items()} == {
        "embed": "embed needs Ray",
        "neighbors": "embed needs Ray",
        "pair": "embed needs Ray",
        "tune": "embed needs Ray",
        "synthesize": "embed needs Ray",
        "pretrain-sbp": "embed needs Ray",
    }
    assert [row["stage"] for row in small.ran()] == ["pretrain-repetition"]


def test_a_finished_training_whose_checkpoint_has_gone_is_refused(small: Small) -> None:
    grid = small.plan("repetition")
    small.run(grid)
    [made] = [node.artifact for node in grid.nodes.values() if node.stage.job == "pretrain"]
    with pytest.raises(
        SbpError, match=r"base_lm-\w+ is finished, and its checkpoint model/ is not there: bring it back"
    ):
        refuse_missing_models(grid)
    made.write_json("model/config.json", {})
    refuse_missing_models(grid)


def test_too_little_input_for_the_oracle_stops_the_oracle_alone(small: Small) -> None:
    grid = small.plan("repetition", "oracle", oracle_times=2)
    execution = small.run(grid)  # every corpus there has 100 documents
    dead = {training.arm: execution.dead.get(training.model.key) for training in grid.trainings}
    assert dead["repetition"] is None
    assert dead["oracle"] is not None
    assert dead["oracle"].startswith("ingest.max_train_documents=200 and the input has 100 train documents")
    assert [row["stage"] for row in small.ran()].count("pretrain-repetition") == 1


def test_too_little_synthetic_text_is_refused_before_the_training_starts(small: Small) -> None:
    """90 documents of 40,000 tokens and 180 marks, of 1,007,616 positions: 4 %."""
    grid = small.plan("repetition", "sbp", shares=[0.02, 0.3])
    execution = small.run(grid)
    dead = {training.share: execution.dead.get(training.model.key) for training in grid.trainings}
    assert dead[0.02] is None
    assert dead[0.3] is not None
    assert dead[0.3] == (
        "a share of 0.3 wants 302,285 synthetic tokens and 40,180 were written, which are read once (7 of 100 samples "
        "were dropped as copy of corpus): raise synthesize.samples_per_document to 8 or more, or lower the share"
    )  # 7.52 times as many
    assert [row["stage"] for row in small.ran()].count("pretrain-sbp") == 1


@pytest.mark.parametrize("leaves_by", [signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_reaches_the_jobs_and_a_rerun_goes_on(small: Small, leaves_by: signal.Signals) -> None:
    grid = small.plan("repetition")
    (small.jobs / "ingest-waits").write_text("")
    program = (
        "from pathlib import Path; import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"  # as a shell leaves it in the background
        "from sbp_ray.experiment.execute import Execution\n"
        "from sbp_ray.experiment.grid import plan_grid\n"
        "from sbp_ray.experiment.settings import load_experiment\n"
        "folder = Path(sys.argv[1])\n"
        "grid = plan_grid(load_experiment(str(folder / 'experiment.yaml'), []))\n"
        "Execution(grid, run_dir=folder / 'run', jobs=folder / 'jobs', room={'CPU': 2.0},\n"
        "          environment={'RAY_ADDRESS': 'x'}).run()\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", program, str(small.folder)], stderr=subprocess.DEVNULL, env={**os.environ}
    )
    while not (small.jobs / "ran.jsonl").exists():
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(leaves_by)
    assert driver.wait(timeout=120) != 0
    log = next((small.folder / "run" / "logs").iterdir()).read_text()
    assert "interrupted: run the same command again to go on from here" in log
    (small.jobs / "ingest-waits").unlink()
    assert small.run(grid).dead == {}


def test_trainings_side_by_side_have_a_gpu_each_and_give_it_back(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    overrides = ("base.pretrain.resources={in_process: true, num_gpus: 1}",)
    grid = small.plan("repetition", seeds=[0, 1, 2], overrides=overrides)
    corpus = next(node for node in grid.nodes.values() if node.stage.job == "ingest")
    corpus.artifact.write_json(STARTED, {"fingerprint": corpus.fingerprint})
    corpus.artifact.write_json(MANIFEST, {"stats": {"train": {"documents": 100}}})
    assert small.run(grid, gpus=2, has_ray=False).dead == {}
    assert {row["gpu"] for row in small.ran()} == {"4", "6"}


def test_gpus_are_shared_out_evenly_and_parts_of_one_too() -> None:
    shares = OwnShares(["4", "6"])
    assert [shares.take(key, 0.5) for key in "abcd"] == ["4", "6", "4", "6"]
    shares.give_back("b")
    shares.give_back("b")
    assert shares.take("e", 0.5) == "6"


def test_gpus_are_named_as_this_process_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert list_gpus(2) == ["4", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert list_gpus(2) == ["0", "1"]
