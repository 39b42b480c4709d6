"""Directed pairs of documents as columns of numbers: judged, each once, and capped without a loop over rows."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.config import PairConfig
from sbp_ray.doc_ids import numbers_to_ids, shards_of, to_column
from sbp_ray.schema import PAIR

# N = directed pairs; 2 = the two halves of a document's id, 64 bits each

CANDIDATE = pa.schema(
    [
        ("d1_high", pa.uint64()),
        ("d1_low", pa.uint64()),
        ("d2_high", pa.uint64()),
        ("d2_low", pa.uint64()),
        ("cosine", pa.float32()),
        ("jaccard", pa.float32()),
        ("same_group", pa.bool_()),
        ("is_listed", pa.bool_()),  # d2's list of neighbours names d1
    ]
)
RELATED = 0
REASONS = ("below_min_cosine", "above_max_cosine", "near_duplicate_jaccard", "near_duplicate_containment")


@dataclass(frozen=True)
class Candidates:
    """Columns of `CANDIDATE`; ids as the two numbers of `id_numbers`."""

    d1_N2: NDArray[np.uint64]
    d2_N2: NDArray[np.uint64]
    cosine_N: NDArray[np.float32]
    jaccard_N: NDArray[np.float32]
    same_group_N: NDArray[np.bool_]
    is_listed_N: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.cosine_N)

    def take(self, rows: NDArray) -> Candidates:
        """The chosen rows: numbers, or one bool for each."""
        return Candidates(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def turned(self, *, is_listed: bool) -> Candidates:
        """The other direction of each."""
        listed_N = np.full(len(self), is_listed)
        return Candidates(self.d2_N2, self.d1_N2, self.cosine_N, self.jaccard_N, self.same_group_N, listed_N)

    def shards_of_d1(self, num_shards: int) -> NDArray[np.int64]:
        """The shard of each d1."""
        return shards_of(numbers_to_ids(self.d1_N2), num_shards)

    def to_table(self) -> pa.Table:
        """Rows of `CANDIDATE`."""
        halves = [ids_N2[:, half] for ids_N2 in (self.d1_N2, self.d2_N2) for half in (0, 1)]
        numbers = [self.cosine_N, self.jaccard_N, self.same_group_N, self.is_listed_N]
        return pa.table([pa.array(np.ascontiguousarray(column)) for column in halves + numbers], schema=CANDIDATE)

    def to_pairs(self) -> pa.Table:
        """Rows of `PAIR`."""
        ids = [to_column(numbers_to_ids(ids_N2)) for ids_N2 in (self.d1_N2, self.d2_N2)]
        return pa.table([*ids, pa.array(self.cosine_N), pa.array(self.jaccard_N)], schema=PAIR)


def from_table(table: pa.Table) -> Candidates:
    """The inverse of `Candidates.to_table`."""
    d1_high, d1_low, d2_high, d2_low, *rest = (table.column(name).to_numpy() for name in CANDIDATE.names)
    return Candidates(np.stack([d1_high, d1_low], axis=1), np.stack([d2_high, d2_low], axis=1), *rest)


# Judging


def near_duplicates(
    jaccard_N: NDArray[np.float32], containment_N: NDArray[np.float32], cfg: PairConfig
) -> NDArray[np.int8]:
    """`RELATED`, or the number in `REASONS`, from 1, of the reason why two documents are too much alike."""
    against = [jaccard_N > np.float32(cfg.max_jaccard), containment_N > np.float32(cfg.max_containment)]
    return np.select(against, [np.int8(3), np.int8(4)], np.int8(RELATED))


def judge(cosine_N: NDArray[np.float32], duplicate_N: NDArray[np.int8], cfg: PairConfig) -> NDArray[np.int8]:
    """`near_duplicates`, with the band of cosines before it. The band's edges belong to it."""
    against = [cosine_N < np.float32(cfg.min_cosine), cosine_N > np.float32(cfg.max_cosine)]
    return np.select(against, [np.int8(1), np.int8(2)], duplicate_N)


def each_once(candidates: Candidates) -> Candidates:
    """In the order of the ids of d1, then of d2. A pair that both documents list is there twice before.

    Its cosines may differ in the last bit: the higher counts.
    """
    if len(candidates) == 0:
        return candidates
    found = candidates.take(np.lexsort((*candidates.d2_N2.T[::-1], *candidates.d1_N2.T[::-1])))
    starts = np.flatnonzero(_differs(found.d1_N2) | _differs(found.d2_N2))
    once = found.take(starts)
    return Candidates(
        once.d1_N2,
        once.d2_N2,
        np.maximum.reduceat(found.cosine_N, starts),
        once.jaccard_N,
        once.same_group_N,
        np.logical_or.reduceat(found.is_listed_N, starts),
    )


def ranked(candidates: Candidates) -> tuple[Candidates, NDArray[np.int64]]:
    """Most similar first for each d1, and the rank of each row among its d1's, from 0.

    Args:
        candidates: in the order of `each_once`; equally similar ones keep it.
    """
    owner_N = np.cumsum(_differs(candidates.d1_N2))
    found = candidates.take(np.lexsort((-candidates.cosine_N, owner_N)))
    starts = np.flatnonzero(_differs(found.d1_N2))
    lengths = np.diff(starts, append=len(found))
    return found, np.arange(len(found)) - np.repeat(starts, lengths)


def _differs(ids_N2: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """True where a run of equal ids starts."""
    is_start_N = np.ones(len(ids_N2), np.bool_)
    is_start_N[1:] = (ids_N2[1:] != ids_N2[:-1]).any(axis=1)
    return is_start_N
