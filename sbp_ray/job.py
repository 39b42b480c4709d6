"""The life of a job: plan, lock, cluster, stage, manifest. A pipeline is the walk over the plan in one process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sbp_ray import __version__
from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.cli import exit_with, parse_command
from sbp_ray.config import Config, TrackingConfig
from sbp_ray.logs import duration
from sbp_ray.nodes import Node, locate
from sbp_ray.plan import (
    follow,
    is_done,
    plan_run,
    refuse_stale,
    refuse_unfit,
    remove_artifacts,
    require_ready,
    state_of,
)
from sbp_ray.provenance import provenance
from sbp_ray.run_lock import locked
from sbp_ray.stage_table import NOUNS, STAGES, Stage
from sbp_ray.text_supply import refuse_too_little_text
from sbp_ray.tracking import track_training
from sbp_ray.training.journal import METRICS

logger = logging.getLogger(__name__)

Stats = dict[str, Any]
_TRAINS = ("pretrain", "tune")  # jobs that leave curves


@dataclass
class Job:
    """A stage about to run: its settings, the artifacts it reads and the one it writes."""

    node: Node

    @property
    def stage(self) -> Stage:
        return self.node.stage

    @property
    def config(self) -> Config:
        return self.node.config

    @property
    def inputs(self) -> dict[str, Artifact]:
        return {noun: read.artifact for noun, read in self.node.inputs.items()}

    @property
    def output(self) -> Artifact:
        return self.node.artifact


RunStage = Callable[[Job], Stats]


def main(job_name: str, run: RunStage) -> None:
    """The whole life of `python jobs/<job_name>.py --config FILE [section.key=value …]`; exits the process."""
    exit_with(lambda: _run_one(job_name, run))


def main_pipeline(runs: dict[str, RunStage]) -> None:
    """The whole life of `python jobs/pipeline.py`; `runs` maps each job's name to its wiring."""
    exit_with(lambda: _run_all(runs))


def _run_one(job_name: str, run: RunStage) -> None:
    config, redo, _ = parse_command(job_name)
    [stage] = [s for s in STAGES if s.job == job_name and s.arm in (None, config.pretrain.arm)]
    with locked(config.run_dir):
        nodes, redone = _plan(config, [stage.writes], redo)
        node = nodes[stage.writes]
        if not redone:
            if is_done(node):
                logger.info(f"{stage.name} | done already: {node.artifact.url}")
                return
            require_ready(node)
        from sbp_ray.cluster import connected  # Ray: not before the settings and inputs are known to be good

        with connected(config, [job_name]):
            remove_artifacts(config, redone)
            if not is_done(node):
                _execute(node, run)


def _run_all(runs: dict[str, RunStage]) -> None:
    config, redo, plan = parse_command("pipeline")
    if plan:
        from sbp_ray.cost_plan import print_plan

        finished = {} if plan.documents or plan.tokens else read_finished_stats(config)
        print_plan(config, plan.documents, plan.tokens, plan.rates, finished)
        return
    start = time.monotonic()
    with locked(config.run_dir):
        nodes, redone = _plan(config, NOUNS, redo)
        todo = [node for noun, node in nodes.items() if noun in redone or not is_done(node)]
        for node in nodes.values():
            if node not in todo:
                logger.info(f"{node.stage.name} | done already")
        if todo:
            from sbp_ray.cluster import connected
            from sbp_ray.evaluation.check_settings import check_evaluation
            from sbp_ray.generation.rephraser import require_rephrasers

            check_evaluation(config)
            require_rephrasers(todo)
            with connected(config, [node.stage.job for node in todo]):
                remove_artifacts(config, redone)
                for node in todo:
                    logger.info(f"stage {STAGES.index(node.stage) + 1} of {len(STAGES)} | {node.stage.name}")
                    if nodes["synthetic"] in todo and config.synthesize.finished_of is None:
                        refuse_too_little_text(nodes["lm"])  # with what the corpus turned out to be
                    _execute(node, runs[node.stage.job])
    report = locate(config, "report")
    print(report.read_bytes("summary.txt").decode(), end="")
    print(f"report: {report.path('report.html')}")
    print(f"wall time: {duration(time.monotonic() - start)}")


def read_finished_stats(config: Config) -> dict[str, Stats]:
    """What the stages counted, up to the pairs, that are done with these settings."""
    if not locate(config, "corpus").exists(MANIFEST):
        return {}  # what it is made from need not be there
    return {noun: node.stats for noun, node in plan_run(config, ["pairs"]).items() if is_done(node)}


def _plan(config: Config, wanted: tuple[str, ...] | list[str], redo: str | None) -> tuple[dict[str, Node], list[str]]:
    """Plan what is wanted; with the artifacts to be deleted first, once all that may refuse the job has been asked.

    The cluster is asked last: it holds the run directory where shared folders keep no lock.
    """
    redone = follow(config, redo) if redo else []
    nodes = plan_run(config, wanted, redone)
    refuse_stale(node for noun, node in nodes.items() if noun not in redone)
    refuse_unfit(nodes[noun] for noun in wanted)
    return nodes, redone


def _execute(node: Node, run: RunStage) -> None:
    """Run one stage and commit its manifest, the last file that it writes."""
    from sbp_ray.cluster import MemoryMeter

    require_ready(node)
    stage, config, output = node.stage, node.config, node.artifact
    if state_of(node) == "absent":
        output.remove()  # what is left of a deletion that was cut off
        started = {"fingerprint": node.fingerprint, "recipe": node.recipe, "started_at": _now()}
        output.write_json(STARTED, started)
    output.remove_unfinished()  # of attempts that were killed
    start = time.monotonic()
    tracking = config.tracking if stage.job in _TRAINS else TrackingConfig()
    with MemoryMeter() as memory, track_training(tracking, output, METRICS):
        stats = run(Job(node))
    wall_s = time.monotonic() - start
    output.remove_unfinished()  # of workers that were killed in this one
    output.write_json(
        MANIFEST,
        {
            "artifact": stage.writes,
            "stage": stage.name,
            "fingerprint": node.fingerprint,
            **node.recipe,
            "stats": stats,
            "wall_s": round(wall_s, 1),
            "peak_mem_gib": round(memory.peak_gib, 2),
            "finished_at": _now(),
            "sbp_ray": __version__,
            "made_by": provenance(),
        },
    )
    logger.info(f"{stage.name} | done in {duration(wall_s)} | peak {memory.peak_gib:.1f} GiB | {output.url}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
