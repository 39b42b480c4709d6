"""everything -> report: what both arms learned, what the synthetic text is like, and what the run cost."""

from __future__ import annotations

from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.evaluation.check_settings import check_evaluation
from sbp_ray.evaluation.measure import measure_study
from sbp_ray.evaluation.study import BASELINE, Study, Training
from sbp_ray.nodes import Node
from sbp_ray.report.headline import render_summary
from sbp_ray.report.page import render_page

_ARMS = {
    "base_lm": (BASELINE, "the real text, again and again"),
    "lm": ("sbp", "real text, and what the synthesizer wrote"),
}


def evaluate_run(node: Node, *, out: Artifact) -> dict[str, Any]:
    """Measure the run as a study of two arms and one seed; write `report.json`, `report.html` and `summary.txt`.

    Args:
        node: the report, whose inputs are all artifacts of the run.

    Returns:
        What each arm gained, and the questions that were dropped.

    Raises:
        SbpError: a file of questions or of the truth is missing, malformed, or about another corpus; a benchmark is
            unknown; the judge cannot be reached.
    """
    settings = node.config
    check_evaluation(settings)
    trainings = [_training(node.inputs[noun], *arm) for noun, arm in _ARMS.items()]
    results = measure_study(Study(settings, trainings, tuple(node.inputs.values())), out)
    results |= {"run_dir": settings.run_dir, "settings": settings.model_dump(mode="json")}
    out.write_json("report.json", results)
    out.write_bytes("report.html", render_page(results).encode())
    out.write_bytes("summary.txt", render_summary(results).encode())
    unknown = results["unknown_questions"]
    return {
        "arms": {arm["name"]: arm["measures"] for arm in results["arms"]},
        "drops": {"question_about_unknown_group": unknown} if unknown else {},
    }


def _training(model: Node, arm: str, says: str) -> Training:
    stats = model.stats
    return Training(
        name=arm,
        arm=arm,
        like=arm,
        says=says,
        seed=model.config.pretrain.seed,
        share=stats.get("mixture", {}).get("synthetic", {}).get("share"),
        round=stats.get("round") or 1,
        tokens=stats["positions"],
        model=model,
    )
