"""How many of the true neighbours a graph holds, measured on a sample by exact search."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.doc_ids import ID
from sbp_ray.neighbors.cells import in_blocks, products
from sbp_ray.neighbors.kernels import keep_exact
from sbp_ray.neighbors.quantize import Quantizer

# Q = queries, B = documents of a block, D = vector length, K = neighbours

_TIE = 1e-5  # the 16-bit vectors' error: a neighbour as near as the last true one, but for that, is as good
_ROUNDING = 1e-5  # of the bounds, which are sums in float32
_BLOCK_QUERIES = 256  # their scores stay in the cache between the product and the scan


class Exact(NamedTuple):
    """The nearest documents of each query among those seen so far."""

    cosine_QK: NDArray[np.float32]
    """Falling; -inf after the last."""
    id_QK: NDArray[np.bytes_]
    """S16."""


def no_neighbors(num_queries: int) -> Exact:
    """Nothing seen yet."""
    return Exact(np.empty((num_queries, 0), np.float32), np.empty((num_queries, 0), ID))


class ExactSearch:
    """The `k` nearest documents of each query among all that are shown, block after block.

    Products of 8 bits say within proven bounds what the cosine is: it differs from the product of the rounded vectors
    by at most the length of what rounding took from either. Only documents that might be among the nearest by these
    bounds are compared in float32.

    Args:
        query_QD: unit vectors.
        query_id_Q: their ids; a document is not its own neighbour.
        k: neighbours wanted.
        quantizer: makes 8 bits of vectors.
        pool: its threads share the queries.
    """

    def __init__(
        self,
        query_QD: NDArray[np.float32],
        query_id_Q: NDArray,
        k: int,
        quantizer: Quantizer,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._query_QD, self._quantizer, self._pool = query_QD, quantizer, pool
        self._coarse_QD = quantizer.coarse(query_QD)
        self._lost_Q = _lost(query_QD, self._coarse_QD, quantizer)
        self._by_id = np.argsort(query_id_Q)
        self._sorted_ids = query_id_Q[self._by_id]
        self._seen = 0
        self._ids: list[NDArray] = []
        self._cosine_QK = np.full((len(query_QD), k), -np.inf, np.float32)
        self._row_QK = np.full((len(query_QD), k), -1, np.int64)

    def show(self, block_BD: NDArray[np.float32], coarse_BD: NDArray[np.int8], id_B: NDArray) -> None:
        """Unit vectors, these in 8 bits, and their ids."""
        self._ids.append(id_B)
        if len(self._query_QD) and len(id_B):
            lengths = 1 + self._lost_Q  # of the rounded queries, at most
            error_Q = self._lost_Q + lengths * _lost(block_BD, coarse_BD, self._quantizer).max() + _ROUNDING
            own_Q = self._own_columns(id_B)
            scale = self._quantizer.cosine_of_one

            def compare(rows: slice) -> None:
                scores_QB = products(torch.from_numpy(self._coarse_QD[rows]), torch.from_numpy(coarse_BD))
                so_far = self._cosine_QK[rows], self._row_QK[rows]
                keep_exact(
                    scores_QB, scale, error_Q[rows], self._query_QD[rows], block_BD, own_Q[rows], self._seen, *so_far
                )

            in_blocks(self._pool, len(self._query_QD), _BLOCK_QUERIES, compare)
        self._seen += len(id_B)

    def _own_columns(self, id_B: NDArray) -> NDArray[np.int64]:
        """The column that is the query itself, -1 if it is not in the block."""
        halves_B = np.ascontiguousarray(id_B).view(np.uint64)[::2]  # numbers, not strings: 20 times as fast
        own_B = np.flatnonzero(np.isin(halves_B, np.ascontiguousarray(self._sorted_ids).view(np.uint64)[::2]))
        own_B = own_B[np.isin(id_B[own_B], self._sorted_ids)]
        own_Q = np.full(len(self._query_QD), -1)
        own_Q[self._by_id[np.searchsorted(self._sorted_ids, id_B[own_B])]] = own_B
        return own_Q

    def result(self) -> Exact:
        """The nearest so far."""
        ids = np.concatenate([np.zeros(1, ID), *self._ids])
        return Exact(self._cosine_QK, ids[self._row_QK + 1])


def _lost(unit_ND: NDArray[np.float32], coarse_ND: NDArray[np.int8], quantizer: Quantizer) -> NDArray[np.float32]:
    """The length of what rounding took from each vector."""
    rounded_ND = coarse_ND[:, : unit_ND.shape[1]].astype(np.float32) * np.float32(math.sqrt(quantizer.cosine_of_one))
    rounded_ND -= unit_ND
    return np.sqrt(np.einsum("nd,nd->n", rounded_ND, rounded_ND))


def merged(a: Exact, b: Exact, k: int) -> Exact:
    """The `k` nearest of both."""
    cosine = np.concatenate([a.cosine_QK, b.cosine_QK], axis=1)
    ids = np.concatenate([a.id_QK, b.id_QK], axis=1)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return Exact(np.take_along_axis(cosine, order, axis=1), np.take_along_axis(ids, order, axis=1))


def recall_of(exact: Exact, found_cosines: list[NDArray[np.float32]], found_ids: list[NDArray]) -> NDArray[np.float64]:
    """The share of each query's true neighbours that its list holds; 1 where there are none.

    A document that is as near as the last true neighbour counts: of equally near ones, any will do.
    """
    shares = []
    for cosine_K, id_K, found, ids in zip(exact.cosine_QK, exact.id_QK, found_cosines, found_ids, strict=True):
        is_there_K = cosine_K > -np.inf
        if not is_there_K.any():
            shares.append(1.0)
            continue
        last = cosine_K[is_there_K].min()
        is_hit = np.isin(ids, id_K[is_there_K]) | (found >= last - _TIE)
        shares.append(min(1.0, is_hit.sum() / is_there_K.sum()))
    return np.array(shares)


def interval(shares: NDArray[np.float64], num_documents: int) -> tuple[float, float, float]:
    """Mean, and the limits of its 95 % confidence interval over queries drawn from `num_documents`.

    Normal, with the correction for a sample that is a large part of the whole; where all queries agree that says
    nothing, and the lower limit follows from the rule of three.
    """
    n, mean = len(shares), float(shares.mean())
    if n >= num_documents:
        return mean, mean, mean
    half = 1.96 * float(shares.std(ddof=1)) / math.sqrt(n) * math.sqrt(1 - n / num_documents) if n > 1 else 1.0
    if half == 0:
        return mean, max(0.0, mean - 3 / n), min(1.0, mean + 3 / n)
    return mean, max(0.0, mean - half), min(1.0, mean + half)
