"""everything -> report: what both arms learned, what the synthetic text is like, and what the run cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config
from sbp_ray.evaluation.benchmarks.question_sets import choose_questions
from sbp_ray.evaluation.judging.rates import require_judge
from sbp_ray.evaluation.likelihood.closed_book import check_questions
from sbp_ray.evaluation.measure import measure_study
from sbp_ray.evaluation.study import BASELINE, Made, Study, Trained
from sbp_ray.report.headline import render_summary
from sbp_ray.report.page import render_page

_MADE_FROM = {
    "corpus": (),
    "embeddings": ("corpus",),
    "neighbors": ("embeddings",),
    "pairs": ("neighbors",),
    "base_lm": ("corpus",),
    "synthesizer": ("corpus", "pairs", "base_lm"),
    "synthetic": ("corpus", "embeddings", "synthesizer"),
    "lm": ("corpus", "synthetic"),
}
_ARMS = {
    "base_lm": (BASELINE, "the real text, again and again"),
    "lm": ("sbp", "real text, and what the synthesizer wrote"),
}


def evaluate_run(artifacts: Mapping[str, Artifact], *, settings: Config, out: Artifact) -> dict[str, Any]:
    """Measure the run as a study of two arms and one seed; write `report.json`, `report.html` and `summary.txt`.

    Args:
        artifacts: every artifact of the run by its noun.

    Returns:
        What each arm gained, and the questions that were dropped.

    Raises:
        SbpError: a file of questions is missing, malformed, or about other articles than the corpus; a benchmark is
            unknown; the judge cannot be reached.
    """
    check_questions(settings.eval)
    choose_questions(settings)
    require_judge(settings.benchmarks.judge)
    results = measure_study(study_of(artifacts, settings), out)
    results |= {"run_dir": settings.run_dir, "settings": settings.model_dump(mode="json")}
    out.write_json("report.json", results)
    out.write_bytes("report.html", render_page(results).encode())
    out.write_bytes("summary.txt", render_summary(results).encode())
    unknown = results["unknown_questions"]
    return {
        "arms": {arm["name"]: arm["measures"] for arm in results["arms"]},
        "drops": {"question_about_unknown_group": unknown} if unknown else {},
    }


def study_of(artifacts: Mapping[str, Artifact], settings: Config) -> Study:
    """The run's two arms, and what each was made from."""
    made: dict[str, Made] = {}
    for noun, inputs in _MADE_FROM.items():
        artifact = artifacts[noun]
        stage = (artifact.manifest() or {}).get("stage", noun)
        key = f"{noun}-{artifact.fingerprint()[:8]}"
        made[noun] = Made(key, stage, artifact, settings, {name: made[name] for name in inputs})
    trained = [
        Trained(
            name=name,
            arm=name,
            like=name,
            says=says,
            seed=settings.pretrain.seed,
            share=made[noun].stats.get("mixture", {}).get("synthetic", {}).get("share"),
            round=made[noun].stats.get("round") or 1,
            tokens=made[noun].stats["positions"],
            model=made[noun],
        )
        for noun, (name, says) in _ARMS.items()
    ]
    return Study(settings, trained, tuple(made.values()))
