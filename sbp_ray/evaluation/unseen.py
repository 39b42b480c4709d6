"""What no arm may have seen: held-out articles and evaluation sets, looked for in all that was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sbp_ray.artifacts import Artifact, fingerprint_of
from sbp_ray.evaluation.likelihood.scored_texts import find_groups, groups_of_shard
from sbp_ray.evaluation.study import Made
from sbp_ray.shards import call_each
from sbp_ray.text.contamination import EvaluationNgrams, EvaluationSet, ngram_hashes

_TRAINED_ON = {"corpus": "train", "synthetic": ""}
"""Folder of the rows that models train on, by noun."""


def find_held_out_text(
    made: Sequence[Made], held_out: Sequence[str], ngram_words: int, store: Artifact
) -> list[dict[str, Any]]:
    """For each corpus and synthetic text that is there: what was kept out of it, and what held-out text is in it.

    Args:
        held_out: documents that the arms are compared on.
        ngram_words: a document shares text with one of them where both hold a run of so many words.
        store: keeps what was counted: a text is read once.
    """
    rows = []
    for one in made:
        if one.artifact.name not in _TRAINED_ON or not one.is_done():
            continue
        recipe = {"text": one.artifact.fingerprint(), "held_out": list(held_out), "words": ngram_words}
        name = f"unseen-{one.key}-{fingerprint_of(recipe)[:8]}.json"
        if not store.exists(name):
            store.write_json(name, _count(one, held_out, ngram_words))
        contaminated = one.stats.get("drops", {}).get("contaminated", 0)
        rows.append({"artifact": one.key, "contaminated": contaminated, **store.read_json(name)})
    return rows


def _count(made: Made, held_out: Sequence[str], ngram_words: int) -> dict[str, int]:
    artifact, folder = made.artifact, _TRAINED_ON[made.artifact.name]
    ngrams = ngrams_of(held_out, ngram_words)
    counts = [count for _, count in call_each(_count_shard, artifact.files(folder, ".parquet"), artifact, ngrams)]
    found = {
        "documents": sum(documents for documents, _ in counts),
        "sharing_held_out_text": sum(hits for _, hits in counts),
        "ngram_words": ngram_words,
    }
    if folder == "train":
        files = artifact.files("validation", ".parquet")
        groups: set[str] = set().union(*(groups_of_shard(name, artifact) for name in files))
        found["held_out_groups"] = len(groups)
        found["held_out_groups_in_train"] = len(find_groups(artifact, "train", groups))
    return found


def ngrams_of(texts: Sequence[str], ngram_words: int) -> EvaluationNgrams:
    """All runs of so many words of the texts."""
    hashes_G, text_G = ngram_hashes(texts, ngram_words)
    held_out = EvaluationSet("held_out", len(texts), len(texts) - len(np.unique(text_G)))
    return EvaluationNgrams([held_out], [np.unique(hashes_G)], ngram_words)


def _count_shard(name: str, made: Artifact, ngrams: EvaluationNgrams) -> tuple[int, int]:
    """Documents of the shard, and how many of them hold one of the runs."""
    texts = made.read_table(name, columns=["text"])["text"].to_pylist()
    return len(texts), len(ngrams.find(texts))
