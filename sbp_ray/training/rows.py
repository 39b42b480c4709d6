"""Packed rows on their way into the model: who gets which, and a thread that reads ahead.

Legend: B rows of a micro-batch, T tokens a row, N documents of the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from sbp_ray.artifacts import Artifact
from sbp_ray.mixing import Address, Mixture
from sbp_ray.schema import PACKED_ROW
from sbp_ray.shards import shard_name
from sbp_ray.text.packing import PADDING
from sbp_ray.training.attention import Documents, find_documents
from sbp_ray.training.plan import rows_folder

T = TypeVar("T")
READ_AHEAD = 2  # steps; a shard that must be fetched takes longer than a step, and then its successors are there


@dataclass(frozen=True)
class Batch:
    """Packed rows, and what is in them."""

    addresses: tuple[Address | None, ...]
    """Where the rows lie; None for a row of padding."""
    input_ids_BT: torch.Tensor
    loss_mask_BT: torch.Tensor
    documents: Documents
    num_graded: int
    num_tokens: int
    """Padding not counted."""
    attended: int
    """Sum of the documents' squared lengths: what attention works on."""

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            input_ids_BT=self.input_ids_BT.to(device, non_blocking=True),
            loss_mask_BT=self.loss_mask_BT.to(device, non_blocking=True),
            documents=self.documents.to(device),
        )


def make_batch(
    addresses: Sequence[Address | None],
    input_ids_BT: torch.Tensor,
    loss_mask_BT: torch.Tensor,
    document_ids_BT: torch.Tensor,
) -> Batch:
    """Find the documents and count; pinned where a GPU will fetch it."""
    documents = find_documents(document_ids_BT)
    starts_N = documents.bounds_N1[:-1].long()
    lengths_N = documents.bounds_N1.diff().long() * (document_ids_BT.flatten()[starts_N] != PADDING)
    if torch.cuda.is_available():
        input_ids_BT, loss_mask_BT = input_ids_BT.pin_memory(), loss_mask_BT.pin_memory()
    return Batch(
        tuple(addresses),
        input_ids_BT,
        loss_mask_BT,
        documents,
        num_graded=int(loss_mask_BT.sum()),
        num_tokens=int(lengths_N.sum()),
        attended=int(lengths_N.square().sum()),
    )


def dealt(mixture: Mixture, step: int, batch_rows: int, rank: int, num_ranks: int) -> list[Address | None]:
    """The rank's rows of step 1, 2, …: every `num_ranks`-th, and padding where they do not come out even."""
    first = (step - 1) * batch_rows
    mine: list[Address | None] = [mixture.address(row) for row in range(first + rank, first + batch_rows, num_ranks)]
    return mine + [None] * (-(-batch_rows // num_ranks) - len(mine))


def read_ahead(make: Callable[[int], T], steps: Iterable[int], ahead: int = READ_AHEAD) -> Iterator[T]:
    """`make(step)` of each step, made in a thread while earlier ones are in use. Close it to stop early."""
    todo = iter(steps)
    pool = ThreadPoolExecutor(1, thread_name_prefix="rows")
    try:
        waiting: deque[Future[T]] = deque(pool.submit(make, step) for step in islice(todo, ahead))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, step) for step in islice(todo, 1))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


class _Shard(NamedTuple):
    key: tuple[str, int]
    columns: list[np.ndarray]


class RowReader:
    """Fetches rows by address. Addresses run shard after shard, so each shard is read once an epoch."""

    def __init__(self, out: Artifact, seq_len: int) -> None:
        self._out, self._seq_len = out, seq_len
        self._shards: dict[str, _Shard] = {}

    def batches(self, addresses: Sequence[Address | None], size: int) -> list[Batch]:
        """The rows in micro-batches of `size`; the last may be smaller."""
        return [self.batch(addresses[start : start + size]) for start in range(0, len(addresses), size)]

    def batch(self, addresses: Sequence[Address | None]) -> Batch:
        """The rows at the addresses; None gives a row of padding, of which nothing is graded."""
        blank = (np.zeros(self._seq_len, np.int32), np.zeros(self._seq_len, bool), np.full(self._seq_len, PADDING))
        rows = [blank if address is None else self._row(address) for address in addresses]
        input_ids, loss_mask, document_ids = (np.stack(column) for column in zip(*rows, strict=True))
        return make_batch(
            addresses,
            torch.from_numpy(input_ids).long(),
            torch.from_numpy(loss_mask),
            torch.from_numpy(document_ids).long(),
        )

    def _row(self, address: Address) -> tuple[np.ndarray, ...]:
        key = (address.source, address.shard)
        shard = self._shards.get(address.source)
        if shard is None or shard.key != key:
            self._shards.pop(address.source, None)  # the old one goes before the new one comes
            shard = self._shards[address.source] = _Shard(key, self._read(*key))
        return tuple(column[address.position] for column in shard.columns)

    def _read(self, source: str, shard: int) -> list[np.ndarray]:
        table = self._out.read_table(shard_name(rows_folder(source), shard)).combine_chunks()
        columns = [table[name].combine_chunks().flatten() for name in PACKED_ROW.names]
        return [column.to_numpy(zero_copy_only=False).reshape(-1, self._seq_len) for column in columns]
