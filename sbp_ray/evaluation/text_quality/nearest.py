"""The nearest document of the corpus by embedding: exact, the vectors streaming past the sample's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact

# N = documents of the samples, B = documents of a batch of the corpus, D = vector length

_BATCH_ROWS = 4096
# So many cosines, which take 64 MiB, are held at once.
_CELLS_AT_ONCE = 2**24


class Nearest(NamedTuple):
    """For each document the most similar one of the corpus, itself left out."""

    cosine_N: NDArray[np.float32]
    """-1 while there is none."""
    id_N: NDArray[np.object_]
    """Empty while there is none."""

    @classmethod
    def none(cls, num_documents: int) -> Nearest:
        """Before anything was compared."""
        return cls(np.full(num_documents, -1, np.float32), np.full(num_documents, b"", object))

    def or_nearer(self, other: Nearest) -> Nearest:
        """The nearer of both, document by document."""
        is_nearer_N = other.cosine_N > self.cosine_N
        return Nearest(
            np.where(is_nearer_N, other.cosine_N, self.cosine_N), np.where(is_nearer_N, other.id_N, self.id_N)
        )


def nearest_in_shard(
    name: str, embeddings: Artifact, vector_ND: NDArray[np.float32], own_ids: Sequence[bytes]
) -> Nearest:
    """Compare with every document of one shard.

    Args:
        vector_ND: unit vectors.
        own_ids: the document's own id where it is part of the corpus, which does not count; else anything.
    """
    found = Nearest.none(len(vector_ND))
    row_of = {doc_id: row for row, doc_id in enumerate(own_ids)}
    batch_size = max(1, min(_BATCH_ROWS, _CELLS_AT_ONCE // len(vector_ND)))
    with embeddings.fs.open_input_file(embeddings.path(name)) as file:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=batch_size, columns=["doc_id", "vector"]):
            id_B = np.array(batch.column("doc_id").to_pylist(), object)
            flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
            cosine_NB = vector_ND @ flat.astype(np.float32).reshape(len(id_B), -1).T
            for column in (column for column, doc_id in enumerate(id_B) if doc_id in row_of):
                cosine_NB[row_of[id_B[column]], column] = -1
            best_N = cosine_NB.argmax(axis=1)
            found = found.or_nearer(Nearest(cosine_NB[np.arange(len(best_N)), best_N], id_B[best_N]))
    return found
