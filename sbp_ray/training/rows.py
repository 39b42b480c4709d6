"""Packed rows on their way into the model: who gets which, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from sbp_ray.artifacts import Artifact
from sbp_ray.config import TrainingConfig
from sbp_ray.mixing import Address, Mixture, generator
from sbp_ray.shards import shard_name
from sbp_ray.text.packing import PackedRows
from sbp_ray.training.batches import Batch, Row, make_batch, make_blank_row
from sbp_ray.training.packed import CutRows, PackedShard
from sbp_ray.training.token_noise import TokenNoise
from sbp_ray.training.training_plan import rows_folder

_REPACKING = 1
"""Tells the random numbers of new packings from those of the order of the rows."""


def assign_rows(mixture: Mixture, step: int, batch_rows: int, rank: int, num_ranks: int) -> list[Address | None]:
    """The rank's rows of step 1, 2, …: every `num_ranks`-th, and padding where they do not come out even."""
    first = (step - 1) * batch_rows
    mine: list[Address | None] = [mixture.address(row) for row in range(first + rank, first + batch_rows, num_ranks)]
    return mine + [None] * (-(-batch_rows // num_ranks) - len(mine))


class _OpenShard(NamedTuple):
    address: tuple[int, int]
    """Epoch and shard."""
    shard: PackedShard
    rows: PackedRows | CutRows


class RowReader:
    """Fetches rows by address, and of a shard nothing else than its index. Addresses run shard after shard."""

    def __init__(self, out: Artifact, cfg: TrainingConfig, noise: TokenNoise | None = None) -> None:
        self._out, self._cfg, self._noise = out, cfg, noise
        self._open: dict[str, _OpenShard] = {}

    def batches(self, addresses: Sequence[Address | None], size: int) -> list[Batch]:
        """The rows in micro-batches of `size`; the last may be smaller."""
        return [self.batch(addresses[start : start + size]) for start in range(0, len(addresses), size)]

    def batch(self, addresses: Sequence[Address | None]) -> Batch:
        """The rows at the addresses; None gives a row of padding, of which nothing is supervised."""
        blank = make_blank_row(self._cfg.seq_len)
        rows = [blank if address is None else self.row(address) for address in addresses]
        batch = make_batch(addresses, rows, is_pinned=self._cfg.resources.num_gpus > 0)
        return batch if self._noise is None else replace(batch, shown_ids_BT=self._show(addresses, rows, self._noise))

    def _show(self, addresses: Sequence[Address | None], rows: Sequence[Row], noise: TokenNoise) -> torch.Tensor:
        shown = [
            row.input_ids_T if address is None else noise.show(row.input_ids_T, address)
            for address, row in zip(addresses, rows, strict=True)
        ]
        shown_ids_BT = torch.from_numpy(np.stack(shown))
        return shown_ids_BT.pin_memory() if self._cfg.resources.num_gpus else shown_ids_BT

    def row(self, address: Address) -> Row:
        """The row at the address. In a source's first epoch rows are read as they were packed, whatever `cfg.repack`:
        they have never been seen."""
        source, epoch, shard, position = address
        found = self._open.get(source)
        if found is None or found.address != (epoch, shard):
            packed = PackedShard(self._out, shard_name(rows_folder(source), shard), self._cfg.seq_len)
            is_anew = self._cfg.repack and epoch > 0
            rng = generator(self._cfg.seed, source, epoch, shard, _REPACKING) if is_anew else None
            found = self._open[source] = _OpenShard((epoch, shard), packed, packed.plan(rng))
        return found.shard.read(found.rows, position)
