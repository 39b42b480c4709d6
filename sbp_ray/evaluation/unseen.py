"""What no arm may have seen: held-out articles and benchmark questions, looked for in all that was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import MANIFEST, Artifact, fingerprint_of
from sbp_ray.evaluation.benchmarks.question_sets import QuestionSet
from sbp_ray.evaluation.likelihood.scored_texts import find_groups, groups_of_shard
from sbp_ray.logs import Progress
from sbp_ray.nodes import Node
from sbp_ray.steps import call_each
from sbp_ray.text.contamination import ngram_hashes

# G = n-grams, H = hits

_TRAINED_ON = {"corpus": "train", "synthetic": ""}
"""Folder of the rows that models train on, by noun."""
_ROWS_AT_ONCE = 2048
Hashes = NDArray[np.uint64]


class Shared(NamedTuple):
    """What texts have in common with the n-grams that are looked for."""

    num_documents: int
    num_sharing: int
    """Documents that hold one of the n-grams at least."""
    hash_H: Hashes
    """The n-grams that were found."""


def find_held_out_text(
    nodes: Iterable[Node], held_out: Sequence[str], ngram_words: int, store: Artifact
) -> list[dict[str, Any]]:
    """For each corpus and synthetic text that is there: what was kept out of it, and what held-out text is in it.

    Args:
        held_out: documents that the arms are compared on.
        ngram_words: a document shares text with one of them where both hold a run of so many words.
        store: keeps what was counted: a text is read once.
    """
    rows = []
    for node in nodes:
        if node.stage.writes in _TRAINED_ON and node.artifact.exists(MANIFEST):
            recipe = {"text": node.fingerprint, "held_out": list(held_out), "words": ngram_words}
            name = f"unseen-{node.key}-{fingerprint_of(recipe)[:8]}.json"
            counted = store.write_json_once(name, partial(_count, node.artifact, held_out, ngram_words))
            contaminated = node.stats.get("drops", {}).get("contaminated", 0)
            rows.append({"artifact": node.key, "contaminated": contaminated, **counted})
    return rows


def _count(artifact: Artifact, held_out: Sequence[str], ngram_words: int) -> dict[str, int]:
    found = look_for(ngram_hashes(held_out, ngram_words)[0], [artifact], ngram_words)
    counted = {
        "documents": found.num_documents,
        "sharing_held_out_text": found.num_sharing,
        "ngram_words": ngram_words,
    }
    if artifact.name == "corpus":
        files = artifact.files("validation", ".parquet")
        groups: set[str] = set().union(*(groups_of_shard(name, artifact) for name in files))
        counted["held_out_groups"] = len(groups)
        counted["held_out_groups_in_train"] = len(find_groups(artifact, "train", groups))
    return counted


def find_seen_questions(
    question_sets: Sequence[QuestionSet], trained_on: Sequence[Artifact], ngram_words: int, store: Artifact
) -> dict[str, list[str] | None]:
    """Of each benchmark the keys of the questions that share a run of words with what some arm was trained on.

    None where its questions are not known here. The result is kept in the store.
    """
    recipe: dict[str, Any] = {questions.name: questions.fingerprint for questions in question_sets}
    recipe |= {"texts": sorted(artifact.fingerprint() for artifact in trained_on), "words": ngram_words}
    name = f"seen-{fingerprint_of(recipe)[:8]}.json"
    return store.write_json_once(name, partial(_seen, question_sets, trained_on, ngram_words))


def _seen(
    question_sets: Sequence[QuestionSet], trained_on: Sequence[Artifact], ngram_words: int
) -> Mapping[str, list[str] | None]:
    ngrams = {q.name: question_ngrams(q.texts(), ngram_words) for q in question_sets if q.rows is not None}
    every_G = np.concatenate([np.empty(0, np.uint64), *(hash_G for _, hash_G in ngrams.values())])
    hash_H = look_for(every_G, trained_on, ngram_words).hash_H
    seen: dict[str, list[str] | None] = {questions.name: None for questions in question_sets}
    return seen | {
        name: sorted({keys[i] for i in np.flatnonzero(np.isin(hash_G, hash_H))})
        for name, (keys, hash_G) in ngrams.items()
    }


def question_ngrams(texts: Mapping[str, Sequence[str]], ngram_words: int) -> tuple[list[str], Hashes]:
    """Hashes of all questions' runs of words, and for each the key of its question."""
    flat = [(key, text) for key, strings in texts.items() for text in strings]
    hash_G, text_G = ngram_hashes([text for _, text in flat], ngram_words)
    return [flat[i][0] for i in text_G], hash_G


def look_for(hash_G: Hashes, trained_on: Sequence[Artifact], ngram_words: int) -> Shared:
    """Look for the n-grams in every text that models train on, a file in each call."""
    calls = [
        (artifact, name) for artifact in trained_on for name in artifact.files(_TRAINED_ON[artifact.name], ".parquet")
    ]
    progress = Progress("eval, what was trained on", len(calls), "files")
    total = Shared(0, 0, np.empty(0, np.uint64))
    for _, found in call_each(_look_in_file, calls, np.unique(hash_G), ngram_words):
        counts = total.num_documents + found.num_documents, total.num_sharing + found.num_sharing
        total = Shared(*counts, np.union1d(total.hash_H, found.hash_H))
        progress.advance()
    return total


def _look_in_file(file: tuple[Artifact, str], wanted_G: Hashes, ngram_words: int) -> Shared:
    artifact, name = file
    num_documents = num_sharing = 0
    hash_H = np.empty(0, np.uint64)
    with artifact.fs.open_input_file(artifact.path(name)) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=_ROWS_AT_ONCE, columns=["text"]):
            hash_G, text_G = ngram_hashes(batch.column("text").to_pylist(), ngram_words)
            is_wanted_G = np.isin(hash_G, wanted_G)
            num_documents += len(batch)
            num_sharing += len(np.unique(text_G[is_wanted_G]))
            hash_H = np.union1d(hash_H, hash_G[is_wanted_G])
    return Shared(num_documents, num_sharing, hash_H)
