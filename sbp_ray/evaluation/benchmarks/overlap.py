"""Which questions share a long run of words with what a model was trained on: they are left out of every number.

Legend: G n-grams, H hits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact, fingerprint_of
from sbp_ray.evaluation.benchmarks.question_sets import QuestionSet
from sbp_ray.evaluation.tasks import results
from sbp_ray.logs import Progress
from sbp_ray.text.contamination import ngram_hashes

_ROWS_AT_ONCE = 2048

Seen = dict[str, list[str] | None]
"""For each benchmark the keys of the questions that were seen; None where its questions are not known here."""


def find_seen(
    question_sets: Sequence[QuestionSet],
    trained_on: Mapping[Artifact, Sequence[str]],
    *,
    ngram_words: int,
    store: Artifact,
) -> Seen:
    """Look for every question's runs of words in everything that was trained on; the result is kept.

    Args:
        trained_on: Parquet files with a column `text`, by their artifact.
        ngram_words: a question is seen when so many words in a row of it stand in a document.
    """
    recipe: dict[str, Any] = {benchmark.name: benchmark.fingerprint for benchmark in question_sets}
    recipe |= {"texts": sorted(artifact.fingerprint() for artifact in trained_on), "words": ngram_words}
    name = f"seen-{fingerprint_of(recipe)[:8]}.json"
    if not store.exists(name):
        store.write_json(name, _find(question_sets, trained_on, ngram_words))
    return store.read_json(name)


def _find(question_sets: Sequence[QuestionSet], trained_on: Mapping[Artifact, Sequence[str]], ngram_words: int) -> Seen:
    import ray

    hashes = {b.name: question_ngrams(b.texts(), ngram_words) for b in question_sets if b.rows is not None}
    all_G = np.unique(np.concatenate([np.empty(0, np.uint64), *(found for _, found in hashes.values())]))
    put, look = ray.put(all_G), ray.remote(num_cpus=1)(ngrams_in_file)
    todo = [(artifact, name) for artifact, names in trained_on.items() for name in names]
    progress = Progress("benchmarks, what was trained on", len(todo), "files")
    found_H = np.empty(0, np.uint64)
    calls = [(name, partial(look.remote, artifact, name, put, ngram_words)) for artifact, name in todo]
    for _, hits_H in results(calls):
        found_H = np.union1d(found_H, hits_H)
        progress.advance()
    seen: Seen = {benchmark.name: None for benchmark in question_sets}
    for name, (keys, hashes_G) in hashes.items():
        seen[name] = sorted({keys[i] for i in np.flatnonzero(np.isin(hashes_G, found_H))})
    return seen


def question_ngrams(texts: Mapping[str, Sequence[str]], ngram_words: int) -> tuple[list[str], NDArray[np.uint64]]:
    """Hashes of all questions' runs of words, and for each the key of its question."""
    flat = [(key, text) for key, strings in texts.items() for text in strings]
    hashes_G, text_G = ngram_hashes([text for _, text in flat], ngram_words)
    return [flat[i][0] for i in text_G], hashes_G


def ngrams_in_file(artifact: Artifact, name: str, wanted_G: NDArray[np.uint64], ngram_words: int) -> Any:
    """Those of the wanted hashes that stand in the file's texts. uint64 [H]."""
    import pyarrow.parquet as pq

    found_H = np.empty(0, np.uint64)
    with artifact.fs.open_input_file(artifact.path(name)) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE, columns=["text"]):
            hashes_G, _ = ngram_hashes(batch.column("text").to_pylist(), ngram_words)
            found_H = np.union1d(found_H, np.intersect1d(hashes_G, wanted_G))
    return found_H
