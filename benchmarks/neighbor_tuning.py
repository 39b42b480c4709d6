"""The search for each peer's fastest settings that reach the recall. Runs in a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

import numpy as np
from neighbor_methods import Params, Peer, Rows, Vectors

# N = vectors, D = vector length, Q = queries, K = neighbours

_NUM_TIMED = 20_000  # queries whose time stands for that of all
_MARGIN = 0.002  # above the recall asked for: graphs differ from run to run


def recall_at_k(vectors_ND: Vectors, query_Q: Rows, found_QK: Rows, exact_QK: Vectors) -> float:
    """Share of the `k` nearest that were found.

    A neighbour counts when it is no farther than the exact k-th, up to 1e-6: ties are as good.

    Args:
        vectors_ND: unit vectors.
        query_Q: rows asked for.
        found_QK: rows found for each, in any order, itself left out; -1 for none.
        exact_QK: cosines of the exact nearest, nearest first.
    """
    num_right = 0
    for query, found_K, exact_K in zip(query_Q, found_QK, exact_QK, strict=True):
        found_K = np.unique(found_K[(found_K >= 0) & (found_K != query)])
        cosine_K = vectors_ND[found_K] @ vectors_ND[query]
        num_right += min(int((cosine_K >= exact_K[-1] - 1e-6).sum()), len(exact_K))
    return num_right / exact_QK.size


def without_self(found_QK: Rows, query_Q: Rows) -> Rows:
    """Drop each query itself, or its last neighbour where it did not find itself: [Q, K] -> [Q, K - 1]."""
    is_self_QK = found_QK == query_Q[:, None]
    is_self_QK[~is_self_QK.any(axis=1), -1] = True
    is_self_QK &= np.cumsum(is_self_QK, axis=1) == 1
    kept: Rows = found_QK[~is_self_QK].reshape(len(found_QK), -1)
    return kept


def tune(
    peer: Peer,
    builds: Iterable[Params],
    vectors_ND: Vectors,
    query_Q: Rows,
    exact_QK: Vectors,
    min_recall: float,
    threads: int,
    budget_s: float,
) -> Params | None:
    """The settings with the least time to build and to search, estimated from a part of the searches.

    No build begins when `budget_s` is over.

    Returns:
        Settings of both; None when nothing reached the recall.
    """
    best: tuple[float, Params] | None = None
    begun = time.perf_counter()
    for build in builds:
        if time.perf_counter() - begun > budget_s:
            _say("the time for tuning is over")
            break
        start = time.perf_counter()
        index = peer.build(vectors_ND, exact_QK.shape[1] + 1, threads, build)
        build_s = time.perf_counter() - start
        for ladder in peer.ladders(build):
            if best and build_s > best[0]:
                break
            found = _climb(peer, index, ladder, vectors_ND, query_Q, exact_QK, min_recall + _MARGIN)
            if found is None:
                continue
            total_s = build_s + _search_seconds(peer, index, vectors_ND, exact_QK.shape[1] + 1, build | found[0])
            _say(f"{total_s:8.1f} s ({build_s:.1f} to build) recall {found[1]:.4f} {build | found[0]}")
            if best is None or total_s < best[0]:
                best = total_s, build | found[0]
        else:
            _say(f"built in {build_s:.1f} s {build}")
        del index
    return best and best[1]


def _climb(
    peer: Peer,
    index: object,
    ladder: list[Params],
    vectors_ND: Vectors,
    query_Q: Rows,
    exact_QK: Vectors,
    min_recall: float,
) -> tuple[Params, float] | None:
    """The lowest rung that reaches the recall, by bisection, and its recall."""
    low, high, reached = 0, len(ladder), None
    k = exact_QK.shape[1]
    while low < high:
        middle = (low + high) // 2
        is_graph = not ladder[middle]  # searched for all, or not at all
        asked_Q = np.arange(len(vectors_ND)) if is_graph else query_Q
        found_QK = peer.search(index, vectors_ND[asked_Q], k + 1, ladder[middle])
        found_QK = without_self(found_QK[query_Q] if is_graph else found_QK, query_Q)
        recall = recall_at_k(vectors_ND, query_Q, found_QK, exact_QK)
        if recall >= min_recall:
            high, reached = middle, (ladder[middle], recall)
        else:
            if is_graph:
                _say(f"         recall {recall:.4f} only")
            low = middle + 1
    return reached


def _search_seconds(peer: Peer, index: object, vectors_ND: Vectors, k: int, params: Params) -> float:
    num = min(_NUM_TIMED, len(vectors_ND))
    asked_Q = np.random.default_rng(1).choice(len(vectors_ND), num, replace=False)
    part_QD = vectors_ND[asked_Q]
    start = time.perf_counter()
    peer.search(index, part_QD, k, params)
    return (time.perf_counter() - start) * len(vectors_ND) / num


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
