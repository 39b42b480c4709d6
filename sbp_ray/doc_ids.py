"""Columns of fixed width as NumPy sees them, ids above all, which have 16 bytes. People and JSON see 32 hex digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sbp_ray.schema import DOC_ID

# All ids are 16 bytes long, so the zeros that NumPy ignores at the end of a string do not make two ids equal.
ID = "S16"


def to_column(values_ND: NDArray) -> pa.Array:
    """[N, …] as binary of the width of a row; ids become a column of `DOC_ID`."""
    values_ND = np.ascontiguousarray(values_ND)
    width = values_ND.dtype.itemsize * int(np.prod(values_ND.shape[1:]))
    return pa.Array.from_buffers(pa.binary(width), len(values_ND), [None, pa.py_buffer(values_ND)])


def from_column(column: pa.Array | pa.ChunkedArray, dtype: Any, width: int) -> NDArray:
    """The inverse of `to_column`, [N, width], of a column without nulls; a view where it is in one piece."""
    chunks = [chunk for chunk in getattr(column, "chunks", [column]) if len(chunk)]
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype).reshape(-1, width)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in chunks
    ]
    return np.concatenate(parts or [np.empty((0, width), dtype)]) if len(parts) != 1 else parts[0]


def ids_to_numpy(ids: pa.Array | pa.ChunkedArray) -> NDArray[np.bytes_]:
    """S16[N] of a column of ids without nulls."""
    assert ids.type == DOC_ID, ids.type
    return from_column(ids, ID, 1)[:, 0]


def id_numbers(ids_N: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """uint64[N, 2]: two numbers that sort as the ids do, and that NumPy compares many times as fast."""
    return np.ascontiguousarray(ids_N).view(">u8").astype(np.uint64).reshape(*ids_N.shape, 2)


def places_of(wanted_M: NDArray[np.bytes_], ids_N: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Where each of the wanted ids is among others, -1 where it is not."""
    found = pc.index_in(to_column(wanted_M), value_set=to_column(ids_N))
    return found.fill_null(-1).to_numpy().astype(np.int64)


def shards_of(ids_N: NDArray[np.bytes_], num_shards: int) -> NDArray[np.int64]:
    """`schema.shard_of` of each id."""
    return np.ascontiguousarray(ids_N).view(">u4")[::4].astype(np.int64) % num_shards
