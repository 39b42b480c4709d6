"""Search among the documents that a group of cells brings together: those that live there, and those that visit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sbp_ray.neighbors.kernels import LANES, NO_ROW, new_heaps, offer_both, rank
from sbp_ray.neighbors.quantize import Quantizer, inverse_lengths

# N = documents of the group, D = vector length, P = cells that a document visits, K = neighbours, R = rows of a block

_QUANTIZED_ROWS = 16_384
_BLOCK_ROWS = 512
_BLOCK_COLUMNS = 1024  # scores of 2 MiB a block: they stay in the cache between the product and the scan


class Found(NamedTuple):
    """The nearest documents of each document, within the group."""

    cosine_NK: NDArray[np.float32]
    """Falling; -inf after the last."""
    row_NK: NDArray[np.int32]
    """Row within the group, `NO_ROW` after the last."""


def num_candidates(k: int) -> int:
    """Candidates kept by 8-bit scores, whose error is about 0.001, before 16 bits decide which are the `k` nearest."""
    return k + max(10, k // 4)


def search_group(
    encoded_ND: NDArray[np.int16],
    home_N: NDArray[np.int32],
    visits_NP: NDArray[np.int32],
    owned_cells: NDArray[np.int32],
    k: int,
    quantizer: Quantizer,
    device: str = "cpu",
) -> Found:
    """Compare each pair of documents of which one visits the other's home, where that home is among `owned_cells`.

    Args:
        encoded_ND: vectors; documents of the same home next to each other.
        home_N: the cell where each lives, in this group or not.
        visits_NP: the other cells that each visits, -1 after the last.
        owned_cells: the group's cells.
        k: neighbours wanted.
        quantizer: what made the integers.
        device: where the products are computed; the rest is the CPU's.
    """
    heaps_NW = new_heaps(len(encoded_ND), min(num_candidates(k), max(1, len(encoded_ND) - 1)))
    vectors_ND = torch.from_numpy(_padded(encoded_ND, quantizer)).to(device)
    visitors = _visitors(home_N, visits_NP, owned_cells)
    for visiting in (False, True):  # at home first: near scores raise the floor, and most of the others stay below it
        for cell, (first, num_owned, visitors_V) in visitors.items():
            documents = visitors_V if visiting else np.arange(first, first + num_owned)
            _meet(vectors_ND, documents, first, num_owned, cell, home_N, visits_NP, heaps_NW)
    cosine_NK, row_NK = rank(heaps_NW, encoded_ND, inverse_lengths(encoded_ND), np.arange(len(encoded_ND)), k)
    return Found(cosine_NK, row_NK)


def _padded(encoded_ND: NDArray[np.int16], quantizer: Quantizer) -> NDArray[np.int8]:
    """Coarse vectors, with rows after the last for blocks that reach over it; a GPU wants lengths in multiples of 8."""
    num, dim = encoded_ND.shape
    coarse_ND = np.zeros((num + LANES, -(-dim // 8) * 8), np.int8)
    for start in range(0, num, _QUANTIZED_ROWS):
        end = min(start + _QUANTIZED_ROWS, num)
        coarse_ND[start:end, :dim] = quantizer.coarse(encoded_ND[start:end])
    return coarse_ND


def _visitors(
    home_N: NDArray[np.int32], visits_NP: NDArray[np.int32], owned_cells: NDArray[np.int32]
) -> dict[int, tuple[int, int, NDArray[np.int64]]]:
    """For each owned cell that somebody lives in: its first document, how many live there, and who visits."""
    row_V, place_V = np.nonzero(visits_NP != NO_ROW)
    cell_V = visits_NP[row_V, place_V]
    order = np.argsort(cell_V, kind="stable")
    row_V, cell_V = row_V[order], cell_V[order]
    first_visit, end_visit = np.searchsorted(cell_V, [owned_cells, owned_cells + 1])
    living, first_row, num_living = np.unique(home_N, return_index=True, return_counts=True)
    found = {}
    for cell, start, end in zip(owned_cells, first_visit, end_visit, strict=True):
        place = np.searchsorted(living, cell)
        if place < len(living) and living[place] == cell:
            found[int(cell)] = int(first_row[place]), int(num_living[place]), row_V[start:end]
    return found


def _meet(
    vectors_ND: torch.Tensor,
    documents_V: NDArray[np.int64],
    first: int,
    num_owned: int,
    cell: int,
    home_N: NDArray[np.int32],
    visits_NP: NDArray[np.int32],
    heaps_NW: NDArray[np.int64],
) -> None:
    for start in range(0, len(documents_V), _BLOCK_ROWS):
        documents_R = documents_V[start : start + _BLOCK_ROWS]
        rows_R = torch.from_numpy(documents_R)
        if vectors_ND.is_cuda:  # its integer product wants more than 16 rows
            rows_R = torch.nn.functional.pad(rows_R, (0, max(0, 32 - len(rows_R)))).to(vectors_ND.device)
        block_RD = torch.index_select(vectors_ND, 0, rows_R)  # indexing with [] takes 15 times as long
        for column in range(first, first + num_owned, _BLOCK_COLUMNS):
            width = min(_BLOCK_COLUMNS, first + num_owned - column)
            columns_MD = vectors_ND[column : column + -(-width // LANES) * LANES]
            scores_RM = torch._int_mm(block_RD, columns_MD.t()).cpu().numpy()
            offer_both(scores_RM, documents_R, column, width, cell, home_N, visits_NP, heaps_NW)
