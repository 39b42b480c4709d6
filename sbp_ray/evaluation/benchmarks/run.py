"""Both arms of one run on the public benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config
from sbp_ray.evaluation.benchmarks.ask_models import ask_models
from sbp_ray.evaluation.benchmarks.measures import benchmark_row
from sbp_ray.evaluation.benchmarks.overlap import find_seen
from sbp_ray.evaluation.benchmarks.question_sets import QuestionSet
from sbp_ray.evaluation.comparison import ARMS

_BASELINE = "repetition"


def compare_on_benchmarks(
    settings: Config, artifacts: Mapping[str, Artifact], asked: Sequence[QuestionSet], *, store: Artifact
) -> list[dict[str, Any]] | None:
    """A row for each benchmark, or None without any; answers are kept in `benchmarks/` of the store."""
    if not asked:
        return None
    kept = Artifact("benchmarks", f"{store.url}/benchmarks")
    models = {artifacts[name].fingerprint(): artifacts[name] for name in ARMS.values()}
    answers = ask_models(settings.eval, models, asked, kept)
    trained_on = {
        artifacts["corpus"]: artifacts["corpus"].files("train", ".parquet"),
        artifacts["synthetic"]: artifacts["synthetic"].files("", ".parquet"),
    }
    seen = find_seen(asked, trained_on, ngram_words=settings.decontaminate.ngram_words, store=kept)
    rows = []
    for benchmark in asked:
        found = answers[benchmark.name]
        by_arm = {arm: {0: found[artifacts[name].fingerprint()]["records"]} for arm, name in ARMS.items()}
        num_truncated = max(answered["num_truncated"] for answered in found.values())
        row = benchmark_row(
            benchmark,
            by_arm,
            _BASELINE,
            seen=seen[benchmark.name],
            num_truncated=num_truncated,
            seed=settings.benchmarks.seed,
        )
        rows.append(row)
    return rows
