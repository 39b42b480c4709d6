"""The ways to make a k-NN graph that benchmarks/neighbors.py compares: one class for each peer, and ours.

A peer gets the vectors in memory, and its time is that of building its index and of searching it for all vectors. Ours
reads its vectors from files and writes its graph to files, and both count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# N = vectors, D = vector length, Q = queries, K = neighbours

Params = dict[str, Any]
Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

OURS = "sbp_ray"


class Peer(Protocol):
    """A library that makes a graph: an index of all vectors, searched for all vectors."""

    package: str
    """What pip is to install."""
    module: str
    """What Python imports."""
    compiles: bool
    """Whether its first call compiles code, which later processes have to do again."""

    def build(self, vectors_ND: Vectors, k: int, threads: int, params: Params) -> Any:
        """The index, for searches of `k` neighbours."""
        ...

    def search(self, index: Any, vectors_QD: Vectors, k: int, params: Params) -> Rows:
        """Rows of the `k` nearest of each of `vectors_QD`, [Q, k]; a vector finds itself too."""
        ...

    def builds(self, num: int) -> Iterator[Params]:
        """Settings of `build` worth trying for `num` vectors."""
        ...

    def near(self, params: Params, growth: float) -> Iterator[Params]:
        """Settings of `build` worth trying for `growth` times as many vectors as `params` is best for."""
        ...

    def ladders(self, build: Params) -> Iterator[list[Params]]:
        """Settings of `search` to add to those of `build`: lists that go from fast to thorough."""
        ...


_UNQUANTISED: Params = {"dims_per_block": 0, "exact": "BFLOAT16", "soar": None, "threshold": None}


class Scann:
    """ScaNN: a tree of cells, scores from quantised products or bfloat16, exact reordering; batches on all threads."""

    package, module, compiles = "scann==1.4.2", "scann", False

    def build(self, vectors_ND: Vectors, k: int, threads: int, params: Params) -> Any:
        """See `Peer`."""
        import scann

        builder = scann.scann_ops_pybind.builder(vectors_ND, k, "dot_product").set_n_training_threads(threads)
        builder.tree(
            num_leaves=params["leaves"],
            num_leaves_to_search=1,  # given with each search
            training_sample_size=params["sample"],
            training_iterations=params["iterations"],
            spherical=params["spherical"],
            soar_lambda=params["soar"],
        )
        kind = scann.ReorderType[params["exact"]]
        if params["dims_per_block"]:
            builder.score_ah(
                params["dims_per_block"],
                anisotropic_quantization_threshold=params["threshold"] or math.nan,
                training_sample_size=params["score_sample"],
            )
            builder.reorder(100, quantize=kind)  # how many: given with each search
        else:
            builder.score_brute_force(quantize=kind)
        searcher = builder.build()
        searcher.set_num_threads(threads)
        return searcher

    def search(self, index: Any, vectors_QD: Vectors, k: int, params: Params) -> Rows:
        """See `Peer`."""
        rows_QK, _ = index.search_batched_parallel(
            vectors_QD,
            final_num_neighbors=k,
            pre_reorder_num_neighbors=params["reorder"],
            leaves_to_search=params["leaves_to_search"],
            batch_size=256,  # 4096 was no faster
        )
        return np.asarray(rows_QK).astype(np.int64)

    def builds(self, num: int) -> Iterator[Params]:
        """See `Peer`."""
        plain: Params = {"dims_per_block": 2, "exact": "FLOAT32", "soar": None, "threshold": None}
        scores = (plain, plain | {"threshold": 0.2}, plain | {"soar": 1.5}, plain | {"dims_per_block": 4}, _UNQUANTISED)
        for factor in (1, 2, 4):
            for iterations in (4, 10):
                for score in scores if iterations == 4 else scores[:1]:
                    yield self._tree(round(factor * math.sqrt(num))) | {"iterations": iterations} | score

    def _tree(self, leaves: int) -> Params:
        return {"leaves": leaves, "sample": 64 * leaves, "score_sample": 10_000, "spherical": True}

    def near(self, params: Params, growth: float) -> Iterator[Params]:
        """See `Peer`."""
        for factor in (1.5, 1):
            yield params | self._tree(round(params["leaves"] * math.sqrt(growth) * factor)) | {"iterations": 10}

    def ladders(self, build: Params) -> Iterator[list[Params]]:
        """See `Peer`."""
        for reorder in (20, 40, 80, 160) if build["dims_per_block"] else (None,):
            yield [{"leaves_to_search": number, "reorder": reorder} for number in _steps(build["leaves"])]


class FaissIVF:
    """FAISS IndexIVFFlat: cells, exact scores inside."""

    package, module, compiles = "faiss-cpu==1.15.1", "faiss", False

    def build(self, vectors_ND: Vectors, k: int, threads: int, params: Params) -> Any:
        """See `Peer`."""
        import faiss

        faiss.omp_set_num_threads(threads)
        dim = vectors_ND.shape[1]
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, params["cells"], faiss.METRIC_INNER_PRODUCT)
        index.cp.spherical, index.cp.niter = True, params["iterations"]
        index.cp.max_points_per_centroid = params["points_per_cell"]
        index.train(vectors_ND)
        index.add(vectors_ND)
        return index

    def search(self, index: Any, vectors_QD: Vectors, k: int, params: Params) -> Rows:
        """See `Peer`."""
        index.nprobe = params["probes"]
        rows_QK: Rows = index.search(vectors_QD, k)[1]
        return rows_QK

    def builds(self, num: int) -> Iterator[Params]:
        """See `Peer`."""
        for factor in (1, 2, 4, 8):
            for iterations, points in ((10, 256), (5, 64)):
                yield {
                    "cells": round(factor * math.sqrt(num)),
                    "iterations": iterations,
                    "points_per_cell": min(points, num // round(factor * math.sqrt(num))),
                }

    def near(self, params: Params, growth: float) -> Iterator[Params]:
        """See `Peer`."""
        for factor in (1, 1.5):
            yield params | {"cells": round(params["cells"] * math.sqrt(growth) * factor)}

    def ladders(self, build: Params) -> Iterator[list[Params]]:
        """See `Peer`."""
        yield [{"probes": number} for number in _steps(build["cells"])]


class FaissHNSW:
    """FAISS IndexHNSWFlat: a navigable graph into which every vector is put, and which is then searched for each."""

    package, module, compiles = "faiss-cpu==1.15.1", "faiss", False

    def build(self, vectors_ND: Vectors, k: int, threads: int, params: Params) -> Any:
        """See `Peer`."""
        import faiss

        faiss.omp_set_num_threads(threads)
        index = faiss.IndexHNSWFlat(vectors_ND.shape[1], params["links"], faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = params["breadth_of_build"]
        index.add(vectors_ND)
        return index

    def search(self, index: Any, vectors_QD: Vectors, k: int, params: Params) -> Rows:
        """See `Peer`."""
        index.hnsw.efSearch = params["breadth"]
        rows_QK: Rows = index.search(vectors_QD, k)[1]
        return rows_QK

    def builds(self, num: int) -> Iterator[Params]:
        """See `Peer`."""
        for links in (8, 12, 16, 24):
            for breadth in (16, 32, 64):
                yield {"links": links, "breadth_of_build": breadth}

    def near(self, params: Params, growth: float) -> Iterator[Params]:
        """See `Peer`."""
        yield params
        yield params | {"breadth_of_build": round(params["breadth_of_build"] * 1.5)}

    def ladders(self, build: Params) -> Iterator[list[Params]]:
        """See `Peer`."""
        yield [{"breadth": number} for number in _steps(600) if number > 10]


class NNDescent:
    """pynndescent's graph as NN-descent leaves it, without a search."""

    package, module, compiles = "pynndescent==0.7.0", "pynndescent", True

    def build(self, vectors_ND: Vectors, k: int, threads: int, params: Params) -> Any:
        """See `Peer`."""
        import pynndescent

        return pynndescent.NNDescent(vectors_ND, n_jobs=threads, random_state=0, **params)

    def search(self, index: Any, vectors_QD: Vectors, k: int, params: Params) -> Rows:
        """See `Peer`; `vectors_QD` are all vectors."""
        rows_QK: Rows = index.neighbor_graph[0][:, :k].astype(np.int64)
        return rows_QK

    def builds(self, num: int) -> Iterator[Params]:
        """See `Peer`."""
        for neighbors in (16, 14, 11, 20, 32, 48):
            for candidates in (16, 24):
                yield {"metric": "dot", "n_neighbors": neighbors, "max_candidates": candidates, "low_memory": False}

    def near(self, params: Params, growth: float) -> Iterator[Params]:
        """See `Peer`."""
        for factor in (1.2, 1.5, 1.8):  # its recall falls as the set grows
            yield params | {"n_neighbors": round(params["n_neighbors"] * factor)}

    def ladders(self, build: Params) -> Iterator[list[Params]]:
        """See `Peer`."""
        yield [{}]


PEERS: dict[str, Peer] = {
    "scann": Scann(),
    "faiss-ivf": FaissIVF(),
    "faiss-hnsw": FaissHNSW(),
    "pynndescent": NNDescent(),
}


def _steps(most: int) -> list[int]:
    """1, 2, 3, … in steps of about a sixth, up to `most`."""
    steps = [1]
    while steps[-1] < most:
        steps.append(max(steps[-1] + 1, round(steps[-1] * 1.17)))
    return [step for step in steps if step <= most]
