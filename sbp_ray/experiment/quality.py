"""The quality of every synthesizer's text beside real text, from finished artifacts alone: nothing is written again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray.artifacts import Artifact, fingerprint_of
from sbp_ray.config import Config
from sbp_ray.evaluation.mining import guide_ids, mining_facts, read_guide
from sbp_ray.evaluation.text_quality.duplicates import NEAR_JACCARD
from sbp_ray.evaluation.text_quality.novelty import COPY_CONTAINMENT, NgramTable
from sbp_ray.evaluation.text_quality.panel import Panel, fetch_documents, measure_samples, relevance_facts, scan_corpus
from sbp_ray.evaluation.text_quality.samples import KINDS, REAL_TRAIN, Sample, sample_real, sample_synthetic, token_ids
from sbp_ray.evaluation.text_quality.text_measures import add_distances
from sbp_ray.experiment.grid import Grid, Node, Training
from sbp_ray.experiment.settings import ExperimentConfig
from sbp_ray.report.panel_page import table_row

logger = logging.getLogger(__name__)

_SETTINGS = ("quality_sample", "duplicate_sample", "num_samples", "max_validation_documents", "seed")
_FORMAT = 1  # of what is stored; another number measures again
_YARDSTICK = "real"


def quality_facts(
    experiment: ExperimentConfig, grid: Grid, trainings: Sequence[Training], store: Artifact
) -> dict[str, Any] | None:
    """Every synthetic text that a finished training read, measured by one embedder beside one corpus.

    Args:
        trainings: those that have a result.
        store: keeps what was measured, by the artifact: a rerun measures what is new.

    Returns:
        table: see `panel_page.table_row`; real: the columns behind it, of real text; syntheses: of each synthetic
        artifact, with `synthetic` (its key), `name` and `for` (names of the trainings); relevance; the settings, the
        embedder and the limits. None without any synthetic text.
    """
    users = synthetic_users(grid, trainings)
    if not users:
        return None
    settings = experiment.base_config()
    ruler = _ruler(grid, users)
    corpus, embeddings = (grid.input_of(ruler, noun).artifact for noun in ("corpus", "embeddings"))
    embed = grid.input_of(ruler, "embeddings").config.embed
    names = {key: _file(settings, grid.nodes[key].artifact, embeddings) for key in users}
    real = f"{_YARDSTICK}-{_fingerprint(settings, embeddings.fingerprint())}.json"
    todo = {key: grid.nodes[key].artifact for key in users if not store.exists(names[key])}
    if todo or not store.exists(real):
        logger.info(f"experiment | quality of {len(todo)} synthetic texts beside real text")
        panel = _measure(settings.model_copy(update={"embed": embed}), corpus, embeddings, todo)
        for key in todo:
            store.write_json(names[key], panel.columns.pop(key))
        store.write_json(real, {"texts": panel.columns, "relevance": relevance_facts(panel)})
    found = store.read_json(real)
    columns = {key: store.read_json(names[key]) for key in users}
    return {
        **{name: getattr(settings.eval, name) for name in _SETTINGS},
        "embedder": embed.model,
        "shingle_tokens": embed.shingle_tokens,
        "near_jaccard": NEAR_JACCARD,
        "copy_containment": COPY_CONTAINMENT,
        "real": found["texts"],
        "relevance": found["relevance"],
        "table": _table(users, columns, found["texts"]),
        "syntheses": [
            {"synthetic": key, "name": text_name(trained), "for": [training.name for training in trained]}
            | (columns[key] or {"documents": 0})
            for key, trained in users.items()
        ],
    }


def synthetic_users(grid: Grid, trainings: Sequence[Training]) -> dict[str, list[Training]]:
    """For each synthetic artifact that a training reads, these trainings, each name once."""
    found: dict[str, list[Training]] = {}
    for training in trainings:
        node = grid.nodes[training.model]
        if "synthetic" in node.stage.reads:
            users = found.setdefault(grid.input_of(node, "synthetic").key, [])
            if training.name not in [other.name for other in users]:
                users.append(training)
    return found


def _table(
    users: Mapping[str, Sequence[Training]], columns: Mapping[str, Any], real: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row for each synthesizer, its seeds together, and for real text."""
    by_name: dict[str, list[Any]] = {}
    for key, trained in users.items():
        by_name.setdefault(text_name(trained), []).append(columns[key])
    rows = [table_row(name, "synthetic", found) for name, found in by_name.items()]
    return [*rows, *(table_row(name, KINDS[name], [column]) for name, column in real.items())]


def text_name(trained: Sequence[Training]) -> str:
    """What a synthetic text is called: its arm, and from the second round on the training that it is for."""
    first = trained[0]
    return first.arm if first.round == 1 else first.name


def _ruler(grid: Grid, users: Mapping[str, Sequence[Training]]) -> Node:
    """The synthesis whose embeddings all are measured by: one whose embedder is no arm's own LM, if there is any."""
    outside = [key for key in users if grid.input_of(grid.nodes[key], "embeddings").config.embed.pooling == "sentence"]
    return grid.nodes[(outside or list(users))[0]]


def _fingerprint(settings: Config, *inputs: str) -> str:
    how = {name: getattr(settings.eval, name) for name in _SETTINGS}
    return fingerprint_of({"eval": how, "format": _FORMAT, "inputs": inputs})[:8]


def _file(settings: Config, synthetic: Artifact, embeddings: Artifact) -> str:
    name = synthetic.url.rstrip("/").rpartition("/")[2]
    return f"{name}-{_fingerprint(settings, synthetic.fingerprint(), embeddings.fingerprint())}.json"


def _measure(settings: Config, corpus: Artifact, embeddings: Artifact, todo: Mapping[str, Artifact]) -> Panel:
    cfg = settings.eval
    samples: dict[str, Sample] = {key: sample_synthetic(cfg, made) for key, made in todo.items()}
    samples |= sample_real(cfg, corpus)
    table = NgramTable.of(token_ids(samples))
    wanted = set[bytes]().union(*(sample.d1_ids for sample in samples.values()))
    scan = scan_corpus(corpus, "train", wanted=wanted, groups=(), table=table)
    panel = measure_samples(
        cfg, settings.embed, corpus=corpus, embeddings=embeddings, samples=samples, table=table, scan=scan
    )
    add_distances(panel.columns, REAL_TRAIN)
    return panel


def mining_rows(grid: Grid, trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """How the pairs of each embedder were mined: recall, yield by similarity, and sample pairs of each band."""
    users: dict[str, list[str]] = {}
    for training in trainings:
        for key in grid.ancestry(training.model):
            node = grid.nodes[key]
            is_mined = node.stage.job == "pair" and node.config.pair.source == "neighbors"
            if is_mined and training.name not in users.setdefault(key, []):
                users[key].append(training.name)
    rows = []
    for key, names in users.items():
        node = grid.nodes[key]
        guide = read_guide(node.artifact)
        neighbors = grid.input_of(node, "neighbors")
        corpus = grid.input_of(grid.input_of(neighbors, "embeddings"), "corpus").artifact
        documents = fetch_documents(corpus, guide_ids(guide))
        facts = mining_facts(guide, node.config.pair, neighbors.artifact, documents)
        if facts is not None:
            rows.append({"pairs": key, "for": names, **facts})
    return rows
