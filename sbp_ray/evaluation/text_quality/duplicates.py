"""Duplicates within a sample: documents that could go without losing a text, by their MinHash signatures.

256 bytes a document, and no comparison of all with all: a sample of a million takes 0.3 GiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.doc_ids import id_numbers, ids_to_numpy
from sbp_ray.text.copies import copies_of_earlier
from sbp_ray.text.hashing import hash64, id_ranks
from sbp_ray.text.minhash import NUM_HASHES, document_signature

# N = documents, H = 256 hashes

NEAR_JACCARD = 0.6
"""Documents of one sample whose shingles overlap this much are near-duplicates of one another."""
_RANKS = 2**64


class Signed(NamedTuple):
    """What is kept of each document."""

    rank_N: NDArray[np.uint64]
    """Random order of the documents."""
    text_N: NDArray[np.uint64]
    """Equal for equal texts."""
    signature_NH: NDArray[np.uint8]


def sign_shard(name: str, artifact: Artifact, share: float, seed: int, shingle_words: int) -> Signed:
    """Sample this share of a shard's documents, and sign them.

    Args:
        name: a shard of documents with `text`, which are signed here; or of embeddings, whose `signature` is taken.
        share: of all documents; chosen by a hash of their ids.
    """
    limit = min(_RANKS - 1, int(share * _RANKS))
    has_text = not name.startswith("train/")
    table = artifact.read_table(name, columns=["doc_id", "text" if has_text else "signature"])
    ids_N2 = id_numbers(ids_to_numpy(table["doc_id"]))
    ranks = id_ranks("duplicates", seed, ids_N2)
    chosen = np.flatnonzero(ranks <= limit)
    table = table.take(chosen)
    if has_text:
        texts = table["text"].to_pylist()
        signatures = [document_signature(text, shingle_words)[0].tobytes() for text in texts]
        equal = np.array([hash64("text", text) for text in texts], np.uint64)
    else:
        signatures = table["signature"].to_pylist()
        equal = ids_N2[chosen, 0]  # an id is the hash of its text
    return Signed(
        ranks[chosen],
        equal,
        np.frombuffer(b"".join(signatures), np.uint8).reshape(-1, NUM_HASHES),
    )


def duplicate_shares(parts: Sequence[Signed], *, limit: int) -> dict[str, Any]:
    """Share of the documents that repeat an earlier one of the sample, exactly or nearly.

    Args:
        parts: of all shards.
        limit: documents of the sample at most; those of the lowest ranks.

    Returns:
        documents: size of the sample, with which the shares grow.
        exact, near: a document that is an exact duplicate is not counted as a near one too.
    """
    rank_N, text_N, signature_NH = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order_N = np.argsort(rank_N, kind="stable")[:limit]
    num_documents = len(order_N)
    if not num_documents:
        return {"documents": 0, "exact": 0.0, "near": 0.0}
    text_N, signature_NH = text_N[order_N], signature_NH[order_N]
    is_exact_N = np.ones(num_documents, bool)
    is_exact_N[np.unique(text_N, return_index=True)[1]] = False
    distinct = signature_NH[~is_exact_N]
    near = int(copies_of_earlier(distinct, NEAR_JACCARD).sum())
    return {
        "documents": num_documents,
        "exact": float(is_exact_N.mean()),
        "near": near / num_documents,
    }
