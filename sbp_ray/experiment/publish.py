"""From finished trainings to `experiment.json` and `experiment.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.experiment.attempts import lost_hours
from sbp_ray.experiment.benchmarks import benchmark_results
from sbp_ray.experiment.costs import costs_of
from sbp_ray.experiment.execute import is_done
from sbp_ray.experiment.grid import Grid, Training
from sbp_ray.experiment.judged import judged_texts
from sbp_ray.experiment.measure import score_trainings
from sbp_ray.experiment.quality import mining_rows, quality_facts
from sbp_ray.experiment.results import (
    arm_table,
    artifact_rows,
    curves,
    equal_cost_rows,
    synthesizers,
    synthetic_rows,
)
from sbp_ray.experiment.settings import ExperimentConfig
from sbp_ray.experiment.unseen import decontamination
from sbp_ray.provenance import provenance
from sbp_ray.report.experiment import render_experiment, render_table


def publish(
    experiment: ExperimentConfig,
    grid: Grid,
    done: Sequence[Training],
    dead: Sequence[str],
    *,
    room: Mapping[str, float],
) -> str:
    """Measure the trainings that have a result and write the report; returns a table for the terminal.

    Args:
        done: repetition's among them.
        dead: the others, each with its cause.
        room: CPUs and GPUs of the cluster, of which costs are shares.
    """
    out = Artifact("experiment", experiment.run_dir)
    settings = experiment.base_config()
    texts, scores = score_trainings(experiment, grid, done)
    store = Artifact("scores", f"{experiment.run_dir}/scores")
    finished = [key for key, node in grid.nodes.items() if is_done(node)]
    run_dir = Path(experiment.run_dir)
    costs = costs_of(
        grid,
        finished,
        room=room,
        dollars_per_hour=experiment.dollars_per_hour,
        lost_hours=lost_hours(run_dir),
    )
    arms = arm_table(experiment, grid, done, scores, texts, costs)
    results: dict[str, Any] = {
        "run_dir": experiment.run_dir,
        "seeds": list(experiment.seeds),
        "synthesizer_per_seed": experiment.synthesizer_per_seed,
        "texts": {
            name: {"units": len(units), "tokens": int(texts.num_tokens[name].sum())}
            | {"bytes": int(texts.num_bytes[name].sum())}
            for name, units in texts.sets.items()
        },
        "unknown_questions": texts.unknown_questions,
        "arms": arms,
        "equal_cost": equal_cost_rows(arms),
        "curves": curves(grid, done),
        "benchmarks": benchmark_results(settings, grid, done, store),
        "judge": judged_texts(settings, grid, done, store),
        "synthesizers": synthesizers(grid, done),
        "synthetic": synthetic_rows(grid, done),
        "quality": quality_facts(experiment, grid, done, Artifact("quality", f"{experiment.run_dir}/quality")),
        "mining": mining_rows(grid, done),
        "decontamination": decontamination(grid, texts.held_out, settings.decontaminate.ngram_words),
        "artifacts": artifact_rows(grid, costs, costs.__contains__),
        "dead": list(dead),
        "made_by": provenance() | {"cluster": _shown(room)},
        "settings": experiment.model_dump(mode="json"),
    }
    out.write_json("experiment.json", results)
    out.write_bytes("experiment.html", render_experiment(results).encode())
    return f"{render_table(results)}\nreport: {out.path('experiment.html')}"


def _shown(room: Mapping[str, float]) -> str:
    return ", ".join(f"{room[name]:g} {name}s" for name in ("CPU", "GPU") if room.get(name))
