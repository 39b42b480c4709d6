"""The nearest documents of some queries, exactly: what the recall is judged by, and what tells a search when to end.

Products of 8 bits say within proven bounds what a cosine is: it differs from the product of the rounded vectors by at
most the length of what rounding took from either. Only documents that might be among the nearest by these bounds are
compared in float32 (`_compare_exactly`).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.doc_ids import ID, places_of
from sbp_ray.neighbors.nearest_lists import LANES, LOWEST, any_reaches, find_floor, put_in_place
from sbp_ray.neighbors.quantize import Quantizer, encode, in_blocks, products

# Q = queries, B = documents of a block, D = vector length, K = neighbours

_ROUNDING = 1e-5
"""How far the bounds, which are sums in float32, may be off."""
_BLOCK_QUERIES = 256
"""Queries that a thread compares at a time: their scores stay in the cache between the product and the scan."""
_SUMS = {"reassoc", "contract"}
"""Freedom of the compiler: sums may be taken in lanes; -inf stays what it is."""


class Exact(NamedTuple):
    """The nearest documents of each query among those seen so far."""

    cosine_QK: NDArray[np.float32]
    """Falling; -inf after the last."""
    id_QK: NDArray[np.bytes_]
    """S16."""

    @classmethod
    def nothing(cls, num_queries: int) -> Exact:
        """No document seen yet."""
        return cls(np.empty((num_queries, 0), np.float32), np.empty((num_queries, 0), ID))

    def merge(self, other: Exact, k: int) -> Exact:
        """The `k` nearest of both."""
        cosine = np.concatenate([self.cosine_QK, other.cosine_QK], axis=1)
        ids = np.concatenate([self.id_QK, other.id_QK], axis=1)
        order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
        return Exact(np.take_along_axis(cosine, order, axis=1), np.take_along_axis(ids, order, axis=1))


class ExactSearch:
    """The `k` nearest documents of each query among all that are shown, block after block.

    Args:
        query_QD: unit vectors.
        query_id_Q: their ids; a document is not its own neighbour.
        pool: its threads share the queries.
    """

    def __init__(
        self, query_QD: NDArray[np.float32], query_id_Q: NDArray, k: int, quantizer: Quantizer, pool: ThreadPoolExecutor
    ) -> None:
        self._query_QD, self._query_id_Q, self._quantizer, self._pool = query_QD, query_id_Q, quantizer, pool
        self._coarse_QD = quantizer.coarse(encode(query_QD))
        self._lost_Q = _lost(query_QD, self._coarse_QD, quantizer)
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
            own_Q = places_of(self._query_id_Q, id_B)
            scale = self._quantizer.cosine_of_one

            def compare(rows: slice) -> None:
                scores_QB = products(torch.from_numpy(self._coarse_QD[rows]), torch.from_numpy(coarse_BD))
                queries = self._query_QD[rows], own_Q[rows], error_Q[rows]
                nearest = self._cosine_QK[rows], self._row_QK[rows]
                _compare_exactly(scores_QB, scale, *queries, block_BD, self._seen, *nearest)

            in_blocks(self._pool, len(self._query_QD), _BLOCK_QUERIES, compare)
        self._seen += len(id_B)

    def result(self) -> Exact:
        """The nearest so far."""
        ids = np.concatenate([np.zeros(1, ID), *self._ids])
        return Exact(self._cosine_QK, ids[self._row_QK + 1])


def _lost(unit_ND: NDArray[np.float32], coarse_ND: NDArray[np.int8], quantizer: Quantizer) -> NDArray[np.float32]:
    """The length of what rounding took from each vector."""
    rounded_ND = coarse_ND[:, : unit_ND.shape[1]].astype(np.float32) * np.float32(math.sqrt(quantizer.cosine_of_one))
    rounded_ND -= unit_ND
    return np.sqrt(np.einsum("nd,nd->n", rounded_ND, rounded_ND))


@numba.njit(cache=True, nogil=True, fastmath=_SUMS)
def _compare_exactly(scores_QB, scale, query_QD, own_Q, error_Q, block_BD, first_row, cosine_QK, row_QK):  # type: ignore[no-untyped-def]  # compiled
    """Compare queries in float32 with the documents of a block that may be among their nearest.

    Args:
        scores_QB: int32 products of rounded vectors; rows after the queries mean nothing.
        scale: what the product 1 stands for.
        query_QD: float32.
        own_Q: the column that is the query itself, or -1.
        error_Q: how far from the cosine such a product is at most.
        block_BD: float32.
        first_row: the number of the first column.
        cosine_QK: falling, changed in place.
        row_QK: the numbers of these, changed in place.
    """
    k = cosine_QK.shape[1]
    highest_L = np.empty((k // LANES + 2) * LANES, np.int32)
    for q in range(len(query_QD)):
        floor = _least_product(cosine_QK[q, k - 1], error_Q[q], scale)
        if floor == LOWEST:  # one of the columns may be the query itself
            known = find_floor(scores_QB[q], k + 1, highest_L) * scale - error_Q[q]
            floor = _least_product(known, error_Q[q], scale)
        for start in range(0, scores_QB.shape[1], LANES):
            scores_L = scores_QB[q, start : start + LANES]
            if not any_reaches(scores_L, np.int32(floor)):
                continue
            for lane in range(len(scores_L)):
                b = start + lane
                if scores_L[lane] < floor or b == own_Q[q]:
                    continue
                cosine = np.float32(0)
                for d in range(query_QD.shape[1]):
                    cosine += query_QD[q, d] * block_BD[b, d]
                if cosine > cosine_QK[q, k - 1]:
                    put_in_place(cosine, first_row + b, k, cosine_QK[q], row_QK[q])
                    floor = max(floor, _least_product(cosine_QK[q, k - 1], error_Q[q], scale))


@numba.njit(cache=True, nogil=True)
def _least_product(least, error, scale):  # type: ignore[no-untyped-def]  # compiled
    """The least product that may stand for a cosine of `least`, when it is off by `error` at most."""
    return np.int64(max(np.floor((np.float64(least) - error) / scale), np.float64(LOWEST)))
