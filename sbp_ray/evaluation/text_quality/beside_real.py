"""The quality of every synthesizer's text beside real text, from finished artifacts alone: nothing is written again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sbp_ray.artifacts import Artifact, fingerprint_of
from sbp_ray.config import Config
from sbp_ray.evaluation.study import Study, Training, names_of
from sbp_ray.evaluation.text_quality.duplicates import NEAR_JACCARD
from sbp_ray.evaluation.text_quality.novelty import COPY_CONTAINMENT
from sbp_ray.evaluation.text_quality.panel import measure_samples
from sbp_ray.evaluation.text_quality.samples import KINDS, sample_pairs, sample_real, sample_synthetic
from sbp_ray.nodes import Node
from sbp_ray.report.panel_page import table_row

logger = logging.getLogger(__name__)

_SETTINGS = ("quality_sample", "duplicate_sample", "num_samples", "max_validation_documents", "seed")


def measure_quality(study: Study, store: Artifact) -> dict[str, Any] | None:
    """Every synthetic text that a model was trained on, measured by one embedder beside one corpus; those that were
    written from another corpus are left out.

    Args:
        store: keeps what was measured, by the artifact: a rerun measures what is new.

    Returns:
        table: see `panel_page.table_row`; real: the columns behind it, of real text and of mined pairs; syntheses: of
        each synthetic artifact, with `synthetic` (its key), `name` and `for` (names of the trainings); relevance; the
        settings, the embedder and the limits. None without any synthetic text.
    """
    users = study.users("synthetic", read_it=True)
    if not users:
        return None
    embeddings = _choose_ruler([node for node, _ in users])
    corpus = embeddings.inputs["corpus"].key
    if others := [name_of_text(trainings) for node, trainings in users if node.inputs["corpus"].key != corpus]:
        logger.info(
            f"eval | quality of {', '.join(others)} is not measured: written from another corpus than the others"
        )
        users = [(node, trainings) for node, trainings in users if node.inputs["corpus"].key == corpus]
    settings = study.settings.model_copy(update={"embed": embeddings.config.embed})
    columns, real = _measure_new(settings, embeddings, _mined_with(embeddings, study), [n for n, _ in users], store)
    by_name: dict[str, list[Any]] = {}  # a row for each synthesizer, its seeds together
    for node, trainings in users:
        by_name.setdefault(name_of_text(trainings), []).append(columns[node.key])
    rows = [table_row(name, "synthetic", found) for name, found in by_name.items()]
    return {
        **{name: getattr(settings.eval, name) for name in _SETTINGS},
        "embedder": settings.embed.model,
        "shingle_tokens": settings.embed.shingle_tokens,
        "near_jaccard": NEAR_JACCARD,
        "copy_containment": COPY_CONTAINMENT,
        "real": real["texts"],
        "relevance": real["relevance"],
        "table": [*rows, *(table_row(name, KINDS[name], [column]) for name, column in real["texts"].items())],
        "syntheses": [
            {"synthetic": node.key, "name": name_of_text(trainings), "for": names_of(trainings)}
            | (columns[node.key] or {"documents": 0})
            for node, trainings in users
        ],
    }


def _measure_new(
    settings: Config, embeddings: Node, pairs: Node | None, synthetic: Sequence[Node], store: Artifact
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of all synthetic texts by key, and those of real text; only what the store lacks is measured."""
    cfg, corpus = settings.eval, embeddings.inputs["corpus"].artifact
    how = {name: getattr(cfg, name) for name in _SETTINGS}
    rulers = [node.fingerprint for node in (embeddings, pairs) if node is not None]
    real, *names = (
        f"{name}-{fingerprint_of({'eval': how, 'inputs': [*read, *rulers]})[:8]}.json"
        for name, read in [("real", []), *((node.key, [node.fingerprint]) for node in synthetic)]
    )
    todo = {node.key: name for node, name in zip(synthetic, names, strict=True) if not store.exists(name)}
    if todo or not store.exists(real):
        logger.info(f"eval | quality of {len(todo)} synthetic texts beside real text")
        new = {node.key: sample_synthetic(cfg, node.artifact) for node in synthetic if node.key in todo}
        columns, relevance = measure_samples(
            settings,
            corpus=corpus,
            embeddings=embeddings.artifact,
            samples=new | sample_real(cfg, corpus),
            mined=sample_pairs(cfg, pairs.artifact) if pairs else [],
        )
        for key, name in todo.items():
            store.write_json(name, columns.pop(key))
        store.write_json(real, {"texts": columns, "relevance": relevance})
    found = {node.key: store.read_json(name) for node, name in zip(synthetic, names, strict=True)}
    return found, store.read_json(real)


def name_of_text(trained: Sequence[Training]) -> str:
    """What a synthetic text is called: its arm, and from the second round on the training that it is for."""
    first = trained[0]
    return first.arm if first.round == 1 else first.name


def _choose_ruler(synthetic: Sequence[Node]) -> Node:
    """The embeddings by which all are measured: those of an embedder that is no arm's own LM, if there are any."""
    embeddings = [made.inputs["embeddings"] for made in synthetic]
    return next((made for made in embeddings if made.config.embed.pooling == "sentence"), embeddings[0])


def _mined_with(embeddings: Node, study: Study) -> Node | None:
    """The first pairs that were mined with these vectors."""
    mined = [made for made, _ in study.users("pairs") if made.config.pair.source == "neighbors"]
    return next((m for m in mined if m.inputs["neighbors"].inputs["embeddings"].key == embeddings.key), None)
