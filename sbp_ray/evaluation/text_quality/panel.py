"""The quality panel: samples of text measured beside the corpus that the synthesizer read.

`measure_samples` goes over the corpus once (`scan_corpus`), over its vectors once (`_find_nearest`), and over the files
that may hold duplicates (`_find_duplicates`); each shard in a call of its own. What a worker holds is bounded by the
samples, not by the corpus. `text_measures.sample_column` makes a column of numbers of each sample; to it come the
duplicates, and of synthetic text what it has in common with d1 and the documents to show (`_add_d1`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config, EmbedConfig
from sbp_ray.evaluation.intervals import connected_groups
from sbp_ray.evaluation.text_quality.corpus_scan import Scan, fetch_documents, scan_corpus
from sbp_ray.evaluation.text_quality.duplicates import duplicate_shares, sign_shard
from sbp_ray.evaluation.text_quality.nearest import Nearest, nearest_in_shard
from sbp_ray.evaluation.text_quality.novelty import hash_table
from sbp_ray.evaluation.text_quality.samples import MINED, REAL_TRAIN, Row, Sample
from sbp_ray.evaluation.text_quality.text_measures import (
    RANDOM_PAIR_QUANTILE,
    add_distances,
    copying,
    held_by,
    irrelevance,
    irrelevance_threshold,
    random_cosines,
    rounded,
    sample_column,
)
from sbp_ray.logs import Progress
from sbp_ray.report.wording import cut
from sbp_ray.schema import Split
from sbp_ray.steps import call_each

Vectors = NDArray[np.float32]
Columns = dict[str, dict[str, Any] | None]
"""By sample; see `text_measures.sample_column`, with `duplicates`; of synthetic text also `d1` and `shown`."""

# So many texts are embedded between two lines of progress; batches are formed within them.
_EMBED_ROWS = 256
# A report shows so much of a text.
_SHOWN_CHARS = 2000


def measure_samples(
    settings: Config, *, corpus: Artifact, embeddings: Artifact, samples: Mapping[str, Sample], mined: Sequence[Row]
) -> tuple[Columns, dict[str, Any]]:
    """Measure every sample.

    Args:
        settings: with the embedder that made `embeddings`.
        samples: that of real training text among them. Rows of synthetic text get the `group` of their d1.
        mined: pairs of the corpus, with d1_id, d2_id, cosine.

    Returns:
        The columns, that of mined pairs among them, and what irrelevance is judged by.
    """
    seed = settings.eval.seed
    wanted = set[bytes]().union(*(sample.d1_ids for sample in samples.values()))
    keys_C = hash_table([sample.token_ids for sample in samples.values()])
    paired = {row[key] for row in mined for key in ("d1_id", "d2_id")}
    scan = scan_corpus(corpus, wanted=wanted | paired, keys_C=keys_C)
    for row in (row for sample in samples.values() for row in sample.rows if sample.kind == "synthetic"):
        row["group"] = scan.documents[row["d1_id"]]["group"]
    vectors = _sample_vectors(settings, embeddings, samples)
    nearest = _find_nearest(embeddings, samples, vectors)
    chance_N = random_cosines(vectors[REAL_TRAIN], seed=seed)
    threshold = irrelevance_threshold(chance_N) if len(chance_N) else None
    columns = _sample_columns(seed, samples, keys_C, scan, nearest)
    d1_vectors = _stored_vectors(embeddings, wanted, "train")
    for name, column in columns.items():
        if column is not None:
            column["duplicates"] = _find_duplicates(settings, samples[name], embeddings)
            if samples[name].kind == "synthetic":
                beside = samples[name].rows, nearest[name], scan.documents
                cosine_N = np.array(
                    [v @ d1_vectors[row["d1_id"]] for v, row in zip(vectors[name], beside[0], strict=True)]
                )
                _add_d1(column, settings, *beside, cosine_N, threshold)
    _add_nearest_texts(corpus, [row for column in columns.values() for row in (column or {}).get("shown", ())])
    add_distances(columns, REAL_TRAIN)
    columns[MINED] = _mined_column(settings, mined, scan.documents, threshold)
    random = {"pairs": len(chance_N), "cosines": rounded(chance_N)} if len(chance_N) else None
    return columns, {"threshold": threshold, "random_quantile": RANDOM_PAIR_QUANTILE, "random": random}


def _sample_columns(
    seed: int, samples: Mapping[str, Sample], keys_C: NDArray[np.uint64], scan: Scan, nearest: Mapping[str, Nearest]
) -> Columns:
    calls = [(name, sample, nearest[name]) for name, sample in samples.items()]
    measured = {name: found for (name, *_), found in call_each(sample_column, calls, keys_C, scan.ngram_counts, seed)}
    return {name: measured[name] for name in samples}


# Vectors


def _sample_vectors(settings: Config, embeddings: Artifact, samples: Mapping[str, Sample]) -> dict[str, Vectors]:
    """Unit vectors of each sample's documents: stored ones of the corpus, new ones of synthetic text, which are made in
    the type of the stored ones."""
    resources = settings.eval.resources
    stats = (embeddings.manifest() or {}).get("stats", {})
    dtype = stats.get("dtype", settings.embed.dtype)
    embed = settings.embed.model_copy(update={"resources": resources, "dtype": dtype})
    new = [(name, [row["text"] for row in s.rows]) for name, s in samples.items() if s.kind == "synthetic"]
    found = {name: made for (name, _), made in call_each(_embed, new, embed, resources=resources)}
    for name, sample in samples.items():
        if sample.kind != "synthetic":
            stored = _stored_vectors(embeddings, {row["doc_id"] for row in sample.rows}, sample.kind)
            vectors = [stored[row["doc_id"]] for row in sample.rows]
            found[name] = np.stack(vectors) if vectors else np.empty((0, 0), np.float32)
    return found


def _stored_vectors(embeddings: Artifact, doc_ids: set[bytes], split: Split) -> dict[bytes, Vectors]:
    """Unit vectors that the run made of documents of a split, by id; zeros, related to nothing, where it made none."""
    rows = fetch_documents(embeddings, doc_ids, ("vector",), split)
    made = {doc_id: np.asarray(row["vector"], np.float32) for doc_id, row in rows.items()}
    zeros = np.zeros(max(map(len, made.values()), default=0), np.float32)
    return {doc_id: made.get(doc_id, zeros) for doc_id in doc_ids}


def _embed(named: tuple[str, Sequence[str]], embed: EmbedConfig) -> Vectors:
    """Vectors made as the run embedded its corpus, float32 [N, D]. Runs in a process of its own."""
    from sbp_ray.embedder import load_embedder

    name, texts = named
    embedder, progress = load_embedder(embed), Progress(f"eval embed {name}", len(texts), "texts")
    vectors = [np.empty((0, embedder.dim), np.float32)]
    for start in range(0, len(texts), _EMBED_ROWS):
        part = texts[start : start + _EMBED_ROWS]
        vectors.append(np.nan_to_num(embedder(part)))  # no direction: related to nothing
        progress.advance(len(part))
    return np.concatenate(vectors)


def _find_nearest(
    embeddings: Artifact, samples: Mapping[str, Sample], vectors: Mapping[str, Vectors]
) -> dict[str, Nearest]:
    """Of every document of every sample: all are compared with a shard at once, so that it is read once."""
    filled = [vectors[name] for name in samples if len(vectors[name])]
    total = Nearest.none(sum(map(len, filled)))
    if filled:
        own_ids = [row["doc_id"] if s.kind == "train" else b"" for s in samples.values() for row in s.rows]
        names = embeddings.files("train", ".parquet")
        for _, found in call_each(nearest_in_shard, names, embeddings, np.concatenate(filled), own_ids):
            total = total.or_nearer(found)
    ends = np.cumsum([len(sample.rows) for sample in samples.values()])[:-1]
    parts = zip(np.split(total.cosine_N, ends), np.split(total.id_N, ends), strict=True)
    return {name: Nearest(*part) for name, part in zip(samples, parts, strict=True)}


# Duplicates


def _find_duplicates(settings: Config, sample: Sample, embeddings: Artifact) -> dict[str, Any] | None:
    """Of each synthetic text and of the train split on a sample of its own, which may be much larger; of held-out text
    there is none."""
    if sample.kind == "validation":
        return None
    source, folder = (sample.source, "") if sample.kind == "synthetic" else (embeddings, "train")
    files, limit = source.files(folder, ".parquet"), settings.eval.duplicate_sample
    share = min(1.0, limit / max(1, sum(source.num_rows(file) for file in files)))
    signed = call_each(sign_shard, files, source, share, settings.eval.seed, settings.embed.shingle_tokens)
    return duplicate_shares([part for _, part in signed], limit=limit) if files else None


# d1, mined pairs, and what is shown


def _add_d1(
    column: dict[str, Any],
    settings: Config,
    rows: Sequence[Row],
    nearest: Nearest,
    documents: Mapping[bytes, Row],
    cosine_N: NDArray[Any],
    threshold: float | None,
) -> None:
    """Add what synthetic documents have in common with their d1, and the documents to show."""
    pairs = [(documents[row["d1_id"]]["input_ids"], row["input_ids"]) for row in rows]
    column["d1"] = _of_pairs(settings, pairs, cosine_N, threshold, [row["group"] for row in rows])
    column["nearest"]["is_d1_share"] = float(np.mean([nearest.id_N[i] == row["d1_id"] for i, row in enumerate(rows)]))
    column["shown"] = _shown(settings, rows, cosine_N, nearest, documents)


def _mined_column(
    settings: Config, mined: Sequence[Row], documents: Mapping[bytes, Row], threshold: float | None
) -> dict[str, Any] | None:
    """What synthetic pairs have in common with mined ones: copying and relevance; None where none were mined."""
    if not mined:
        return None
    both = [(documents[row["d1_id"]], documents[row["d2_id"]]) for row in mined]
    groups = connected_groups(*([d["group"] for d in side] for side in zip(*both, strict=True)))
    pairs = [(d1["input_ids"], d2["input_ids"]) for d1, d2 in both]
    cosines = np.array([row["cosine"] for row in mined], np.float64)
    return {"documents": len(mined), "d1": _of_pairs(settings, pairs, cosines, threshold, groups)}


def _of_pairs(
    settings: Config,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    cosine_N: NDArray[Any],
    threshold: float | None,
    groups: Sequence[str],
) -> dict[str, Any]:
    seed = settings.eval.seed
    return {
        "copying": copying(pairs, groups, shingle_tokens=settings.embed.shingle_tokens, seed=seed),
        "relevance": None if threshold is None else irrelevance(cosine_N, threshold, groups, seed=seed),
    }


def _shown(
    settings: Config, rows: Sequence[Row], cosine_N: NDArray[Any], nearest: Nearest, documents: Mapping[bytes, Row]
) -> list[dict[str, Any]]:
    """The first of the random sample, not chosen by looks, beside their d1."""
    found = []
    for i, row in enumerate(rows[: settings.eval.num_samples]):
        d1 = documents[row["d1_id"]]
        found.append(
            {
                "doc_id": row["doc_id"].hex(),
                "group": d1["group"],
                "d1_id": d1["doc_id"].hex(),
                "d1": cut(d1["text"], _SHOWN_CHARS),
                "d2": cut(row["text"], _SHOWN_CHARS),
                "cosine": float(cosine_N[i]),
                "copied_share": held_by(d1["input_ids"], row["input_ids"], settings.embed.shingle_tokens),
                "nearest_id": nearest.id_N[i].hex(),
                "nearest_cosine": float(nearest.cosine_N[i]),
            }
        )
    return found


def _add_nearest_texts(corpus: Artifact, shown: Sequence[Row]) -> None:
    documents = fetch_documents(corpus, {bytes.fromhex(row["nearest_id"]) for row in shown})
    for row in shown:
        row["nearest"] = cut(documents[bytes.fromhex(row["nearest_id"])]["text"], _SHOWN_CHARS)
