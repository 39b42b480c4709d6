"""Unit vectors as integers: 16 bits for cosines, 8 bits for the search.

Integer products run four times as fast as float32 ones on a CPU with VNNI (measured: 400 against 85 billion operations
a second and core), and their sums are exact, so that a graph does not depend on the order of additions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sbp_ray.neighbors.kernels import scale_down

# N = vectors, D = vector length

_LEVELS = 32767
_COARSE_LEVELS = 127


def encode(unit_ND: NDArray[np.float32]) -> NDArray[np.int16]:
    """Rounded to multiples of 1 / 32767: cosines come out right to 0.00001, as they do after float16."""
    return np.rint(unit_ND * np.float32(_LEVELS)).astype(np.int16)


def inverse_lengths(encoded_ND: NDArray[np.int16]) -> NDArray[np.float32]:
    """1 / length of each, float32[N]."""
    squares_N = np.einsum("nd,nd->n", encoded_ND, encoded_ND, dtype=np.float32, casting="unsafe")
    return 1 / np.sqrt(squares_N)


class Quantizer(NamedTuple):
    """Maps encoded vectors to 8 bits; the same for all vectors of a split."""

    max_abs: float
    """The component that becomes the highest level; larger ones are cut to it, which costs a little recall."""

    def coarse(self, unit_ND: NDArray[np.float32]) -> NDArray[np.int8]:
        """Rounded to 255 levels; zeros make D a multiple of 8, as a GPU wants it."""
        num, dim = unit_ND.shape
        levels_ND = np.rint(unit_ND * np.float32(_COARSE_LEVELS / self.max_abs))
        coarse_ND = np.zeros((num, _multiple_of_8(dim)), np.int8)
        coarse_ND[:, :dim] = np.clip(levels_ND, -_COARSE_LEVELS, _COARSE_LEVELS, out=levels_ND)
        return coarse_ND

    def coarse_of_encoded(self, encoded_ND: NDArray[np.int16]) -> NDArray[np.int8]:
        """The same of 16-bit vectors."""
        coarse_ND = np.zeros((len(encoded_ND), _multiple_of_8(encoded_ND.shape[1])), np.int8)
        scale_down(
            encoded_ND, np.float32(_COARSE_LEVELS / self.max_abs / _LEVELS), np.float32(_COARSE_LEVELS), coarse_ND
        )
        return coarse_ND

    @property
    def cosine_of_one(self) -> float:
        """What the product 1 of two coarse vectors stands for."""
        return (self.max_abs / _COARSE_LEVELS) ** 2


def _multiple_of_8(dim: int) -> int:
    return -(-dim // 8) * 8
