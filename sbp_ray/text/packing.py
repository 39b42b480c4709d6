"""Which documents share a row: arithmetic on their lengths, which touches no token.

`cut_documents` makes parts that fit into rows, and `best_fit` the plan that a shard of them is written by. `repack` is
another plan for the same parts, of as many rows, so that the order of a run stays arithmetic. `plan_batches` is for
texts that are read once, each in a row of its own.

Legend: D documents, P parts of documents, R rows, N texts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

_FITTED_PARTS = 500_000
"""A shard of more parts has many of most lengths: they trade places without another best fit, which takes a second."""
_SPREADS = (0.6, 0.2, 0.1)
"""How much longer a document may seem than it is when a new plan puts them in order. The first that fits is taken."""
_ROWS_PER_SPARE = 2000
"""Of rows that will be packed anew, one in so many is spare. The best fit fills a large shard's rows to the last token,
and any other order takes some more of them: 5 of 11,538 for 60,000 documents of web text in rows of 4,096."""
MAX_PADDING = 0.05
"""No batch of texts of like length computes more than this share of its tokens on padding."""
_ROWS_WITHOUT_SPARE = 500
"""A smaller shard has no spare row, which would be more than 0.2 % of it; its rows are not that full."""


class Parts(NamedTuple):
    """Documents, those longer than a row cut into parts that count as documents of their own."""

    document_P: Numbers
    start_P: Numbers
    """Where the part begins in its document."""
    length_P: Numbers
    first_supervised_P: Numbers
    """Position in the part; its length where nothing is supervised. Never 0: a part's first token has no context."""


class PackedRows(NamedTuple):
    """A plan: the numbers of the parts in each row."""

    order_P: Numbers
    """Row after row."""
    ends_R: Numbers
    """Where each row ends in `order_P`."""

    def parts_of(self, row: int) -> Numbers:
        return self.order_P[self.ends_R[row - 1] if row else 0 : self.ends_R[row]]


def cut_documents(length_D: Numbers, first_supervised_D: Numbers, seq_len: int) -> Parts:
    """Consecutive parts of `seq_len` tokens, and one of what is left."""
    num_parts_D = -(-length_D // seq_len)
    document_P = np.repeat(np.arange(len(length_D)), num_parts_D)
    number_P = np.arange(len(document_P)) - np.repeat(np.cumsum(num_parts_D) - num_parts_D, num_parts_D)
    start_P = number_P * seq_len
    length_P = np.minimum(length_D[document_P] - start_P, seq_len)
    first_P = np.minimum(np.maximum(first_supervised_D[document_P] - start_P, 1), length_P)
    return Parts(document_P, start_P, length_P, first_P)


def best_fit(length_P: Numbers, seq_len: int, order_P: Numbers | None = None) -> PackedRows:
    """Put each part into the fullest row that still has room; longest first, or in the order given.

    The number of rows depends on the lengths in their order, and not on which parts have them.
    """
    if order_P is None:
        order_P = np.argsort(-length_P, kind="stable")
    row_P: list[int] = []
    rows_with_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    rooms = num_rows = 0  # bit n of `rooms` is set when a row has room for exactly n more tokens
    for length in length_P[order_P].tolist():
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1  # the smallest that is enough
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row, num_rows = seq_len, num_rows, num_rows + 1
        row_P.append(row)
        rows_with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return _rows(order_P, np.asarray(row_P, np.int64), num_rows)


def _rows(order_P: Numbers, row_P: Numbers, num_rows: int) -> PackedRows:
    """The plan in which the part `order_P[i]` lies in row `row_P[i]`."""
    return PackedRows(
        order_P[np.argsort(row_P, kind="stable")], np.cumsum(np.bincount(row_P, minlength=num_rows), dtype=np.int64)
    )


def with_spare_rows(rows: PackedRows) -> PackedRows:
    """The plan, and some empty rows that leave room for other ones."""
    num_rows = len(rows.ends_R)
    return _pad_rows(rows, -(-num_rows // _ROWS_PER_SPARE) if num_rows >= _ROWS_WITHOUT_SPARE else 0)


def _pad_rows(rows: PackedRows, number: int) -> PackedRows:
    return PackedRows(rows.order_P, np.pad(rows.ends_R, (0, number), constant_values=len(rows.order_P)))


def repack(written: PackedRows, length_P: Numbers, seq_len: int, rng: np.random.Generator) -> PackedRows:
    """Another plan at random, of no more rows; rows that it does not need are left empty.

    Parts of like length trade places before a new best fit. Where that takes more rows than were written, or there are
    very many parts, parts of equal length trade places in the rows as they are, which always fits.
    """
    num_rows = len(written.ends_R)
    for spread in _SPREADS if len(length_P) <= _FITTED_PARTS else ():
        seeming_P = length_P * (1 + spread * rng.random(len(length_P)))  # the same to the last bit on any machine
        order_P = np.argsort(-seeming_P, kind="stable")
        rows = best_fit(length_P, seq_len, order_P)
        if len(rows.ends_R) <= num_rows:
            return _pad_rows(rows, num_rows - len(rows.ends_R))
    shuffled_P = rng.permutation(len(length_P))
    order_P = np.empty_like(written.order_P)
    places_P = np.argsort(length_P[written.order_P], kind="stable")
    order_P[places_P] = shuffled_P[np.argsort(length_P[shuffled_P], kind="stable")]
    return PackedRows(order_P, written.ends_R)


def plan_batches(num_tokens_N: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Put texts of like length together.

    Args:
        batch_tokens: of a batch, padding included; a longer text goes alone.

    Returns:
        Indices of the texts of each batch, each once, the longest first: memory runs out at once or never.
        No batch has more than `MAX_PADDING` of padding.
    """
    order_N = np.argsort(-num_tokens_N, kind="stable")
    batches = []
    start = own_tokens = 0
    for end, num_tokens in enumerate(num_tokens_N[order_N].tolist()):
        computed = (end - start + 1) * int(num_tokens_N[order_N[start]])
        if end > start and (computed > batch_tokens or own_tokens + num_tokens < (1 - MAX_PADDING) * computed):
            batches.append(order_N[start:end])
            start, own_tokens = end, 0
        own_tokens += num_tokens
    return [*batches, order_N[start:]] if len(order_N) else []
