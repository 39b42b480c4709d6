"""Rates by the judge: how much of a text is not factual, not about its d1, or a copy of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sbp_ray.artifacts import MANIFEST, Artifact, fingerprint_of
from sbp_ray.config import JudgeConfig
from sbp_ray.evaluation.judging.cases import QUESTIONS, Case, labelled_cases, prompt_of, prompts_fingerprint
from sbp_ray.evaluation.study import Study
from sbp_ray.evaluation.text_quality.beside_real import name_of_text
from sbp_ray.evaluation.text_quality.corpus_scan import fetch_documents
from sbp_ray.evaluation.text_quality.samples import sample_rows
from sbp_ray.nodes import Node

if TYPE_CHECKING:
    from sbp_ray.evaluation.judging.judge import Judge

Texts = Sequence[tuple[str, str]]
"""Documents as (d1, d2)."""
_MINED = "mined pairs"


def require_judge(cfg: JudgeConfig | None) -> None:
    """Ask the configured judge, where there is one, a labelled case: before hours are spent.

    Raises:
        SbpError: it cannot be reached, refuses the key or the model, or gives no verdict.
    """
    if cfg is not None:
        from sbp_ray.evaluation.judging.judge import Judge  # brings OpenAI's client, which takes a second

        Judge(cfg).require()


def judge_study(study: Study, store: Artifact) -> dict[str, Any] | None:
    """Rates for one synthesis of each arm, that of its first seed, beside mined pairs; None without a judge."""
    judge, seed = study.settings.benchmarks.judge, study.settings.benchmarks.seed
    if judge is None:
        return None
    texts: dict[str, Texts] = {}
    for node, trainings in study.users("synthetic", read_it=True):
        if name_of_text(trainings) not in texts:
            columns, corpus = ["d1_id", "text"], node.inputs["corpus"].artifact
            rows = sample_rows(node.artifact, "", key=["doc_id"], columns=columns, limit=judge.sample, seed=seed)
            d1 = fetch_documents(corpus, {row["d1_id"] for row in rows})
            texts[name_of_text(trainings)] = [(d1[row["d1_id"]]["text"], row["text"]) for row in rows]
    mined = [node for node in study.nodes if _is_mined(node)]
    if mined and texts:
        ids, corpus = ["d1_id", "d2_id"], mined[0].inputs["neighbors"].inputs["embeddings"].inputs["corpus"].artifact
        rows = sample_rows(mined[0].artifact, "train", key=ids, columns=ids, limit=judge.sample, seed=seed)
        found = fetch_documents(corpus, {row[name] for row in rows for name in ids})
        texts[_MINED] = [(found[row["d1_id"]]["text"], found[row["d2_id"]]["text"]) for row in rows]
    return judge_texts(judge, texts, store)


def _is_mined(node: Node) -> bool:
    """By an outside embedder, and there."""
    is_of_kind = node.stage.writes == "pairs" and node.config.pair.source == "neighbors"
    return is_of_kind and node.config.embed.pooling == "sentence" and node.artifact.exists(MANIFEST)


def judge_texts(cfg: JudgeConfig, kinds: Mapping[str, Texts], store: Artifact) -> dict[str, Any]:
    """Test the judge on the labelled cases, then ask it about samples of texts; what it said is kept in the store.

    Raises:
        SbpError: the endpoint refuses the key or the model.
    """
    recipe = {
        "judge": cfg.model_dump(mode="json", exclude={"resources", "min_agreement"}),
        "prompts": prompts_fingerprint(),
        "texts": kinds,
    }
    name = f"judge-{fingerprint_of(recipe)[:8]}.json"
    if store.exists(name):
        return _valued(store.read_json(name), cfg)
    from sbp_ray.evaluation.judging.judge import Judge

    judge = Judge(cfg)
    check = _self_check(judge)
    found = {
        "model": cfg.model,
        "base_url": cfg.base_url,
        "self_check": check,
        "rates": {kind: {q: _rate(judge, q, texts, kind) for q in QUESTIONS} for kind, texts in kinds.items()},
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


def _rate(judge: Judge, question: str, texts: Texts, kind: str) -> dict[str, Any]:
    """Share of YES among the verdicts with its 95 % Wilson interval."""
    cases = [Case(question, d2, None if question == "non_factual" else d1) for d1, d2 in texts]
    verdicts = [verdict for verdict in judge.verdicts(cases, f"{kind}, {question}") if verdict is not None]
    return {"asked": len(cases), "judged": len(verdicts), "rate": share_interval(sum(verdicts), len(verdicts))}


def share_interval(num_yes: int, num: int) -> dict[str, float] | None:
    """A share and its 95 % Wilson interval, which has a width at 0 and 1 too; None without any."""
    if not num:
        return None
    from scipy.stats import binomtest  # late: a machine that only trains and scores goes without

    interval = binomtest(num_yes, num).proportion_ci(0.95, method="wilson")
    return {"value": num_yes / num, "low": float(interval.low), "high": float(interval.high)}
