"""One pass over a split of the corpus: fetch the documents that are wanted, and count what streams past."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sbp_ray.artifacts import Artifact
from sbp_ray.evaluation.novelty import NgramCounts, NgramTable, add_counts, count_documents

_BATCH_ROWS = 1024


@dataclass
class Scan:
    """What was found in some shards."""

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    """doc_id -> its row, for the documents that were wanted."""
    groups: set[str] = field(default_factory=set)
    """Those of the asked groups that are there."""
    ngram_counts: dict[str, NgramCounts] = field(default_factory=dict)
    """For each sample, in how many documents each of its n-grams stands; see `novelty.count_documents`."""
    num_documents: int = 0
    num_tokens: int = 0

    def add(self, other: Scan) -> None:
        """Take in what another part of the corpus gave."""
        self.documents |= other.documents
        self.groups |= other.groups
        for sample, counts in other.ngram_counts.items():
            self.ngram_counts[sample] = add_counts(self.ngram_counts.get(sample, {}), counts)
        self.num_documents += other.num_documents
        self.num_tokens += other.num_tokens


def scan_shard(
    corpus: Artifact, name: str, *, wanted: Collection[str], groups: Collection[str], tables: dict[str, NgramTable]
) -> Scan:
    """Read one shard in batches of rows.

    Args:
        wanted: ids of documents to bring back.
        groups: values of `group` to look for.
        tables: n-grams to count, by the name of their sample.
    """
    found = Scan()
    wanted_ids, asked_groups = pa.array(list(wanted), pa.string()), set(groups)
    columns = ["doc_id", "group", "input_ids", *(["text"] if wanted_ids else [])]
    with corpus.fs.open_input_file(corpus.path(name)) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            if wanted_ids:
                rows = batch.filter(pc.is_in(batch.column("doc_id"), value_set=wanted_ids)).to_pylist()
                found.documents |= {row["doc_id"]: row for row in rows}
            found.groups |= asked_groups.intersection(pc.unique(batch.column("group")).to_pylist())
            ids_T = batch.column("input_ids").flatten().to_numpy(zero_copy_only=False)
            lengths_D = pc.list_value_length(batch.column("input_ids")).to_numpy(zero_copy_only=False)
            found.add(
                Scan(
                    ngram_counts={key: count_documents(table, ids_T, lengths_D) for key, table in tables.items()},
                    num_documents=len(lengths_D),
                    num_tokens=len(ids_T),
                )
            )
    return found


def read_vectors(embeddings: Artifact, name: str, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The unit vectors of the wanted documents of one shard, float32."""
    table = embeddings.read_table(name)
    table = table.filter(pc.is_in(table.column("doc_id"), value_set=pa.array(list(wanted), pa.string())))
    vectors = table.column("vector").to_pylist()
    return dict(zip(table.column("doc_id").to_pylist(), (np.asarray(v, np.float32) for v in vectors), strict=True))
