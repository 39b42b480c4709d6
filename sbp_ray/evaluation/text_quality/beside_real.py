"""The quality of every synthesizer's text beside real text, from finished artifacts alone: nothing is written again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray.artifacts import Artifact, fingerprint_of
from sbp_ray.config import Config
from sbp_ray.evaluation.study import Made, Study, Trained, names_of
from sbp_ray.evaluation.text_quality.corpus_scan import Scan
from sbp_ray.evaluation.text_quality.duplicates import NEAR_JACCARD
from sbp_ray.evaluation.text_quality.novelty import COPY_CONTAINMENT, NgramTable
from sbp_ray.evaluation.text_quality.panel import Panel, measure_samples, relevance_facts, scan_corpus
from sbp_ray.evaluation.text_quality.samples import (
    KINDS,
    REAL_TRAIN,
    Row,
    Sample,
    sample_pairs,
    sample_real,
    sample_synthetic,
    token_ids,
)
from sbp_ray.evaluation.text_quality.text_measures import add_distances, copying, irrelevance
from sbp_ray.report.panel_page import table_row

logger = logging.getLogger(__name__)

_SETTINGS = ("quality_sample", "duplicate_sample", "num_samples", "max_validation_documents", "seed")
_MINED = "mined"
Users = Sequence[tuple[Made, Sequence[Trained]]]


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
    settings: Config, embeddings: Made, pairs: Made | None, users: Users, store: Artifact
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of all synthetic texts by key, and those of real text; only what the store lacks is measured."""
    rulers = [made.artifact.fingerprint() for made in (embeddings, pairs) if made is not None]
    synthetic = {made.key: made.artifact for made, _ in users}
    names = {
        key: f"{key}-{_fingerprint(settings, made.fingerprint(), *rulers)}.json" for key, made in synthetic.items()
    }
    real = f"real-{_fingerprint(settings, *rulers)}.json"
    todo = {key: made for key, made in synthetic.items() if not store.exists(names[key])}
    if todo or not store.exists(real):
        logger.info(f"eval | quality of {len(todo)} synthetic texts beside real text")
        panel = _measure(settings, embeddings, pairs, todo)
        for key in todo:
            store.write_json(names[key], panel.columns.pop(key))
        store.write_json(real, {"texts": panel.columns, "relevance": relevance_facts(panel)})
    return {key: store.read_json(name) for key, name in names.items()}, store.read_json(real)


def _table(users: Users, columns: Mapping[str, Any], real: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each synthesizer, its seeds together, and for real text."""
    by_name: dict[str, list[Any]] = {}
    for made, trained in users:
        by_name.setdefault(name_of_text(trained), []).append(columns[made.key])
    rows = [table_row(name, "synthetic", found) for name, found in by_name.items()]
    return [*rows, *(table_row(name, KINDS[name], [column]) for name, column in real.items())]


def name_of_text(trained: Sequence[Trained]) -> str:
    """What a synthetic text is called: its arm, and from the second round on the training that it is for."""
    first = trained[0]
    return first.arm if first.round == 1 else first.name


def _choose_ruler(synthetic: Sequence[Made]) -> Made:
    """The embeddings by which all are measured: those of an embedder that is no arm's own LM, if there are any."""
    embeddings = [made.inputs["embeddings"] for made in synthetic]
    return next((made for made in embeddings if made.config.embed.pooling == "sentence"), embeddings[0])


def _mined_with(embeddings: Made, study: Study) -> Made | None:
    """The first pairs that were mined with these vectors."""
    mined = [made for made, _ in study.users("pairs") if made.config.pair.source == "neighbors"]
    return next((m for m in mined if m.inputs["neighbors"].inputs["embeddings"].key == embeddings.key), None)


def _fingerprint(settings: Config, *inputs: str) -> str:
    how = {name: getattr(settings.eval, name) for name in _SETTINGS}
    return fingerprint_of({"eval": how, "inputs": inputs})[:8]


def _measure(settings: Config, embeddings: Made, pairs: Made | None, todo: Mapping[str, Artifact]) -> Panel:
    cfg, corpus = settings.eval, embeddings.inputs["corpus"].artifact
    samples: dict[str, Sample] = {key: sample_synthetic(cfg, made) for key, made in todo.items()}
    samples |= sample_real(cfg, corpus)
    mined = sample_pairs(cfg, pairs.artifact) if pairs else []
    table = NgramTable.of(token_ids(samples))
    wanted = set[bytes]().union(*(sample.d1_ids for sample in samples.values()))
    wanted |= {row[key] for row in mined for key in ("d1_id", "d2_id")}
    scan = scan_corpus(corpus, "train", wanted=wanted, groups=(), table=table)  # novelty: what the models have read
    panel = measure_samples(
        cfg,
        settings.embed,
        corpus=corpus,
        embeddings=embeddings.artifact,
        samples=samples,
        table=table,
        scan=scan,
    )
    add_distances(panel.columns, REAL_TRAIN)
    panel.columns[_MINED] = _mined_column(settings, mined, scan, panel.threshold)
    return panel


def _mined_column(settings: Config, mined: Sequence[Row], scan: Scan, threshold: float | None) -> dict[str, Any] | None:
    """What synthetic pairs have in common with mined ones: copying and relevance; None where none were mined."""
    if not mined:
        return None
    pairs = [tuple(scan.documents[row[key]]["input_ids"] for key in ("d1_id", "d2_id")) for row in mined]
    cosines = [row["cosine"] for row in mined if row["cosine"] is not None]
    seed = settings.eval.seed
    relevance = irrelevance(cosines, threshold, seed=seed) if cosines and threshold is not None else None
    copied = copying(pairs, shingle_tokens=settings.embed.shingle_tokens, seed=seed)  # type: ignore[arg-type]
    return {"documents": len(mined), "d1": {"copying": copied, "relevance": relevance}}
