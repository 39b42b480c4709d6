"""One measurement of benchmarks/neighbors.py, in a process of its own so that its memory is its own.

    python benchmarks/neighbor_process.py measure|tune REQUEST

REQUEST is a JSON object. The answer is one too, printed as a line of its own the moment it is known. Which CPUs to run
on and how many threads a pool has are inherited.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from neighbor_methods import OURS, PEERS, Params, Peer
from neighbor_tuning import tune, without_self
from vector_sets import exact_neighbors

# N = vectors, D = vector length, Q = queries, K = neighbours


def measure(request: dict[str, Any]) -> None:
    """Make one graph; the neighbours of the queries go to the file `found`."""
    query_Q = np.load(request["queries"])
    if request["method"] == OURS:
        from neighbor_ours import run_ours

        vectors = Path(request["vectors"])
        found_QK = run_ours(vectors, request["k"], request["min_recall"], request["threads"], query_Q, _answer)
    else:
        peer, k, params = PEERS[request["method"]], request["k"], request["params"]
        vectors_ND = np.load(request["vectors"])
        _warm_up(peer, vectors_ND, k, request["threads"], params)
        base_gib = _own_gib("VmRSS")
        start, cpu_start = time.perf_counter(), time.process_time()
        index = peer.build(vectors_ND, k + 1, request["threads"], params)
        build_s = time.perf_counter() - start
        found_NK = peer.search(index, vectors_ND, k + 1, params)
        seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
        _answer(seconds, cpu_s, build_s=build_s, base_gib=base_gib, own_peak_gib=_own_gib("VmHWM"))
        found_QK = without_self(found_NK[query_Q], query_Q)
    np.save(request["found"], found_QK)


def search_settings(request: dict[str, Any]) -> None:
    """Tune one peer. `near`: the best settings for a smaller set, and how many times larger this one is; or null."""
    vectors_ND = np.load(request["vectors"])
    peer, query_Q = PEERS[request["method"]], np.load(request["queries"])
    _, exact_QK = exact_neighbors(vectors_ND, query_Q, request["k"])
    builds = list(peer.near(*request["near"]) if request["near"] else peer.builds(len(vectors_ND)))
    _warm_up(peer, vectors_ND, request["k"], request["threads"], builds[0])
    limits = request["min_recall"], request["threads"], request["budget_s"]
    best = tune(peer, builds, vectors_ND, query_Q, exact_QK, *limits)
    print(json.dumps({"best": best}), flush=True)


def _warm_up(peer: Peer, vectors_ND: np.ndarray, k: int, threads: int, params: Params) -> None:
    """Let what is compiled on first use be compiled: not part of making a graph."""
    if peer.compiles:
        part_ND = vectors_ND[:2000].copy()
        peer.search(peer.build(part_ND, k + 1, threads, params), part_ND, k + 1, params)


def _own_gib(key: str) -> float:
    """Resident memory of this process, now (VmRSS) or at its peak (VmHWM): exact, however short the peak."""
    [kib] = re.findall(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kib) / 2**20


def _answer(seconds: float, cpu_s: float, **more: float) -> None:
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, **more}), flush=True)


if __name__ == "__main__":
    {"measure": measure, "tune": search_settings}[sys.argv[1]](json.loads(sys.argv[2]))
