"""The card of a model that is handed on: what a reader must know before using it, in Markdown."""

from __future__ import annotations

from sbp_ray.artifacts import Artifact
from sbp_ray.training.training_plan import TrainingPlan

_USE = {
    "tune": "It is given `<bos>`, a document and `<|related|>`, and writes a document that is related to it.",
    "pretrain": "It continues text, and was not taught to follow instructions.",
}


def describe_model(plan: TrainingPlan, num_parameters: int, step: int) -> str:
    """The text of the card.

    Args:
        num_parameters: of the model.
        step: after which the weights are so.
    """
    base = plan.base.url if isinstance(plan.base, Artifact) else plan.base
    settings = {
        name: value
        for name, value in plan.config.model_dump(mode="json").items()
        if isinstance(value, int | float | str) and name != "base"
    }
    facts = {
        "stage": plan.stage,
        "parameters": f"{num_parameters:,}",
        "weights after step": f"{step:,} of {plan.num_steps:,}",
        "begun from": base or "random weights",
        **settings,
    }
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "# A language model made by Synthetic Bootstrapped Pretraining",
        "",
        _USE["tune" if plan.stage.startswith("tune") else "pretrain"],
        "sbp_ray made it (arXiv 2509.15248). It knows what its corpus says, and repeats it unchecked.",
        "Its licence follows from the corpus' and from that of the weights that it was begun from.",
        "",
        "| what | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
    ]
    return "\n".join([*lines, ""])
