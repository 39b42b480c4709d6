"""Public benchmarks of every model of the grid: asked once, kept, and compared by question and by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config
from sbp_ray.evaluation.benchmarks.ask_models import ask_models
from sbp_ray.evaluation.benchmarks.measures import BySeed, benchmark_row
from sbp_ray.evaluation.benchmarks.overlap import find_seen
from sbp_ray.evaluation.benchmarks.question_sets import choose_questions
from sbp_ray.evaluation.intervals import mean_interval
from sbp_ray.experiment.arms import BASELINE
from sbp_ray.experiment.grid import Grid, Training


def benchmark_results(
    settings: Config, grid: Grid, trainings: Sequence[Training], store: Artifact
) -> list[dict[str, Any]] | None:
    """A row for each benchmark of the settings, or None without any.

    Args:
        trainings: those that have a result, repetition's among them.
        store: where answers are kept from one run of the command to the next.
    """
    asked = choose_questions(settings)
    if not asked:
        return None
    models = {training.model: grid.nodes[training.model].artifact for training in trainings}
    answers = ask_models(settings.eval, models, asked, store)
    seen = find_seen(asked, _trained_on(grid, trainings), ngram_words=settings.decontaminate.ngram_words, store=store)
    rows = []
    for benchmark in asked:
        found = answers[benchmark.name]
        by_arm: dict[str, BySeed] = {}
        for training in trainings:
            by_arm.setdefault(training.name, {})[training.seed] = found[training.model]["records"]  # type: ignore[index]
        row = benchmark_row(
            benchmark,
            by_arm,
            BASELINE,
            seen=seen[benchmark.name],
            num_truncated=max(answered["num_truncated"] for answered in found.values()),
            seed=settings.benchmarks.seed,
        )
        rows.append(_with_seed_intervals(row))
    return rows


def _trained_on(grid: Grid, trainings: Sequence[Training]) -> dict[Artifact, list[str]]:
    """Files of every corpus' train split and every synthetic text that some model read."""
    found: dict[Artifact, list[str]] = {}
    for key in dict.fromkeys(key for training in trainings for key in grid.ancestry(training.model)):
        artifact = grid.nodes[key].artifact
        if grid.nodes[key].stage.job == "ingest":
            found[artifact] = artifact.files("train", ".parquet")
        elif grid.nodes[key].stage.job == "synthesize":
            found[artifact] = artifact.files("", ".parquet")
    return found


def _with_seed_intervals(row: dict[str, Any]) -> dict[str, Any]:
    """The same with 95 % t-intervals over the training seeds, of values and of gains paired by seed."""
    for measure in row["measures"]:
        for arm in measure["arms"].values():
            for source, name in (("by_seed", "over_seeds"), ("gain_by_seed", "gain_over_seeds")):
                interval = mean_interval(list(arm[source].values()))
                arm[name] = None if interval is None else interval.as_dict()
    return row
