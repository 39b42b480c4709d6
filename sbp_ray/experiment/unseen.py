"""What no arm may have seen: held-out articles and evaluation sets, looked for in all that was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sbp_ray.artifacts import Artifact
from sbp_ray.experiment.grid import Grid
from sbp_ray.schema import Split
from sbp_ray.shards import call_each
from sbp_ray.text.contamination import EvaluationNgrams, EvaluationSet, ngram_hashes

_TRAINED_ON = {"ingest": "train", "synthesize": ""}
"""Folder of the rows that models train on, by the job that writes them."""


def decontamination(grid: Grid, held_out: Sequence[str], ngram_words: int) -> list[dict[str, Any]]:
    """For each corpus and synthetic text that is there: what was kept out of it, and what held-out text is in it.

    Args:
        held_out: documents that the arms are compared on.
        ngram_words: a document shares text with one of them where both hold a run of so many words.
    """
    ngrams = ngrams_of(held_out, ngram_words)
    groups: set[str] = set()
    rows = []
    for key, node in grid.nodes.items():
        manifest = node.artifact.manifest()
        if node.stage.job not in _TRAINED_ON or manifest is None:
            continue
        shared = count_sharing(node.artifact, _TRAINED_ON[node.stage.job], ngrams)
        row = {"artifact": key, "contaminated": manifest["stats"]["drops"].get("contaminated", 0)}
        row |= {"documents": shared[0], "sharing_held_out_text": shared[1], "ngram_words": ngram_words}
        if node.stage.job == "ingest":
            groups = groups or validation_groups(node.artifact)
            row["held_out_groups"] = len(groups)
            row["held_out_groups_in_train"] = len(scan_groups(node.artifact, "train", groups))
        rows.append(row)
    return rows


def ngrams_of(texts: Sequence[str], ngram_words: int) -> EvaluationNgrams:
    """All runs of so many words of the texts."""
    hashes_G, text_G = ngram_hashes(texts, ngram_words)
    held_out = EvaluationSet("held_out", len(texts), len(texts) - len(np.unique(text_G)))
    return EvaluationNgrams([held_out], [np.unique(hashes_G)], ngram_words)


def count_sharing(made: Artifact, folder: str, ngrams: EvaluationNgrams) -> tuple[int, int]:
    """Documents of the folder's shards, and how many of them hold one of the runs."""
    counts = call_each(_count_shard, made.files(folder, ".parquet"), made, ngrams)
    return sum(documents for documents, _ in counts), sum(hits for _, hits in counts)


def _count_shard(name: str, made: Artifact, ngrams: EvaluationNgrams) -> tuple[int, int]:
    texts = made.read_table(name, columns=["text"])["text"].to_pylist()
    return len(texts), len(ngrams.find(texts))


def scan_groups(corpus: Artifact, split: Split, groups: set[str]) -> set[str]:
    """Those of the groups that the split has."""
    found = call_each(_groups_of_shard, corpus.files(split, ".parquet"), corpus)
    return groups.intersection(set().union(*found))


def _groups_of_shard(name: str, corpus: Artifact) -> set[str]:
    return set(corpus.read_table(name, columns=["group"])["group"].unique().to_pylist())


def validation_groups(corpus: Artifact) -> set[str]:
    """All held-out groups."""
    return set().union(*(_groups_of_shard(name, corpus) for name in corpus.files("validation", ".parquet")))
