"""What is done of a shard, sample by sample, so that whatever dies, each sample ends up in the output once.

    segments/part-00003/00000512-1f….parquet   samples that were finished about the same time: rows and drops

A sample is done when a segment holds it. Segments are committed whole and never changed; a restarted worker reads from
them which samples are left to request. Should two workers ever hold one shard (one was thought dead), segments overlap,
and merging takes each sample once.

A sample's number is `position of its d1 among the shard's d1 * samples_per_document + sample`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.generation.filters import BAD
from sbp_ray.threads import map_in_threads

SEGMENT = pa.schema(
    [
        ("number", pa.int32()),
        ("reason", pa.string()),  # why it is not kept; null for a row
        ("detail", pa.string()),  # what the engine said when it refused
        ("num_generated", pa.int32()),  # tokens that the engine wrote, kept or not
        ("num_prompt", pa.int32()),
        ("num_cached", pa.int32()),  # tokens of the prompt that the engine had in its cache
        ("read_outside", pa.int32()),  # tokens of the prompt as an outside model counts them
        ("written_outside", pa.int32()),
        ("contaminated", pa.list_(pa.string())),  # evaluation sets that share a run of words with it
        ("signature", pa.binary(schema.SIGNATURE_BYTES)),
        *[field.with_nullable(True) for field in schema.SYNTHETIC],
    ]
)


def list_segments(out: Artifact, shard: int) -> list[str]:
    """The segments of a shard, in the order of their first samples."""
    return out.files(_folder(shard), ".parquet")


def _folder(shard: int) -> str:
    return f"segments/part-{shard:05d}"


def read_segments(out: Artifact, names: Sequence[str], columns: list[str]) -> Iterator[pa.Table]:
    """Some columns of each segment."""
    return map_in_threads(partial(out.read_table, columns=columns), names)


def remove_segments(out: Artifact, shard: int) -> None:
    """Those of a shard that is merged."""
    for name in list_segments(out, shard):
        out.fs.delete_file(out.path(name))


class DoneSamples:
    """Which samples of one shard are done."""

    def __init__(self, out: Artifact, shard: int, num_samples: int) -> None:
        self._out, self._shard = out, shard
        self._is_done = np.zeros(num_samples, bool)
        self.num_bad = 0
        """Samples that could not be written for good."""
        for segment in read_segments(out, list_segments(out, shard), ["number", "reason"]):
            self._mark(segment)

    def missing(self, start: int, stop: int) -> list[int]:
        """The numbers in a range that are not done."""
        return (start + np.flatnonzero(~self._is_done[start:stop])).tolist()

    def commit(self, rows: list[dict[str, Any]]) -> None:
        """Write a segment."""
        segment = pa.Table.from_pylist(rows, SEGMENT).sort_by("number")
        first = segment["number"][0].as_py()
        self._out.write_table(f"{_folder(self._shard)}/{first:08d}-{uuid.uuid4().hex[:8]}.parquet", segment)
        self._mark(segment)

    def _mark(self, segment: pa.Table) -> None:
        number_N = segment["number"].to_numpy()
        is_bad_N = np.isin(segment["reason"].to_numpy(zero_copy_only=False), BAD)
        self.num_bad += len(np.unique(number_N[is_bad_N & ~self._is_done[number_N]]))
        self._is_done[number_N] = True


def count_done(out: Artifact, shards: Sequence[int]) -> int:
    """Samples of unfinished shards that are done."""
    return sum(_count_done(out, names) for shard in shards if (names := list_segments(out, shard)))


def _count_done(out: Artifact, names: Sequence[str]) -> int:
    numbers = pa.concat_tables(read_segments(out, names, ["number"]))["number"]
    return pc.count_distinct(numbers).as_py()


def first_of_each(numbers: pa.ChunkedArray) -> NDArray[np.int64]:
    """Rows that hold each number for the first time, in the order of the numbers."""
    return np.unique(pc.cast(numbers, pa.int64()).to_numpy(), return_index=True)[1]
