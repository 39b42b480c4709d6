"""Reading packed rows, one shard of each source in memory.

Legend: B rows, T tokens a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from sbp_ray.artifacts import Artifact
from sbp_ray.mixing import Address
from sbp_ray.schema import PACKED_ROW
from sbp_ray.shards import shard_name
from sbp_ray.text.packing import PADDING
from sbp_ray.training.plan import rows_folder


@dataclass(frozen=True)
class Batch:
    """Packed rows, on the CPU."""

    input_ids_BT: torch.Tensor
    loss_mask_BT: torch.Tensor
    document_ids_BT: torch.Tensor

    def num_graded(self) -> int:
        return int(self.loss_mask_BT.sum())


class _Shard(NamedTuple):
    key: tuple[str, int]
    columns: list[np.ndarray]


class RowReader:
    """Fetches rows by address. Addresses run shard after shard, so each shard is read once an epoch."""

    def __init__(self, out: Artifact, seq_len: int) -> None:
        self._out, self._seq_len = out, seq_len
        self._shards: dict[str, _Shard] = {}

    def batch(self, addresses: Sequence[Address | None]) -> Batch:
        """The rows at the addresses; None gives a row of padding, of which nothing is graded."""
        blank = (np.zeros(self._seq_len, np.int32), np.zeros(self._seq_len, bool), np.full(self._seq_len, PADDING))
        rows = [blank if address is None else self._row(address) for address in addresses]
        input_ids, loss_mask, document_ids = (np.stack(column) for column in zip(*rows, strict=True))
        return Batch(
            torch.from_numpy(input_ids).long(), torch.from_numpy(loss_mask), torch.from_numpy(document_ids).long()
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
