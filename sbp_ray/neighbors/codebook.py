"""Cells: which part of the space a document lives in, and which others it visits.

Centroids come from spherical k-means in two levels (coarse regions, cells inside them), so that both training them and
finding a document's cells cost a square root of their number. A document lives in its nearest cell, and visits the
others whose centroids are less than `margin` further away (in cosine). Two documents meet when one visits the other's
home. The margin follows from the recall that is wanted, measured on documents that the centroids were not made from.
"""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.neighbors.kernels import NO_ROW, new_heaps, offer_rows
from sbp_ray.neighbors.quantize import Quantizer, encode, unit

# N = documents, D = vector length, C = cells, G = coarse regions, P = cells that a document visits, Q = queries

SAMPLES_PER_CELL = 64
_ITERATIONS = 8
_POLISHING = 6  # rounds in which documents at the border of a region may choose a cell of another
_REGIONS_TRIED = 32  # the nearest of these hold practically all of a document's nearest cells
_BLOCK = 8192
WHOLE = 2.0  # no two cosines are further apart


class Codebook(NamedTuple):
    """The cells of one split."""

    max_abs: float
    """Of the quantizer."""
    region_GD: NDArray[np.int16]
    """Centres of the coarse regions."""
    cell_CD: NDArray[np.int16]
    """Centroids, those of a region next to each other."""
    first_cell_G1: NDArray[np.int64]
    """[G + 1] Where each region's cells begin."""
    margin: float = 0.0
    """How much further than its home a cell may be that a document visits."""
    group_C: NDArray[np.int32] = np.zeros(1, np.int32)
    """Which cells are searched together."""
    query_QD: NDArray[np.float32] = np.empty((0, 0), np.float32)
    """Vectors of the documents whose neighbours are also searched exactly."""
    query_id_Q: NDArray[np.bytes_] = np.empty(0, "S16")
    """Their ids."""

    @property
    def quantizer(self) -> Quantizer:
        return Quantizer(float(self.max_abs))

    @property
    def num_groups(self) -> int:
        return int(self.group_C.max()) + 1

    def to_bytes(self) -> bytes:
        """As a file of NumPy's."""
        stream = io.BytesIO()
        np.savez(stream, **self._asdict())
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Codebook:
        """The inverse of `to_bytes`."""
        with np.load(io.BytesIO(data)) as arrays:
            return cls(**{**arrays, "max_abs": float(arrays["max_abs"]), "margin": float(arrays["margin"])})


class Assignment(NamedTuple):
    """The cells of N documents."""

    home_N: NDArray[np.int32]
    visits_NP: NDArray[np.int32]
    """The others, nearest first, `NO_ROW` after the last."""
    gap_NP: NDArray[np.float32]
    """How much lower their cosine is than that of the home."""


def train(sample_ND: NDArray[np.float32], num_cells: int, seed: int) -> Codebook:
    """Find the centroids of `num_cells` cells, or a few less, in a sample of unit vectors."""
    quantizer = Quantizer(float(np.abs(sample_ND).max()))
    num_regions = max(1, round(math.sqrt(num_cells)))
    region_GD = _in_a_chain(_centroids(sample_ND, num_regions, seed))
    region_N = np.argmax(sample_ND @ region_GD.T, axis=1)
    counts_G = np.bincount(region_N, minlength=len(region_GD))
    cells = []
    for region, count in enumerate(counts_G):
        wanted = max(1, round(num_cells * count / len(sample_ND)))
        members = sample_ND[region_N == region]
        cells.append(_centroids(members, wanted, seed) if count else region_GD[region : region + 1])
    first_cell_G1 = np.concatenate([[0], np.cumsum([len(part) for part in cells])])
    codebook = Codebook(quantizer.max_abs, encode(region_GD), encode(np.concatenate(cells)), first_cell_G1)
    encoded_ND = encode(sample_ND)
    for _ in range(_POLISHING if num_regions > 1 else 0):
        codebook = _moved(codebook, sample_ND, assign(codebook, encoded_ND, 0, 0.0).home_N)
    return codebook


def _in_a_chain(region_GD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each next to one that is like it: cells are put into groups in this order."""
    similarity_GG = region_GD @ region_GD.T
    order = [0]
    similarity_GG[:, 0] = -np.inf
    while len(order) < len(region_GD):
        order.append(int(similarity_GG[order[-1]].argmax()))
        similarity_GG[:, order[-1]] = -np.inf
    return region_GD[order]


def _moved(codebook: Codebook, sample_ND: NDArray[np.float32], home_N: NDArray[np.int32]) -> Codebook:
    """Each centroid in the middle of the documents that live there."""
    order = np.argsort(home_N, kind="stable")
    living, first_N = np.unique(home_N[order], return_index=True)
    cell_CD = codebook.cell_CD.copy()
    cell_CD[living] = encode(unit(np.add.reduceat(sample_ND[order], first_N, axis=0)))
    region_GD = np.add.reduceat(cell_CD.astype(np.float32), codebook.first_cell_G1[:-1], axis=0)
    return codebook._replace(cell_CD=cell_CD, region_GD=encode(unit(region_GD)))


def _centroids(sample_ND: NDArray[np.float32], num: int, seed: int) -> NDArray[np.float32]:
    """Spherical k-means; at most one centroid for each distinct vector."""
    if num == 1 or len(sample_ND) <= num:
        mean = sample_ND.mean(axis=0, keepdims=True)
        return unit(mean) if num == 1 and np.linalg.norm(mean) > 0 else sample_ND[:num]
    kmeans = faiss.Kmeans(
        sample_ND.shape[1],
        num,
        niter=_ITERATIONS,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=SAMPLES_PER_CELL * max(1, len(sample_ND) // num),
    )
    kmeans.train(np.ascontiguousarray(sample_ND))
    assert kmeans.centroids is not None
    return kmeans.centroids


def assign(codebook: Codebook, encoded_ND: NDArray[np.int16], max_visits: int, margin: float) -> Assignment:
    """The home of each document, and of the nearest `max_visits` others those within `margin` of it."""
    blocks = [encoded_ND[start : start + _BLOCK] for start in range(0, len(encoded_ND), _BLOCK)]
    width = min(max_visits + 1, len(codebook.cell_CD))
    heaps_NW = np.concatenate(
        [new_heaps(0, width), *(_nearest_cells(codebook, block, width, margin) for block in blocks)]
    )
    heaps_NW.sort(axis=1)
    is_there_NP = heaps_NW[:, ::-1] != new_heaps(1, 1)
    cosine_NP = codebook.quantizer.cosine((heaps_NW[:, ::-1] >> 32).astype(np.int32))
    gap_NP = np.where(is_there_NP, cosine_NP[:, :1] - cosine_NP, np.inf).astype(np.float32)
    is_there_NP &= gap_NP <= margin
    cells_NP = np.where(is_there_NP, heaps_NW[:, ::-1] & 0xFFFFFFFF, NO_ROW).astype(np.int32)
    width = max(1, int(is_there_NP.sum(axis=1).max(initial=1)))
    return Assignment(cells_NP[:, 0], cells_NP[:, 1:width].copy(), gap_NP[:, 1:width])


def _nearest_cells(codebook: Codebook, encoded_ND: NDArray[np.int16], num: int, margin: float) -> NDArray[np.int64]:
    """Heaps of cells, int64[N, num]."""
    document_ND = torch.from_numpy(codebook.quantizer.coarse(encoded_ND))
    heaps_NW = new_heaps(len(encoded_ND), num)
    best_N = np.full(len(encoded_ND), -(2**31))
    margin = min(codebook.quantizer.product(margin), 2**31)
    num_tried = min(_REGIONS_TRIED, len(codebook.region_GD))
    region_scores_NG = torch._int_mm(document_ND, torch.from_numpy(codebook.quantizer.coarse(codebook.region_GD)).t())
    tried_NT = torch.topk(region_scores_NG, num_tried, dim=1, sorted=False).indices.numpy()
    cell_CD = torch.from_numpy(codebook.quantizer.coarse(codebook.cell_CD))
    for region in np.unique(tried_NT):
        documents = np.flatnonzero((tried_NT == region).any(axis=1))
        first, end = codebook.first_cell_G1[region : region + 2]
        chosen_ND = torch.index_select(document_ND, 0, torch.from_numpy(documents))
        scores = torch._int_mm(chosen_ND, cell_CD[first:end].t())
        offer_rows(scores.numpy(), documents, first, margin, best_N, heaps_NW)
    return heaps_NW


def calibrate(
    codebook: Codebook, held_out_ND: NDArray[np.float32], num_queries: int, k: int, max_visits: int, recall: float
) -> float:
    """The margin at which `recall` of the true neighbours meet, measured within a sample.

    A sample of a share s of the documents holds about s k of a document's k neighbours; `k` is that number.

    Returns:
        The margin, as a difference of cosines; infinite where no margin reaches the recall with `max_visits`.
    """
    encoded_ND = encode(held_out_ND)
    cells = assign(codebook, encoded_ND, max_visits, WHOLE)
    query_QD = held_out_ND[:num_queries]
    scores_QN = torch.from_numpy(query_QD) @ torch.from_numpy(held_out_ND).T
    scores_QN.fill_diagonal_(-math.inf)
    neighbor_QK = torch.topk(scores_QN, min(k, len(held_out_ND) - 1), dim=1).indices.numpy()
    query_Q1 = np.arange(len(query_QD))[:, None]
    gap_QK = np.minimum(_gap(cells, query_Q1, neighbor_QK), _gap(cells, neighbor_QK, query_Q1))
    return float(np.quantile(gap_QK, recall, method="higher"))


def _gap(cells: Assignment, visitor: NDArray[np.int64], host: NDArray[np.int64]) -> NDArray[np.float32]:
    """The margin from which on each visitor visits the host's home."""
    home = cells.home_N[host]
    is_home = cells.visits_NP[visitor] == home[..., None]
    gap = np.where(is_home, cells.gap_NP[visitor], np.float32(np.inf)).min(axis=-1, initial=np.inf)
    return np.where(cells.home_N[visitor] == home, np.float32(0), gap)


def in_groups(home_N: NDArray[np.int32], num_cells: int, num_groups: int) -> NDArray[np.int32]:
    """int32[C] Cells next to each other in groups in which about as many documents live, by a sample of homes."""
    living_C = np.bincount(home_N, minlength=num_cells) + 0.5  # a cell that the sample missed is not empty
    before_C = np.cumsum(living_C) - living_C / 2
    return np.minimum(before_C / living_C.sum() * num_groups, num_groups - 1).astype(np.int32)
