"""Exact nearest neighbours by inner product, one block of the database at a time."""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

# Q = queries, B = vectors of a block, D = vector length, K = neighbours

NO_ROW = -1
"""Fills the places of a list that is shorter than K."""


class TopK(NamedTuple):
    """The best rows for each query, best first."""

    cosine_QK: NDArray[np.float32]
    """-inf where there is no row."""
    row_QK: NDArray[np.int64]
    """Where the vector lies, in the caller's numbering; `NO_ROW` where there is none."""


def search_block(query_QD: NDArray[np.float32], block_BD: NDArray[np.float32], k: int, first_row: int) -> TopK:
    """The `k` best vectors of a block for each query, by exhaustive search.

    Args:
        query_QD: unit vectors.
        block_BD: unit vectors.
        k: more than the block holds gives shorter lists.
        first_row: number of the block's first vector; the others follow.

    Raises:
        ValueError: the vectors differ in length.
    """
    if query_QD.shape[1] != block_BD.shape[1]:
        raise ValueError(f"queries have {query_QD.shape[1]} dimensions, the block has {block_BD.shape[1]}")
    k = min(k, len(block_BD))
    if k == 0 or len(query_QD) == 0:
        return empty_top_k(len(query_QD), k)
    cosine_QK, row_QK = faiss.knn(query_QD, block_BD, k, metric=faiss.METRIC_INNER_PRODUCT)
    return TopK(np.clip(cosine_QK, -1, 1), row_QK + first_row)


def merge_top_k(a: TopK, b: TopK, k: int) -> TopK:
    """The `k` best of two results; equals in the order of their row numbers, whichever result they come from."""
    cosine = np.concatenate([a.cosine_QK, b.cosine_QK], axis=1)
    row = np.concatenate([a.row_QK, b.row_QK], axis=1)
    order_QK = np.lexsort((row, -cosine), axis=1)[:, :k]
    return TopK(np.take_along_axis(cosine, order_QK, axis=1), np.take_along_axis(row, order_QK, axis=1))


def empty_top_k(num_queries: int, k: int = 0) -> TopK:
    """A result without rows: what merging starts from."""
    return TopK(np.full((num_queries, k), -np.inf, np.float32), np.full((num_queries, k), NO_ROW, np.int64))


def without_row(found: TopK, own_row_Q: NDArray[np.int64], k: int) -> TopK:
    """Take each query's own row out of its list, and keep `k` of the others."""
    is_own_QK = found.row_QK == own_row_Q[:, None]
    cosine_QK = np.where(is_own_QK, -np.inf, found.cosine_QK).astype(np.float32)
    row_QK = np.where(is_own_QK, NO_ROW, found.row_QK)
    order_QK = np.argsort(cosine_QK == -np.inf, axis=1, kind="stable")[:, :k]
    return TopK(np.take_along_axis(cosine_QK, order_QK, axis=1), np.take_along_axis(row_QK, order_QK, axis=1))
