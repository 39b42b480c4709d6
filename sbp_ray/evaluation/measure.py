"""Measure a study: everything that `report.json` and `experiment.json` hold, and the page is made of."""

from __future__ import annotations

from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.evaluation.benchmarks.comparison import compare_on_benchmarks
from sbp_ray.evaluation.facts.measured_facts import measure_facts
from sbp_ray.evaluation.found_elsewhere import read_found_elsewhere
from sbp_ray.evaluation.intervals import MIN_GROUPS
from sbp_ray.evaluation.judging.rates import judge_study
from sbp_ray.evaluation.likelihood.arm_losses import HEADLINE, arm_rows, equal_cost_rows, losses_of
from sbp_ray.evaluation.likelihood.effective_data import effective_data
from sbp_ray.evaluation.likelihood.scored_texts import Texts, score_study
from sbp_ray.evaluation.recorded import artifact_row, corpus_card, loss_curve, mining_facts
from sbp_ray.evaluation.study import Study, names_of
from sbp_ray.evaluation.text_quality.beside_real import measure_quality
from sbp_ray.evaluation.text_quality.corpus_scan import fetch_documents
from sbp_ray.evaluation.unseen import find_held_out_text
from sbp_ray.provenance import provenance

_WRITTEN = ("samples", "documents", "tokens", "tokens_generated", "drops", "real_text")


def measure_study(study: Study, out: Artifact) -> dict[str, Any]:
    """Measure all models, and everything that they were made from.

    Args:
        out: keeps scores, answers and measurements in `scores/` and `quality/`: the same command goes on from there.

    Raises:
        SbpError: a file of questions is about other groups than the corpus's; the truth is that of another corpus; the
            judge refuses the key or the model.
    """
    store, settings = Artifact("scores", f"{out.url}/scores"), study.settings
    texts, scores = score_study(study, store)
    arms = arm_rows(study, scores, texts)
    return {
        "seeds": sorted({one.seed for one in study.trainings}),
        "scale": _scale(study),
        "texts": _text_facts(texts),
        "min_groups": MIN_GROUPS,
        "unknown_questions": texts.unknown_questions,
        "arms": arms,
        "equal_cost": equal_cost_rows(arms),
        "effective_data": effective_data(study, losses_of(arms)) if HEADLINE in arms[0]["measures"] else None,
        "curves": [
            {"name": one.name, "seed": one.seed, "points": loss_curve(one.model.artifact)}
            for one in study.trainings
            if not one.members
        ],
        "benchmarks": compare_on_benchmarks(study, store),
        "judge": judge_study(study, store),
        **_written_by(study),
        "facts": measure_facts(study, store),
        "quality": measure_quality(study, Artifact("quality", f"{out.url}/quality")),
        "corpora": [
            card | {"for": names_of(trainings)}
            for node, trainings in study.users("corpus")
            if (card := corpus_card(node))
        ],
        "mining": [
            facts | {"for": names_of(trainings)}
            for node, trainings in study.users("pairs")
            if (facts := mining_facts(node, fetch_documents))
        ],
        "decontamination": find_held_out_text(study.nodes, texts.held_out, settings.decontaminate.ngram_words, store),
        "artifacts": [artifact_row(node) for node in study.nodes],
        "found_elsewhere": read_found_elsewhere(settings.eval),
        "made_by": provenance(),
    }


def _written_by(study: Study) -> dict[str, list[dict[str, Any]]]:
    """The synthesizers and what they wrote, as their stages counted."""
    return {
        "synthesizers": [
            {"synthesizer": node.key, "for": names_of(trainings), "points": loss_curve(node.artifact)}
            | (node.stats.get("validation") or {"pairs": 0})  # its conditional gain on held-out pairs
            for node, trainings in study.users("synthesizer")
        ],
        "synthetic": [
            {"synthetic": node.key, "for": names_of(trainings), **{key: node.stats.get(key) for key in _WRITTEN}}
            for node, trainings in study.users("synthetic", read_it=True)
        ],
    }


def _scale(study: Study) -> dict[str, Any]:
    """How large the corpus and the synthetic texts are, as their stages counted them."""
    train = (study.corpus.manifest() or {}).get("stats", {}).get("train", {})
    written = [made.stats.get("documents") for made, _ in study.users("synthetic", read_it=True)]
    return {
        "documents": train.get("documents"),
        "tokens": train.get("tokens"),
        "synthetic_documents": sum(number or 0 for number in written),
    }


def _text_facts(texts: Texts) -> dict[str, dict[str, int]]:
    return {
        name: {
            "units": len(one.units),
            "groups": len(set(one.groups)),
            "tokens": int(one.num_tokens.sum()),
            "bytes": int(one.num_bytes.sum()),
        }
        for name, one in texts.sets.items()
    }
