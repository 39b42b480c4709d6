"""The quality of every synthesizer's text beside real text, from finished artifacts alone: nothing is written again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
Users = Sequence[tuple[Node, Sequence[Training]]]


def measure_quality(study: Study, store: Artifact) -> dict[str, Any] | None:
    """Every synthetic text that a model was trained on, measured by one embedder beside one corpus.

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
    embeddings = _choose_ruler([made for made, _ in users])
    settings = study.settings.model_copy(update={"embed": embeddings.config.embed})
    columns, real = _measure_new(settings, embeddings, _mined_with(embeddings, study), users, store)
    return {
        **{name: getattr(settings.eval, name) for name in _SETTINGS},
        "embedder": settings.embed.model,
        "shingle_tokens": settings.embed.shingle_tokens,
        "near_jaccard": NEAR_JACCARD,
        "copy_containment": COPY_CONTAINMENT,
        "real": real["texts"],
        "relevance": real["relevance"],
        "table": _table(users, columns, real["texts"]),
        "syntheses": [
            {"synthetic": made.key, "name": name_of_text(trained), "for": names_of(trained)}
            | (columns[made.key] or {"documents": 0})
            for made, trained in users
        ],
    }


def _measure_new(
    settings: Config, embeddings: Node, pairs: Node | None, users: Users, store: Artifact
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of all synthetic texts by key, and those of real text; only what the store lacks is measured."""
    cfg = settings.eval
    rulers = [made.artifact.fingerprint() for made in (embeddings, pairs) if made is not None]
    synthetic = {made.key: made.artifact for made, _ in users}
    names = {
        key: f"{key}-{_fingerprint(settings, made.fingerprint(), *rulers)}.json" for key, made in synthetic.items()
    }
    real = f"real-{_fingerprint(settings, *rulers)}.json"
    todo = {key: made for key, made in synthetic.items() if not store.exists(names[key])}
    if todo or not store.exists(real):
        logger.info(f"eval | quality of {len(todo)} synthetic texts beside real text")
        corpus = embeddings.inputs["corpus"].artifact
        columns, relevance = measure_samples(
            settings,
            corpus=corpus,
            embeddings=embeddings.artifact,
            samples={key: sample_synthetic(cfg, made) for key, made in todo.items()} | sample_real(cfg, corpus),
            mined=sample_pairs(cfg, pairs.artifact) if pairs else [],
        )
        for key in todo:
            store.write_json(names[key], columns.pop(key))
        store.write_json(real, {"texts": columns, "relevance": relevance})
    return {key: store.read_json(name) for key, name in names.items()}, store.read_json(real)


def _table(users: Users, columns: Mapping[str, Any], real: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each synthesizer, its seeds together, and for real text."""
    by_name: dict[str, list[Any]] = {}
    for made, trained in users:
        by_name.setdefault(name_of_text(trained), []).append(columns[made.key])
    rows = [table_row(name, "synthetic", found) for name, found in by_name.items()]
    return [*rows, *(table_row(name, KINDS[name], [column]) for name, column in real.items())]


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


def _fingerprint(settings: Config, *inputs: str) -> str:
    how = {name: getattr(settings.eval, name) for name in _SETTINGS}
    return fingerprint_of({"eval": how, "inputs": inputs})[:8]
