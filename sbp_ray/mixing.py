"""Which row is trained on when: a pure function of the global row number, the same for any number of workers.

Row `g` of the run is row `g % batch_rows` of step `g // batch_rows`. Real rows come round again, in a new order each
time; synthetic rows come at most once and lie evenly between the real ones, but for those that are kept for the end.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Source:
    """Packed rows of one kind, in shards that are read one after the other."""

    name: str
    shard_rows: tuple[int, ...]
    """Rows of each shard."""

    @property
    def num_rows(self) -> int:
        return sum(self.shard_rows)


class Address(NamedTuple):
    """Where a row lies."""

    source: str
    epoch: int
    """How often the source has been read before."""
    shard: int
    position: int


@dataclass(frozen=True)
class Mixture:
    """The order of a whole run."""

    repeated: Source
    """Real text, or pairs: read as often as needed."""
    once: Source | None
    """Synthetic text."""
    total_rows: int
    once_rows: int
    """Rows of them that come from `once`."""
    seed: int
    tail_rows: int = 0
    """The last rows of the run, all of `repeated`."""

    def __post_init__(self) -> None:
        if self.repeated.num_rows == 0:
            raise ValueError(f"source {self.repeated.name} has no rows")
        available = self.once.num_rows if self.once else 0
        if not 0 <= self.once_rows <= min(available, self.total_rows - self.tail_rows):
            tail = f", the last {self.tail_rows} without" if self.tail_rows else ""
            raise ValueError(f"{self.once_rows} rows of {available}, in a run of {self.total_rows}{tail}")

    def rows(self) -> dict[str, int]:
        """Rows of each source in the whole run."""
        counts = {self.repeated.name: self.total_rows - self.once_rows}
        return counts if self.once is None else {**counts, self.once.name: self.once_rows}

    def address(self, global_row: int) -> Address:
        """The row to train on as number `global_row`, from 0 to `total_rows` - 1."""
        if not 0 <= global_row < self.total_rows:
            raise ValueError(f"row {global_row} of {self.total_rows}")
        head_rows = self.total_rows - self.tail_rows
        if global_row >= head_rows:
            return _nth(self.repeated, global_row - self.once_rows, self.seed)
        once_before = global_row * self.once_rows // head_rows
        is_once = (global_row + 1) * self.once_rows // head_rows > once_before
        if is_once:
            assert self.once is not None
            return _nth(self.once, once_before, self.seed)
        return _nth(self.repeated, global_row - once_before, self.seed)


def _nth(source: Source, number: int, seed: int) -> Address:
    """The `number`th row of an endless reading of the source."""
    epoch, in_epoch = divmod(number, source.num_rows)
    shards, ends = _shard_order(source, epoch, seed)
    place = int(np.searchsorted(ends, in_epoch, side="right"))
    shard = int(shards[place])
    rank_in_shard = in_epoch - (int(ends[place - 1]) if place else 0)
    order = _row_order(source.name, source.shard_rows[shard], shard, epoch, seed)
    return Address(source.name, epoch, shard, int(order[rank_in_shard]))


@lru_cache(maxsize=4)
def _shard_order(source: Source, epoch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The epoch's permutation of the shards, and the number of rows up to the end of each."""
    shards = generator(seed, source.name, epoch, -1).permutation(len(source.shard_rows))
    return shards, np.cumsum(np.asarray(source.shard_rows)[shards])


@lru_cache(maxsize=4)
def _row_order(name: str, num_rows: int, shard: int, epoch: int, seed: int) -> np.ndarray:
    """The epoch's permutation of a shard's rows: only one shard's index is in memory, and shards are random samples."""
    return generator(seed, name, epoch, shard).permutation(num_rows)


def generator(seed: int, name: str, epoch: int, shard: int, *more: int) -> np.random.Generator:
    """Random numbers of one shard in one epoch, the same wherever they are drawn; `more` tells several uses apart."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), epoch, shard + 1, *more])
