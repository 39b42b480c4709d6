"""Vectors as integers: 16 bits for exact cosines, their upper 8 bits for the search.

Integer products run four times as fast as float32 ones on a CPU with VNNI (measured: 400 against 85 billion operations
a second and core), and their sums are exact, so that a graph does not depend on the order of additions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# N = vectors, D = vector length

_LEVELS = 32767
_COARSE_STEP = 256  # levels of 16 bits in one of 8 bits


class Quantizer(NamedTuple):
    """Maps float components to integers; the same for all vectors of a split."""

    max_abs: float
    """The component that becomes the highest level; larger ones are cut to it."""

    @property
    def step(self) -> float:
        """Distance of two levels of 16 bits."""
        return self.max_abs / _LEVELS

    def encode(self, unit_ND: NDArray[np.float32]) -> NDArray[np.int16]:
        """Rounded to the nearest level: an error of at most `step / 2` a component."""
        return np.clip(np.rint(unit_ND * np.float32(1 / self.step)), -_LEVELS, _LEVELS).astype(np.int16)

    def cosine(self, coarse_products: NDArray[np.int32]) -> NDArray[np.float32]:
        """What products of two `coarse` vectors stand for."""
        return coarse_products.astype(np.float32) * np.float32((self.step * _COARSE_STEP) ** 2)

    def coarse_product(self, cosine: float) -> int:
        """The inverse of `cosine`."""
        return round(cosine / (self.step * _COARSE_STEP) ** 2)


def coarse(encoded_ND: NDArray[np.int16]) -> NDArray[np.int8]:
    """The upper byte, rounded."""
    half = np.int16(_COARSE_STEP // 2)
    return (np.minimum(encoded_ND, np.int16(_LEVELS - half)) + half >> 8).astype(np.int8)


def unit(vectors_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scaled to length 1; rounding to float16 has left stored vectors a hair longer or shorter."""
    vectors_ND = vectors_ND.astype(np.float32)
    return vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
