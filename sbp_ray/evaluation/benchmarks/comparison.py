"""Public benchmarks of every model of a study: asked once, kept, and compared by question and by seed."""

from __future__ import annotations

from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.evaluation.benchmarks.ask_models import ask_models
from sbp_ray.evaluation.benchmarks.measures import BySeed, benchmark_row
from sbp_ray.evaluation.benchmarks.question_sets import choose_questions
from sbp_ray.evaluation.study import Study
from sbp_ray.evaluation.unseen import find_seen_questions


def compare_on_benchmarks(study: Study, store: Artifact) -> list[dict[str, Any]] | None:
    """A row for each benchmark of the settings, or None without any.

    Args:
        store: where answers are kept from one run of the command to the next.
    """
    settings = study.settings
    asked = choose_questions(settings)
    if not asked:
        return None
    models = {key: made.artifact for key, made in study.models.items()}
    answers = ask_models(settings.eval, models, asked, store)
    seen = find_seen_questions(asked, _trained_on(study), settings.decontaminate.ngram_words, store)
    rows = []
    for questions in asked:
        found = answers[questions.name]
        by_arm: dict[str, BySeed] = {
            name: {seed: found[training.model.key]["records"] for seed, training in seeds.items()}
            for name, seeds in study.by_arm().items()
        }
        num_truncated = max(answered["num_truncated"] for answered in found.values())
        seed = settings.benchmarks.seed
        rows.append(benchmark_row(questions, by_arm, seen=seen[questions.name], num_truncated=num_truncated, seed=seed))
    return rows


def _trained_on(study: Study) -> list[Artifact]:
    """Every corpus and every synthetic text that some model read."""
    return [made.artifact for noun in ("corpus", "synthetic") for made, _ in study.users(noun)]
