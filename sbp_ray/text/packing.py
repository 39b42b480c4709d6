"""Packing: documents of any length into rows of one length, with as little padding as possible.

Legend: R rows, T tokens a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_ray.schema import PACKED_ROW
from sbp_ray.text.pair_format import Example, ExampleArrays

PADDING = -1  # document_ids of padding


def pack_examples(examples: Iterable[Example], seq_len: int) -> tuple[pa.Table, dict[str, Any]]:
    """Pack examples into rows: longest first, each into the fullest row that still has room (best fit).

    An example never continues in another row, unless it is longer than a row: then it is split into pieces that count
    as documents of their own.

    Returns:
        The rows (`PACKED_ROW`), and counts: `rows`, `examples`, `splits` (examples cut into pieces), `tokens` and
        `graded_tokens` (padding is neither), `padding`.
    """
    pieces: list[Example] = []
    num_examples = num_splits = 0
    for example in examples:
        parts = list(_pieces(example, seq_len))
        num_examples += 1
        num_splits += len(parts) > 1
        pieces += parts
    lengths = [len(piece.input_ids) for piece in pieces]
    rows = best_fit(lengths, seq_len)
    table = filled_rows(rows, pieces.__getitem__, seq_len)
    return table, {
        "rows": len(rows),
        "examples": num_examples,
        "splits": num_splits,
        "tokens": sum(lengths),
        "graded_tokens": pc.sum(table["loss_mask"].combine_chunks().values).as_py() or 0,
        "padding": len(rows) * seq_len - sum(lengths),
    }


def filled_rows(rows: list[list[int]], example: Callable[[int], Example | ExampleArrays], seq_len: int) -> pa.Table:
    """Rows of `PACKED_ROW`: each holds the examples of these numbers."""
    input_ids_RT = np.zeros((len(rows), seq_len), dtype=np.int32)
    loss_mask_RT = np.zeros((len(rows), seq_len), dtype=bool)
    document_ids_RT = np.full((len(rows), seq_len), PADDING, dtype=np.int32)
    for row, members in enumerate(rows):
        start = 0
        for document, number in enumerate(members):
            piece = example(number)
            end = start + len(piece.input_ids)
            input_ids_RT[row, start:end] = piece.input_ids
            loss_mask_RT[row, start:end] = piece.loss_mask
            document_ids_RT[row, start:end] = document
            start = end
    columns = (input_ids_RT, loss_mask_RT, document_ids_RT)
    return pa.table([_lists(column) for column in columns], schema=PACKED_ROW)


def _pieces(example: Example, seq_len: int) -> Iterator[Example]:
    """The example itself, or its consecutive pieces of `seq_len`; a piece's first token has no context to go by."""
    for start in range(0, len(example.input_ids), seq_len):
        loss_mask = example.loss_mask[start : start + seq_len]
        yield Example(example.input_ids[start : start + seq_len], [False, *loss_mask[1:]])


def best_fit(lengths: list[int], seq_len: int) -> list[list[int]]:
    """Row by row, the numbers of the pieces in it; none is longer than a row."""
    rows: list[list[int]] = []
    rows_with_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    rooms = 0  # bit n is set when a row has room for exactly n more tokens
    for piece in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        fitting = rooms >> lengths[piece]
        if fitting:
            room = lengths[piece] + (fitting & -fitting).bit_length() - 1  # the smallest that is enough
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = seq_len, len(rows)
            rows.append([])
        rows[row].append(piece)
        left = room - lengths[piece]
        rows_with_room[left].append(row)
        rooms |= 1 << left
    return rows


def _lists(values_RT: np.ndarray) -> pa.Array:
    num_rows, seq_len = values_RT.shape
    offsets = pa.array(np.arange(num_rows + 1) * seq_len, type=pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values_RT.reshape(-1)))
