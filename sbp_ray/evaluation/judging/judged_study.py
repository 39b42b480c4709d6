"""What the judge says of a study's synthetic text, beside the mined pairs of real documents."""

from __future__ import annotations

from typing import Any

from sbp_ray.artifacts import MANIFEST, Artifact
from sbp_ray.evaluation.judging.rates import Texts, judge_texts
from sbp_ray.evaluation.study import Study
from sbp_ray.evaluation.text_quality.beside_real import name_of_text
from sbp_ray.evaluation.text_quality.corpus_scan import fetch_documents
from sbp_ray.evaluation.text_quality.sampling import sample_rows
from sbp_ray.nodes import Node

_MINED = "mined pairs"


def judge_study(study: Study, store: Artifact) -> dict[str, Any] | None:
    """Rates for one synthesis of each arm, that of its first seed; None without a judge."""
    judge, seed = study.settings.benchmarks.judge, study.settings.benchmarks.seed
    if judge is None:
        return None
    texts: dict[str, Texts] = {}
    for synthetic, trained in study.users("synthetic", read_it=True):
        if name_of_text(trained) not in texts:
            texts[name_of_text(trained)] = _beside_d1(synthetic, judge.sample, seed)
    mined = [node for node in study.nodes if _is_mined(node)]
    if mined and texts:
        texts[_MINED] = _mined(mined[0], judge.sample, seed)
    return judge_texts(judge, texts, store)


def _beside_d1(synthetic: Node, sample: int, seed: int) -> Texts:
    columns = ["doc_id", "d1_id", "text"]
    rows = sample_rows(synthetic.artifact, "", key=["doc_id"], columns=columns, limit=sample, seed=seed)
    d1 = fetch_documents(synthetic.inputs["corpus"].artifact, {row["d1_id"] for row in rows})
    return [(d1[row["d1_id"]]["text"], row["text"]) for row in rows]


def _mined(pairs: Node, sample: int, seed: int) -> Texts:
    ids = ["d1_id", "d2_id"]
    corpus = pairs.inputs["neighbors"].inputs["embeddings"].inputs["corpus"]
    rows = sample_rows(pairs.artifact, "train", key=ids, columns=ids, limit=sample, seed=seed)
    found = fetch_documents(corpus.artifact, {row[name] for row in rows for name in ids})
    return [(found[row["d1_id"]]["text"], found[row["d2_id"]]["text"]) for row in rows]


def _is_mined(node: Node) -> bool:
    """By an outside embedder, and there."""
    is_of_kind = node.stage.writes == "pairs" and node.config.pair.source == "neighbors"
    return is_of_kind and node.config.embed.pooling == "sentence" and node.artifact.exists(MANIFEST)
