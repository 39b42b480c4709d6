"""Ids of documents, 32 hex digits in every file, as 16 bytes, which is how columns of millions are worked on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_HEX_PAIRS_256_2 = np.frombuffer(bytes(range(256)).hex().encode(), np.uint8).reshape(256, 2)


def hex_digits(ids: pa.Array) -> NDArray[np.uint8]:
    """The ASCII codes of ids of 32 hex digits, uint8[N, 32]."""
    fixed = ids.cast(pa.binary()).cast(pa.binary(32))
    if len(fixed) == 0:
        return np.empty((0, 32), np.uint8)
    return np.frombuffer(fixed.buffers()[1], np.uint8).reshape(-1, 32)[fixed.offset : fixed.offset + len(fixed)]


def digits_to_bytes(digits_ND: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two digits a byte: uint8[N, 16] of `hex_digits`, or the like of any even number of digits."""
    values_ND = (digits_ND & 15) + 9 * (digits_ND >> 6)  # "a" is 0x61: 1 + 9
    return np.ascontiguousarray((values_ND[:, ::2] << 4) | values_ND[:, 1::2])


def bytes_to_ids(bytes_ND: NDArray[np.uint8]) -> pa.Array:
    """The inverse of `hex_digits` and `digits_to_bytes`, as strings; uint8[N, 16]."""
    text = pa.py_buffer(_HEX_PAIRS_256_2[bytes_ND].tobytes())
    return pa.Array.from_buffers(pa.binary(32), len(bytes_ND), [None, text]).cast(pa.binary()).cast(pa.string())
