"""Rates by the judge: how much of a text is not factual, not about its d1, or a copy of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sbp_ray.artifacts import Artifact, fingerprint_of
from sbp_ray.config import JudgeConfig
from sbp_ray.evaluation.judging.cases import QUESTIONS, Case, labelled_cases, prompt_of, prompts_fingerprint

if TYPE_CHECKING:
    from sbp_ray.evaluation.judging.judge import Judge

Texts = Sequence[tuple[str | None, str]]
"""Documents as (d1, d2); without a d1 only factuality is asked."""


def require_judge(cfg: JudgeConfig | None) -> None:
    """Ask the configured judge, where there is one, a labelled case: before hours are spent.

    Raises:
        SbpError: it cannot be reached, refuses the key or the model, or gives no verdict.
    """
    if cfg is not None:
        from sbp_ray.evaluation.judging.judge import Judge  # brings OpenAI's client, which takes a second

        Judge(cfg).require()


def judge_texts(cfg: JudgeConfig, kinds: Mapping[str, Texts], store: Artifact) -> dict[str, Any]:
    """Test the judge on the labelled cases, then ask it about the texts; what it said is kept in the store.

    Args:
        kinds: samples of texts by name, each cut to `sample`.

    Raises:
        SbpError: the endpoint refuses the key or the model.
    """
    shown = {name: list(texts[: cfg.sample]) for name, texts in kinds.items()}
    recipe = {
        "judge": cfg.model_dump(mode="json", exclude={"resources", "min_agreement"}),
        "prompts": prompts_fingerprint(),
        "texts": shown,
    }
    name = f"judge-{fingerprint_of(recipe)[:8]}.json"
    if store.exists(name):
        return _valued(store.read_json(name), cfg)
    from sbp_ray.evaluation.judging.judge import Judge

    judge = Judge(cfg)
    check = _self_check(judge)
    rates = {}
    for kind, texts in shown.items():
        rates[kind] = {question: _rate(judge, question, texts, kind) for question in QUESTIONS}
    found = {
        "model": cfg.model,
        "base_url": cfg.base_url,
        "self_check": check,
        "rates": rates,
        **judge.counted(),
        "prompts": {question: prompt_of(question) for question in QUESTIONS},
    }
    if not judge.num_skipped:  # else the next run of the command asks again
        store.write_json(name, found)
    return _valued(found, cfg)


def _self_check(judge: Judge) -> dict[str, Any]:
    """How often the judge is right where the answer is known; one without a verdict is not right."""
    cases = labelled_cases()
    said = judge.verdicts(cases, "labelled cases")
    found = {}
    for question in QUESTIONS:
        right = [
            verdict == case.verdict for case, verdict in zip(cases, said, strict=True) if case.question == question
        ]
        found[question] = {"cases": len(right), "right": sum(right)}
    return found


def _valued(found: dict[str, Any], cfg: JudgeConfig) -> dict[str, Any]:
    """With what it cost, and whether the judge is believed on each question."""
    check = {
        question: row | {"believed": row["right"] >= cfg.min_agreement * row["cases"]}
        for question, row in found["self_check"].items()
    }
    dollars = (
        found["input_tokens"] * cfg.resources.dollars_per_million_input_tokens
        + found["output_tokens"] * cfg.resources.dollars_per_million_output_tokens
    ) / 1e6
    return found | {"self_check": check, "min_agreement": cfg.min_agreement, "dollars": dollars}


def _rate(judge: Judge, question: str, texts: Texts, kind: str) -> dict[str, Any] | None:
    """Share of YES among the verdicts with its 95 % Wilson interval; None where the question does not apply."""
    cases = [
        Case(question, d2, None if question == "non_factual" else d1)
        for d1, d2 in texts
        if question == "non_factual" or d1 is not None
    ]
    if not cases:
        return None
    verdicts = [verdict for verdict in judge.verdicts(cases, f"{kind}, {question}") if verdict is not None]
    return {"asked": len(cases), "judged": len(verdicts), "rate": share_interval(sum(verdicts), len(verdicts))}


def share_interval(num_yes: int, num: int) -> dict[str, float] | None:
    """A share and its 95 % Wilson interval, which has a width at 0 and 1 too; None without any."""
    if not num:
        return None
    from scipy.stats import binomtest  # late: a machine that only trains and scores goes without

    interval = binomtest(num_yes, num).proportion_ci(0.95, method="wilson")
    return {"value": num_yes / num, "low": float(interval.low), "high": float(interval.high)}
