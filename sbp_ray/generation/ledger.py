"""What is done of a shard, sample by sample, so that whatever dies, each sample ends up in the output once.

    segments/part-00003/00000512-1f….parquet   samples that were finished about the same time: rows and drops
    ledger/part-00003.npz                      one bit for each sample of the shard, and the segments it was taken from

Segments are committed whole and never changed. The ledger is a digest of them that is written after each: where a
process died between the two, the segments that it does not name are read; all of them, where it cannot be read itself.
Should two workers ever hold one shard (one was thought dead), segments overlap, and merging takes each sample once.

A sample's number is `position of its d1 in the shard's draw * samples_per_document + sample`.
"""

from __future__ import annotations

import io
import logging
import uuid
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.errors import one_line
from sbp_ray.generation.filters import BAD

logger = logging.getLogger(__name__)

SEGMENT = pa.schema(
    [
        ("number", pa.int32()),
        ("reason", pa.string()),  # why it is not kept; null for a row
        ("detail", pa.string()),  # what the engine said when it refused
        ("num_generated", pa.int32()),  # tokens that the engine wrote, kept or not
        ("num_prompt", pa.int32()),
        ("num_cached", pa.int32()),  # tokens of the prompt that the engine had in its cache
        ("contaminated", pa.list_(pa.string())),  # evaluation sets that share a run of words with it
        ("signature", pa.binary(schema.SIGNATURE_BYTES)),
        *[field.with_nullable(True) for field in schema.SYNTHETIC],
    ]
)


def part_name(shard: int) -> str:
    """Of a finished shard."""
    return f"part-{shard:05d}.parquet"


def segments_folder(shard: int) -> str:
    """Where a shard's segments lie."""
    return f"segments/part-{shard:05d}"


def ledger_name(shard: int) -> str:
    """Of a shard that was begun."""
    return f"ledger/part-{shard:05d}.npz"


class Ledger:
    """The bitmap of one shard, restored from storage."""

    def __init__(self, out: Artifact, shard: int, num_samples: int) -> None:
        self._out, self._shard = out, shard
        size = (num_samples + 7) // 8
        stored = _read_ledger_or_none(out, shard)
        if stored is None or len(stored.bits) != size:
            stored = Stored(np.zeros(size, np.uint8), set(), 0)
        self._bits, self._segments, self.num_bad = stored
        for name in out.files(segments_folder(shard), ".parquet"):
            if name not in self._segments:
                self._mark(out.read_table(name, ["number", "reason"]))
                self._segments.add(name)

    @property
    def url(self) -> str:
        """Of the artifact that it belongs to."""
        return self._out.url

    @property
    def num_done(self) -> int:
        """Samples that need not be drawn again."""
        return int(np.bitwise_count(self._bits).sum())

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """Those that are not done."""
        return [number for number in numbers if not self._bits[number >> 3] & (128 >> (number & 7))]

    def commit(self, rows: list[dict[str, Any]]) -> None:
        """Write a segment, then the ledger."""
        table = pa.Table.from_pylist(rows, SEGMENT).sort_by("number")
        first = table["number"][0].as_py()
        name = f"{segments_folder(self._shard)}/{first:08d}-{uuid.uuid4().hex[:8]}.parquet"
        self._out.write_table(name, table)
        self._mark(table)
        self._segments.add(name)
        buffer = io.BytesIO()
        np.savez(buffer, bits=self._bits, segments=np.array(sorted(self._segments)), num_bad=self.num_bad)
        self._out.write_bytes(ledger_name(self._shard), buffer.getvalue())

    def _mark(self, segment: pa.Table) -> None:
        is_bad = pc.fill_null(pc.is_in(segment["reason"], value_set=pa.array(BAD, pa.string())), False)
        self.num_bad += len(self.missing(segment["number"].filter(is_bad).unique().to_pylist()))
        numbers = segment["number"].to_numpy()
        np.bitwise_or.at(self._bits, numbers >> 3, (128 >> (numbers & 7)).astype(np.uint8))


class Stored(NamedTuple):
    """What a ledger's file holds."""

    bits: NDArray[np.uint8]
    """One for each sample, most significant first."""
    segments: set[str]
    """Those that it was taken from."""
    num_bad: int
    """Samples that were never drawn."""


def read_ledger(out: Artifact, shard: int) -> Stored:
    """The file as it is."""
    with np.load(io.BytesIO(out.read_bytes(ledger_name(shard)))) as stored:
        return Stored(stored["bits"], set(stored["segments"].tolist()), int(stored["num_bad"]))


def _read_ledger_or_none(out: Artifact, shard: int) -> Stored | None:
    """None where there is none, or where it cannot be read: the segments hold all that it says."""
    if not out.exists(ledger_name(shard)):
        return None
    try:
        return read_ledger(out, shard)
    except (ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        logger.warning(
            f"{out.path(ledger_name(shard))} cannot be read ({one_line(error)}): reading the segments instead"
        )
        return None


def num_done(out: Artifact, shards: Sequence[int]) -> int:
    """Samples of unfinished shards that are done, from their ledgers alone, where these can be read."""
    begun = {*out.files("ledger", ".npz")}
    return sum(_num_done(out, shard) for shard in shards if ledger_name(shard) in begun)


def _num_done(out: Artifact, shard: int) -> int:
    if stored := _read_ledger_or_none(out, shard):
        return int(np.bitwise_count(stored.bits).sum())
    names = out.files(segments_folder(shard), ".parquet")
    return len(set().union(*(out.read_table(name, ["number"])["number"].to_pylist() for name in names)))


def first_of_each(numbers: pa.ChunkedArray) -> NDArray[np.int64]:
    """Rows that hold each number for the first time, in the order of the numbers."""
    return np.unique(pc.cast(numbers, pa.int64()).to_numpy(), return_index=True)[1]
