"""Ids of documents, 32 hex digits in every file, as 16 bytes, which is how columns of millions are worked on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_DIGITS = 32
_HEX_PAIRS_256 = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)  # two characters each


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
    text = pa.py_buffer(np.ascontiguousarray(_HEX_PAIRS_256[bytes_ND]))
    ends = pa.array(np.arange(len(bytes_ND) + 1) * _DIGITS).cast(pa.int32())  # raises where a column has no room
    return pa.Array.from_buffers(pa.string(), len(bytes_ND), [None, ends.buffers()[1], text])
