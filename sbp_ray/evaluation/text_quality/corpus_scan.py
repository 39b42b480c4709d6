"""One pass over a split of the corpus: fetch the documents that are wanted, and count what streams past."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.evaluation.text_quality.novelty import DocumentCounter, NgramTable, add_counts
from sbp_ray.schema import DOC_ID

_BATCH_ROWS = 1024


@dataclass
class Scan:
    """What was found in some shards."""

    documents: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    """doc_id -> its row, for the documents that were wanted."""
    groups: set[str] = field(default_factory=set)
    """Those of the groups looked for that are there."""
    ngram_counts: NDArray[np.uint8] | None = None
    """For each place of the samples' table, how many documents hold its run; see `novelty.NgramTable`."""
    num_documents: int = 0
    num_tokens: int = 0

    def add(self, other: Scan) -> None:
        """Take in what another part of the corpus gave."""
        self.documents |= other.documents
        self.groups |= other.groups
        if other.ngram_counts is not None:
            self.ngram_counts = add_counts(self.ngram_counts, other.ngram_counts)
        self.num_documents += other.num_documents
        self.num_tokens += other.num_tokens


def scan_shards(
    corpus: Artifact, wanted: Mapping[str, Collection[bytes]], *, groups: Collection[str], table: NgramTable | None
) -> Scan:
    """Read shards in batches of rows.

    Args:
        wanted: for each shard the ids of documents to bring back.
        groups: values of `group` to look for.
        table: runs of tokens to count.
    """
    found = Scan()
    counter = DocumentCounter(table) if table else None
    for name, ids in wanted.items():
        _scan_shard(corpus, name, pa.array(list(ids), DOC_ID), set(groups), counter, found)
    found.ngram_counts = counter.counts_C if counter else None
    return found


def _scan_shard(
    corpus: Artifact, name: str, wanted_ids: pa.Array, groups: set[str], counter: DocumentCounter | None, found: Scan
) -> None:
    columns = ["doc_id", "group", "input_ids", *(["text"] if len(wanted_ids) else [])]
    with corpus.fs.open_input_file(corpus.path(name)) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            if len(wanted_ids):
                rows = batch.filter(pc.is_in(batch.column("doc_id"), value_set=wanted_ids)).to_pylist()
                found.documents |= {row["doc_id"]: row for row in rows}
            found.groups |= groups.intersection(pc.unique(batch.column("group")).to_pylist())
            ids_T = batch.column("input_ids").flatten().to_numpy(zero_copy_only=False)
            lengths_D = pc.list_value_length(batch.column("input_ids")).to_numpy(zero_copy_only=False)
            if counter:
                counter.add(ids_T, lengths_D)
            found.num_documents += len(lengths_D)
            found.num_tokens += len(ids_T)


def read_rows(artifact: Artifact, name: str, wanted: Collection[bytes], *, columns: Sequence[str]) -> dict[bytes, Any]:
    """The wanted documents' rows of one shard, by id."""
    with artifact.fs.open_input_file(artifact.path(name)) as file:
        table = pq.read_table(file, columns=list(columns), filters=pc.field("doc_id").isin(list(wanted)))
    return {row["doc_id"]: row for row in table.to_pylist()}
