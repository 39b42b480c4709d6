"""Read the corpus in tasks: a few documents by id, or all in one pass that counts the samples' runs of tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray import metrics
from sbp_ray.artifacts import Artifact
from sbp_ray.evaluation.text_quality.novelty import DocumentCounter, add_counts
from sbp_ray.logs import Progress
from sbp_ray.schema import DOC_ID, Split, shard_of
from sbp_ray.shards import fetch_rows, list_shards, shard_name
from sbp_ray.steps import call_each

Row = dict[str, Any]
_BATCH_ROWS = 1024
# What each task sends back is as large as the samples, so the corpus is cut into few parts.
_TASKS = 64


def fetch_documents(
    artifact: Artifact, doc_ids: Iterable[bytes], columns: Sequence[str] = ("group", "text"), split: Split = "train"
) -> dict[bytes, Row]:
    """Rows of a split by id, each shard's in a call of its own; documents that the artifact lacks are left out."""
    num_shards, by_shard = len(list_shards(artifact, split)), defaultdict(list)
    for doc_id in sorted(set(doc_ids)):
        by_shard[shard_of(doc_id, num_shards)].append(doc_id)
    found = call_each(_fetch, list(map(tuple, by_shard.values())), artifact, split, columns)
    return {row["doc_id"]: row for _, rows in found for row in rows}


def _fetch(doc_ids: Sequence[bytes], artifact: Artifact, split: Split, columns: Sequence[str]) -> list[Row]:
    return fetch_rows(artifact, split, doc_ids, columns, skips_missing=True).to_pylist()


@dataclass
class Scan:
    """What was found in some shards."""

    ngram_counts: NDArray[np.uint8]
    """For each place of the samples' table, how many documents hold its run; see `novelty.hash_table`."""
    documents: dict[bytes, Row] = field(default_factory=dict)
    """By id, those that were wanted."""
    num_documents: int = 0
    num_tokens: int = 0


def scan_corpus(corpus: Artifact, *, wanted: Collection[bytes], keys_C: NDArray[np.uint64]) -> Scan:
    """Stream the train split once: bring back the documents that are wanted, count the table's runs of tokens."""
    names = list_shards(corpus, "train")
    ids: dict[str, list[bytes]] = {name: [] for name in names}
    for doc_id in wanted:
        ids[shard_name("train", shard_of(doc_id, len(names)))].append(doc_id)
    each = -(-len(names) // _TASKS)
    parts = [tuple(list(ids.items())[start : start + each]) for start in range(0, len(names), each)]
    total, progress = Scan(np.zeros(len(keys_C), np.uint8)), Progress("eval scan train", len(names), "shards")
    for part, found in call_each(scan_shards, parts, corpus, keys_C):
        total.documents |= found.documents
        total.ngram_counts = add_counts(total.ngram_counts, found.ngram_counts)
        metrics.count("sbp_documents", found.num_documents, stage="eval")
        metrics.count("sbp_tokens", found.num_tokens, stage="eval")
        progress.advance(len(part))
    return total


def scan_shards(wanted: Iterable[tuple[str, Sequence[bytes]]], corpus: Artifact, keys_C: NDArray[np.uint64]) -> Scan:
    """Read shards in batches of rows.

    Args:
        wanted: names of shards, each with the ids of documents to bring back.
    """
    counter = DocumentCounter(keys_C)
    found = Scan(counter.counts_C)
    for name, ids in wanted:
        columns, wanted_ids = ["doc_id", "group", "input_ids", *(["text"] if ids else [])], pa.array(ids, DOC_ID)
        with corpus.fs.open_input_file(corpus.path(name)) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                if ids:
                    is_wanted = pc.is_in(batch.column("doc_id"), value_set=wanted_ids)
                    found.documents |= {row["doc_id"]: row for row in batch.filter(is_wanted).to_pylist()}
                ids_T = batch.column("input_ids").flatten().to_numpy(zero_copy_only=False)
                lengths_D = pc.list_value_length(batch.column("input_ids")).to_numpy(zero_copy_only=False)
                counter.add(ids_T, lengths_D)
                found.num_documents += len(lengths_D)
                found.num_tokens += len(ids_T)
    return found
