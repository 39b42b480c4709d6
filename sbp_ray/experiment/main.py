"""The whole life of `python jobs/experiment.py`: plan, run, measure, report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from sbp_ray.artifacts import Artifact
from sbp_ray.cli import Parser, exit_with
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.check_settings import check_evaluation
from sbp_ray.evaluation.study import BASELINE, Training
from sbp_ray.experiment.checks import refuse_missing_models
from sbp_ray.experiment.costs import planned_flops, planned_tokens, refuse_too_little_texts
from sbp_ray.experiment.grid import Grid, plan_grid
from sbp_ray.experiment.settings import ExperimentConfig, load_experiment
from sbp_ray.logs import set_up_logging
from sbp_ray.nodes import Node
from sbp_ray.plan import is_done
from sbp_ray.report.wording import aligned, scaled
from sbp_ray.run_lock import locked
from sbp_ray.tracking import refuse_missing_library

logger = logging.getLogger(__name__)


def main() -> None:
    """Exits the process: 0 done, 1 when an arm has no result or the user can mend something else."""
    exit_with(_run)


def _run() -> None:
    parser = Parser(prog="jobs/experiment.py", description="See docs/experiment.md.")
    parser.add_argument("--config", required=True, metavar="FILE", help="such as configs/experiment-nano.yaml")
    parser.add_argument("--plan", action="store_true", help="print the plan, and run nothing")
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="without Ray: train and score what can be, with torch and transformers alone",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the experiment")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    experiment = load_experiment(arguments.config, arguments.overrides)
    grid = plan_grid(experiment)
    refuse_too_little_texts(grid)
    refuse_missing_library(experiment.base_config().tracking)
    refuse_missing_models(grid)
    check_evaluation(
        experiment.base_config(),
        reaches_judge=not arguments.plan and not arguments.in_process,
        has_benchmarks=not arguments.in_process,
    )
    print(describe(grid))
    if not arguments.plan:
        if not arguments.in_process:
            from sbp_ray.generation.rephraser import require_rephrasers

            require_rephrasers(node for node in grid.nodes.values() if not node.stats)
        with locked(experiment.run_dir):
            _execute(experiment, grid, Path(sys.argv[0]).resolve().parent, has_ray=not arguments.in_process)


def describe(grid: Grid) -> str:
    """The plan as a table: each artifact with its tokens and FLOPs, as far as known, and the arms it is for."""
    rows = [("artifact", "stage", "tokens", "FLOPs", "for")]
    for key, arms in grid.users().items():
        node = grid.nodes[key]
        tokens, flops = planned_tokens(node), planned_flops(node)
        sign = {"synthesize": "≤", "tune": "≈"}.get(node.stage.job, "")
        shown = ("" if tokens is None else f"{sign}{scaled(tokens)}", "" if flops is None else f"{flops:.1e}")
        rows.append((key, node.stage.name, *shown, ", ".join(arms)))
    open_sweeps = [f"{sweep.name}: {sweep.progress()}" for sweep in grid.sweeps if sweep.is_open]
    if grid.waiting:
        open_sweeps.append(f"{len(grid.waiting)} trainings more follow from that")
    total = sum(planned_flops(node) or 0.0 for node in grid.nodes.values())
    names = dict.fromkeys(training.name for training in grid.trainings)
    is_open = any(node.stage.job == "tune" and planned_tokens(node) is None for node in grid.nodes.values())
    last = (
        f"{len(grid.nodes)} artifacts for {len(grid.trainings)} trainings ({', '.join(names)}); "
        f"{total:.1e} FLOPs{', without what depends on the pairs that are found' if is_open else ''}"
    )
    return "\n".join([*aligned(rows), *open_sweeps, last])


def _execute(experiment: ExperimentConfig, grid: Grid, jobs: Path, *, has_ray: bool) -> None:
    from sbp_ray.cluster import shared_cluster  # Ray: not before the plan is known to be good
    from sbp_ray.cluster_limits import room_here, room_now
    from sbp_ray.experiment.execute import Execution

    cluster = experiment.base_config().cluster
    joined: AbstractContextManager[dict[str, str]] = shared_cluster(cluster) if has_ray else nullcontext({})
    with joined as environment:
        there = room_now() if has_ray else room_here()
        execution = Execution(
            grid,
            run_dir=Path(experiment.run_dir),
            jobs=jobs,
            room=there,
            environment=environment,
            has_ray=has_ray,
            replan=lambda: plan_grid(experiment),
        )
        execution.run()
        grid = execution.grid
        done = [training for training in grid.trainings if all(map(is_done, training.models))]
        dead = [
            f"{training.name} seed {training.seed}: {_why(training.models, execution.dead)}"
            for training in grid.trainings
            if training not in done
        ]
        dead += [f"{name}: its sweep: {_why(sweep.trials, execution.dead)}" for name, sweep in grid.waiting.items()]
        if any(training.arm == BASELINE for training in done):
            if has_ray:
                from sbp_ray.experiment.publish import publish

                print(publish(experiment, grid, done, dead, room=there))
            else:
                print(_scored(experiment, grid, done))
    if dead:
        wanted = len(grid.trainings) + len(grid.waiting)
        raise SbpError(
            f"{len(dead)} of {wanted} trainings have no result; {'; '.join(dead)}; run the same command again to go on"
        )


def _why(nodes: Iterable[Node], dead: Mapping[str, str]) -> str:
    """Why the first of them that has no result has none."""
    return next(dead[node.key] for node in nodes if node.key in dead)


def _scored(experiment: ExperimentConfig, grid: Grid, done: list[Training]) -> str:
    """Score what is there, for a later run that makes the report; a line for each training."""
    from sbp_ray.evaluation.likelihood.scored_texts import HELD_OUT, score_study
    from sbp_ray.experiment.publish import study_of

    texts, scores = score_study(study_of(experiment, grid, done), Artifact("scores", f"{experiment.run_dir}/scores"))
    tokens = texts.sets[HELD_OUT].num_tokens.sum()
    losses = ((t, scores[t.key].nll[HELD_OUT].sum() / tokens) for t in done)
    lines = [f"{t.name} seed {t.seed}: held-out {loss:.4f} nats a token" for t, loss in losses]
    return "\n".join([*lines, "scored; the same command without --in-process makes the report"])
