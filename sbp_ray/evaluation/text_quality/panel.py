"""The quality panel on the cluster: samples of text measured beside the corpus that the synthesizer read.

One pass over the corpus (`scan_corpus`), one over its vectors, and one over the files that may hold duplicates; each
shard in a task of its own. What a worker holds is bounded by the samples, not by the corpus.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbp_ray import metrics
from sbp_ray.artifacts import Artifact
from sbp_ray.config import EmbedConfig, EvalConfig, Resources
from sbp_ray.evaluation.tasks import by_shard, in_parts, results, shard_calls
from sbp_ray.evaluation.text_quality.corpus_scan import Scan, read_rows, scan_shards
from sbp_ray.evaluation.text_quality.duplicates import Signed, duplicate_shares, sign_shard
from sbp_ray.evaluation.text_quality.nearest import Nearest, nearest_in_shard
from sbp_ray.evaluation.text_quality.novelty import NgramTable
from sbp_ray.evaluation.text_quality.samples import REAL_TRAIN, Row, Sample
from sbp_ray.evaluation.text_quality.text_measures import (
    RANDOM_PAIR_QUANTILE,
    copying,
    held_by,
    irrelevance,
    irrelevance_threshold,
    random_cosines,
    sample_column,
)
from sbp_ray.logs import Progress
from sbp_ray.schema import Split

# So many texts are embedded between two lines of progress; batches are formed within them.
_EMBED_ROWS = 256
# A report shows so much of a text.
_SHOWN_CHARS = 2000


def scan_corpus(
    corpus: Artifact, split: Split, *, wanted: Iterable[bytes], groups: Collection[str], table: NgramTable | None
) -> Scan:
    """Stream a split once: documents to bring back, groups to look for, runs of tokens to count."""
    import ray

    names = corpus.files(split, ".parquet")
    ids = by_shard(wanted, corpus, split)
    scan, shared = ray.remote(num_cpus=1)(scan_shards), ray.put(table)
    calls = [
        (len(part), partial(scan.remote, corpus, {n: ids.get(n, []) for n in part}, groups=groups, table=shared))
        for part in in_parts(names)
    ]
    total = Scan()
    progress = Progress(f"eval scan {split}", len(names), "shards")
    for num_shards, found in results(calls):
        total.add(found)
        metrics.count("sbp_documents", found.num_documents, stage="eval")
        metrics.count("sbp_tokens", found.num_tokens, stage="eval")
        progress.advance(num_shards)
    return total


@dataclass
class Panel:
    """What was measured."""

    threshold: float | None = None
    """Pairs below this cosine are irrelevant; None where there are too few documents to know."""
    random: dict[str, Any] | None = None
    """Cosines of random pairs of real documents, that it comes from."""
    columns: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """By sample; see `text_measures.sample_column`, with `duplicates`; of synthetic text also `d1` and `shown`."""


def measure_samples(
    cfg: EvalConfig,
    embed: EmbedConfig,
    *,
    corpus: Artifact,
    embeddings: Artifact,
    samples: Mapping[str, Sample],
    table: NgramTable,
    scan: Scan,
) -> Panel:
    """Measure every sample.

    Args:
        embed: how `embeddings` was made.
        samples: that of real training text among them.
        table: of the runs of these samples.
        scan: of the train split, with this table; its documents include every d1.
    """
    vectors = _sample_vectors(cfg, embed, embeddings, samples)
    nearest = _nearest(embeddings, samples, vectors)
    panel = Panel(columns=_sample_columns(cfg, samples, table, scan, nearest))
    if len(vectors[REAL_TRAIN]) > 1:
        chance_N = random_cosines(vectors[REAL_TRAIN], seed=cfg.seed)
        panel.threshold = irrelevance_threshold(chance_N)
        panel.random = irrelevance(chance_N, panel.threshold, seed=cfg.seed)
    d1_ids = set[bytes]().union(*(sample.d1_ids for sample in samples.values()))
    d1_vectors = _stored_vectors(embeddings, d1_ids, "train")
    for name, found in _duplicates(cfg, embed, embeddings, samples).items():
        if (column := panel.columns[name]) is None:
            continue
        column["duplicates"] = found
        if samples[name].kind == "synthetic":
            rows, near = samples[name].rows, nearest[name]
            cosine_N = np.array([vectors[name][i] @ d1_vectors[row["d1_id"]] for i, row in enumerate(rows)])
            column["d1"] = _beside_d1(cfg, embed, rows, cosine_N, scan.documents, panel.threshold)
            column["nearest"]["is_d1_share"] = float(np.mean([near.id_N[i] == r["d1_id"] for i, r in enumerate(rows)]))
            column["shown"] = _shown(cfg, embed, rows, cosine_N, near, scan.documents)
    _add_nearest_texts(corpus, [row for column in panel.columns.values() for row in (column or {}).get("shown", ())])
    return panel


def _sample_columns(
    cfg: EvalConfig, samples: Mapping[str, Sample], table: NgramTable, scan: Scan, nearest: Mapping[str, Nearest]
) -> dict[str, dict[str, Any] | None]:
    """What `text_measures.sample_column` says of each sample, in the samples' order."""
    import ray

    shared, counts = ray.put(table), ray.put(scan.ngram_counts)
    measure = ray.remote(num_cpus=1)(sample_column)
    calls = [
        (name, partial(measure.remote, sample, shared, counts, nearest[name], seed=cfg.seed))
        for name, sample in samples.items()
    ]
    return dict.fromkeys(samples) | dict(results(calls))


def relevance_facts(panel: Panel) -> dict[str, Any]:
    """What irrelevance is judged by."""
    return {"threshold": panel.threshold, "random_quantile": RANDOM_PAIR_QUANTILE, "random": panel.random}


# Vectors


def _sample_vectors(
    cfg: EvalConfig, embed: EmbedConfig, embeddings: Artifact, samples: Mapping[str, Sample]
) -> dict[str, NDArray[np.float32]]:
    """Unit vectors of each sample's documents: stored ones of the corpus, new ones of synthetic text."""
    import ray

    task = ray.remote(num_cpus=cfg.resources.num_cpus, num_gpus=cfg.resources.num_gpus)(_embed)
    found: dict[str, NDArray[np.float32]] = {}
    calls = []
    for name, sample in samples.items():
        if sample.kind == "synthetic":
            texts = [row["text"] for row in sample.rows]
            calls.append((name, partial(task.remote, embed, cfg.resources, name, texts)))
        else:
            stored = _stored_vectors(embeddings, {row["doc_id"] for row in sample.rows}, sample.kind)
            found[name] = _stacked([stored[row["doc_id"]] for row in sample.rows])
    return found | dict(results(calls, at_once=cfg.resources.num_workers))


def _stacked(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


def _stored_vectors(embeddings: Artifact, doc_ids: set[bytes], split: Split) -> dict[bytes, NDArray[np.float32]]:
    """Unit vectors that the run made of documents of a split, by id; zeros, related to nothing, where it made none."""
    rows = _fetch_rows(embeddings, split, doc_ids, ("doc_id", "vector"))
    made = {doc_id: np.asarray(row["vector"], np.float32) for doc_id, row in rows.items()}
    zeros = np.zeros(max(map(len, made.values()), default=0), np.float32)
    return {doc_id: made.get(doc_id, zeros) for doc_id in doc_ids}


def _embed(embed: EmbedConfig, resources: Resources, name: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors made as the run embedded its corpus, float32 [N, D]. Runs in a process of its own."""
    from sbp_ray.embedder import load_embedder

    embedder = load_embedder(embed.model_copy(update={"resources": resources}))
    progress = Progress(f"eval embed {name}", len(texts), "texts")
    vectors = [np.empty((0, embedder.dim), np.float32)]
    for start in range(0, len(texts), _EMBED_ROWS):
        part = texts[start : start + _EMBED_ROWS]
        vectors.append(np.nan_to_num(embedder(part)))  # no direction: related to nothing
        progress.advance(len(part))
    return np.concatenate(vectors)


def _nearest(
    embeddings: Artifact, samples: Mapping[str, Sample], vectors: Mapping[str, NDArray[np.float32]]
) -> dict[str, Nearest]:
    """Of every document of every sample: all are compared with a shard at once, so that it is read once."""
    import ray

    filled = {name: vectors[name] for name in samples if len(vectors[name])}
    total = Nearest.none(sum(len(vector_ND) for vector_ND in filled.values()))
    if filled:
        own_ids = [row["doc_id"] if s.kind == "train" else b"" for s in samples.values() for row in s.rows]
        every = ray.put(np.concatenate(list(filled.values())))
        by_name = dict.fromkeys(embeddings.files("train", ".parquet"), every)
        for _, found in results(shard_calls(nearest_in_shard, embeddings, by_name, own_ids=own_ids)):
            total = total.or_nearer(found)
    parts, start = {}, 0
    for name, sample in samples.items():
        rows = slice(start, start + len(sample.rows))
        parts[name] = Nearest(total.cosine_N[rows], total.id_N[rows])
        start += len(sample.rows)
    return parts


# Duplicates


def _duplicates(
    cfg: EvalConfig, embed: EmbedConfig, embeddings: Artifact, samples: Mapping[str, Sample]
) -> dict[str, dict[str, Any] | None]:
    """Of each synthetic text and of the train split on a sample of its own, which may be much larger; of held-out text
    there is none."""
    import ray

    judge, sign = ray.remote(num_cpus=1)(_duplicates_of), ray.remote(num_cpus=1)(sign_shard)
    calls = []
    for name, sample in samples.items():
        if sample.kind == "validation":
            continue
        source, folder = (sample.source, "") if sample.kind == "synthetic" else (embeddings, "train")
        files = source.files(folder, ".parquet")
        total = sum(source.num_rows(file) for file in files)
        share = min(1.0, cfg.duplicate_sample / total) if total else 1.0
        options = {"share": share, "seed": cfg.seed, "shingle_words": embed.shingle_tokens}
        signed = [sign.remote(source, file, **options) for file in files]
        calls.append((name, partial(judge.remote, cfg.duplicate_sample, *signed)))
    return dict.fromkeys(samples) | dict(results(calls))


def _duplicates_of(limit: int, *parts: Signed) -> dict[str, Any] | None:
    return duplicate_shares(parts, limit=limit) if parts else None


# d1, and what is shown


def _beside_d1(
    cfg: EvalConfig,
    embed: EmbedConfig,
    rows: Sequence[Row],
    cosine_N: NDArray[np.float32],
    documents: Mapping[bytes, Row],
    threshold: float | None,
) -> dict[str, Any]:
    pairs = [(documents[row["d1_id"]]["input_ids"], row["input_ids"]) for row in rows]
    return {
        "copying": copying(pairs, shingle_tokens=embed.shingle_tokens, seed=cfg.seed),
        "relevance": None if threshold is None else irrelevance(cosine_N, threshold, seed=cfg.seed),
    }


def _shown(
    cfg: EvalConfig,
    embed: EmbedConfig,
    rows: Sequence[Row],
    cosine_N: NDArray[np.float32],
    nearest: Nearest,
    documents: Mapping[bytes, Row],
) -> list[dict[str, Any]]:
    """The first of the random sample, not chosen by looks, beside their d1."""
    found = []
    for i, row in enumerate(rows[: cfg.num_samples]):
        d1 = documents[row["d1_id"]]
        found.append(
            {
                "doc_id": row["doc_id"].hex(),
                "group": d1["group"],
                "d1_id": d1["doc_id"].hex(),
                "d1": cut(d1["text"]),
                "d2": cut(row["text"]),
                "cosine": float(cosine_N[i]),
                "copied_share": held_by(d1["input_ids"], row["input_ids"], embed.shingle_tokens),
                "nearest_id": nearest.id_N[i].hex(),
                "nearest_cosine": float(nearest.cosine_N[i]),
            }
        )
    return found


def _add_nearest_texts(corpus: Artifact, shown: Sequence[Row]) -> None:
    documents = fetch_documents(corpus, {bytes.fromhex(row["nearest_id"]) for row in shown})
    for row in shown:
        row["nearest"] = cut(documents[bytes.fromhex(row["nearest_id"])]["text"])


def fetch_documents(corpus: Artifact, doc_ids: Iterable[bytes]) -> dict[bytes, Row]:
    """A few train documents by id: doc_id, group, text."""
    return _fetch_rows(corpus, "train", doc_ids, ("doc_id", "group", "text"))


def _fetch_rows(artifact: Artifact, split: Split, doc_ids: Iterable[bytes], columns: Sequence[str]) -> dict[bytes, Row]:
    found: dict[bytes, Row] = {}
    calls = shard_calls(read_rows, artifact, by_shard(doc_ids, artifact, split), columns=columns)
    for _, rows in results(calls):
        found |= rows
    return found


def cut(text: str) -> str:
    """The beginning of a text, for a page."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} […]"
