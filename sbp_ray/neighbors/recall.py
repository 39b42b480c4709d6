"""How many of the true neighbours a graph holds, measured on a sample by exact search."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

# Q = queries, B = documents of a block, D = vector length, K = neighbours

ID = "S16"  # raw ids: as long as each other, so that the zeros NumPy ignores at the end tell nothing apart
_TIE = 1e-5  # the 16-bit vectors' error: a neighbour as near as the last true one, but for that, is as good


class Exact(NamedTuple):
    """The nearest documents of each query among those seen so far."""

    cosine_QK: NDArray[np.float32]
    """Falling; -inf after the last."""
    id_QK: NDArray[np.bytes_]
    """Raw ids of 16 bytes."""


def no_neighbors(num_queries: int) -> Exact:
    """Nothing seen yet."""
    return Exact(np.empty((num_queries, 0), np.float32), np.empty((num_queries, 0), ID))


def nearest(
    seen: Exact,
    query_QD: NDArray[np.float32],
    query_id_Q: NDArray,
    block_BD: NDArray[np.float32],
    id_B: NDArray,
    k: int,
) -> Exact:
    """Compare all queries with a block of documents, in float32, and keep the `k` nearest of all seen.

    A document is not its own neighbour.
    """
    scores_QB = torch.from_numpy(query_QD) @ torch.from_numpy(block_BD).T
    own_B = np.flatnonzero(np.isin(_first_half(id_B), _first_half(query_id_Q)))  # numbers, not strings: 20 times faster
    own_B = own_B[np.isin(id_B[own_B], query_id_Q)]
    place_Q = np.argsort(query_id_Q)
    scores_QB[place_Q[np.searchsorted(query_id_Q[place_Q], id_B[own_B])], own_B] = -math.inf
    top = torch.topk(scores_QB, min(k, scores_QB.shape[1]), dim=1)
    return merged(seen, Exact(top.values.numpy(), id_B[top.indices.numpy()]), k)


def _first_half(id_N: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(id_N).view(np.uint64)[::2]


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
