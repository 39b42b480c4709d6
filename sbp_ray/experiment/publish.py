"""From finished trainings to `experiment.json`, its page and `answer.txt`: the grid is a study, measured as a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.found_elsewhere import ANSWER
from sbp_ray.evaluation.study import Study, Training
from sbp_ray.experiment.attempts import lost_hours
from sbp_ray.experiment.costs import Cost, cost_of, costs_of
from sbp_ray.experiment.grid import Grid
from sbp_ray.experiment.settings import ExperimentConfig


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
    from sbp_ray.evaluation.measure import measure_study  # SciPy and Jinja, which --in-process does without
    from sbp_ray.report.headline import answer, render_summary
    from sbp_ray.report.page import render_page

    out = Artifact("experiment", experiment.run_dir)
    lost, price = lost_hours(Path(experiment.run_dir)), experiment.dollars_per_hour
    costs = costs_of(grid.nodes.values(), room=room, dollars_per_hour=price, lost_hours=lost)
    results = measure_study(study_of(experiment, grid, done, costs), out)
    users = grid.users()
    for row in results["artifacts"]:
        cost = costs.get(row["artifact"])
        row |= {"for": users[row["artifact"]], "cost": cost and asdict(cost)}
    cluster = ", ".join(f"{room[name]:g} {name}s" for name in ("CPU", "GPU") if room.get(name))
    results["made_by"] |= {"cluster": cluster}
    results |= {"run_dir": experiment.run_dir, "settings": experiment.model_dump(mode="json"), "dead": list(dead)}
    results |= {"synthesizer_per_seed": experiment.synthesizer_per_seed}
    out.write_json("experiment.json", results)
    out.write_bytes("experiment.html", render_page(results).encode())
    out.write_bytes(ANSWER, "".join(f"{line}\n" for line in answer(results)).encode())
    return f"{render_summary(results)}\nreport: {out.path('experiment.html')}"


def study_of(
    experiment: ExperimentConfig, grid: Grid, done: Sequence[Training], costs: Mapping[str, Cost] | None = None
) -> Study:
    """The finished trainings as models to compare.

    Args:
        done: repetition's among them.
        costs: each finished artifact's own, by key.

    Raises:
        SbpError: the corpus holds no documents out.
    """
    costs = costs or {}
    charged = done if costs else ()
    study = Study(
        experiment.base_config(),
        done,
        list(grid.nodes.values()),
        {(one.name, one.seed): asdict(cost_of(one.made_from(), costs)) for one in charged},
        {(one.name, one.seed): asdict(sum((costs[node.key] for node in one.models), Cost())) for one in charged},
    )
    if not any(study.corpus.num_rows(name) for name in study.corpus.files("validation", ".parquet")):
        raise SbpError("the corpus holds no documents out, on which the arms could be compared: raise validation_share")
    return study
