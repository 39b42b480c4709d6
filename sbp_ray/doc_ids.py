"""Columns of document ids as NumPy sees them: 16 bytes each, as in files. People and JSON see 32 hex digits."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.schema import DOC_ID

# All ids are 16 bytes long, so the zeros that NumPy ignores at the end of a string do not make two ids equal.
ID = "S16"


def ids_to_numpy(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.bytes_]:
    """S16[N] of a column of ids without nulls."""
    if isinstance(ids, pa.ChunkedArray):
        return np.concatenate([np.empty(0, ID), *map(ids_to_numpy, ids.chunks)])
    assert ids.type == DOC_ID, ids.type
    if len(ids) == 0:
        return np.empty(0, ID)
    return np.frombuffer(ids.buffers()[1], ID)[ids.offset : ids.offset + len(ids)]


def ids_to_arrow(ids_N: NDArray[np.bytes_]) -> pa.Array:
    """The inverse of `ids_to_numpy`."""
    return pa.Array.from_buffers(DOC_ID, len(ids_N), [None, pa.py_buffer(np.ascontiguousarray(ids_N))])


def id_numbers(ids_N: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """uint64[N, 2]: two numbers that sort as the ids do, and that NumPy compares many times as fast."""
    return np.ascontiguousarray(ids_N).view(">u8").astype(np.uint64).reshape(*ids_N.shape, 2)


def numbers_to_ids(ids_N2: NDArray[np.uint64]) -> NDArray[np.bytes_]:
    """The inverse of `id_numbers`."""
    return np.ascontiguousarray(ids_N2.astype(">u8")).view(ID)[:, 0]


def shards_of(ids_N: NDArray[np.bytes_], num_shards: int) -> NDArray[np.int64]:
    """`schema.shard_of` of each id."""
    return np.ascontiguousarray(ids_N).view(">u4")[::4].astype(np.int64) % num_shards
