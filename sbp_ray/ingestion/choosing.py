"""Which documents a shard holds: each text once, by split, without those that an evaluation set shares, up to a number.

A document's split follows from the hash of its group, or from its own, and whether it is kept from the slot of its id:
a worker decides both for its own shard. Only a limit for each is agreed on before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import read_bucket
from sbp_ray.doc_ids import id_numbers, ids_to_numpy
from sbp_ray.ingestion.parsing import PARSED
from sbp_ray.schema import Split
from sbp_ray.steps import SCRATCH
from sbp_ray.text.contamination import EvaluationNgrams
from sbp_ray.text.hashing import id_ranks

NUM_SLOTS = 65_536
"""Slots of ids. With so many, the documents to keep are chosen without one process that holds all ids."""
HASHES_KEPT = 1024
"""Hashes of each split's groups that are kept to estimate how many groups there are."""
EXAMPLES = 3
"""Of what is dropped for a reason."""
_HEAD_CHARS = 120
PIECE_ROWS = 1000
PIECE_BYTES = 1 << 20
"""Texts that are worked on at a time: to tokenise or to hash a byte takes some 50."""


class TrainRange(NamedTuple):
    """What has a hash in here is trained on; lower ones are the validation split, higher ones the development split."""

    first: int
    last: int

    def of(self, split: Split) -> tuple[int, int]:
        """The hashes of a split, from the first up to and without the second."""
        return {
            "validation": (0, self.first),
            "train": (self.first, self.last + 1),
            "development": (self.last + 1, 2**64),
        }[split]


class Dropped(NamedTuple):
    """Documents that are left out for one reason."""

    number: int
    examples: list[str]
    """How the first of them begin."""

    @classmethod
    def of(cls, table: pa.Table, rows_N: np.ndarray) -> Dropped:
        heads = pc.utf8_slice_codeunits(table.column("text").take(pa.array(rows_N[:EXAMPLES])), 0, 2 * _HEAD_CHARS)
        lines = [" ".join(head.split()) for head in heads.to_pylist()]
        return cls(len(rows_N), [line[:_HEAD_CHARS] + " …" * (len(line) > _HEAD_CHARS) for line in lines])


def train_range(validation_share: float, development_share: float, low: int, high: int) -> TrainRange:
    """The shares are of groups or of documents, but of two or more at least one is held out, and not all.

    Args:
        low: smallest hash of a group, or of a document.
        high: largest hash.
    """
    if low == high:
        return TrainRange(0, 2**64 - 1)
    first = min(max(int(validation_share * 2**64), low + 1), high) if validation_share else 0
    last = max(min(int((1 - development_share) * 2**64), high - 1), low) if development_share else 2**64 - 1
    return TrainRange(first, last)


def slots_of(documents: pa.Table) -> np.ndarray:
    """The slot of each document's id, int64 [N]: uniform, and independent of its shard and its group."""
    ranks_N = id_ranks("max_documents", 0, id_numbers(ids_to_numpy(documents["doc_id"])))
    return (ranks_N // np.uint64(2**64 // NUM_SLOTS)).astype(np.int64)


def keep_slots(documents: pa.Table, num_slots: int) -> pa.Table:
    """The documents in the first slots."""
    return documents if num_slots == NUM_SLOTS else documents.filter(pa.array(slots_of(documents) < num_slots))


def gather_shard(out: Artifact, shard: int, trained: TrainRange) -> tuple[dict[Split, pa.Table], dict[Split, Dropped]]:
    """A shard's documents by split, sorted by id, and the exact duplicates that each split lost.

    Of equal texts the first stays: by file, then by line. Which split the others were of does not matter, so that no
    text is in two.
    """
    table = read_bucket(out, out.files(SCRATCH, ".parquet"), shard, PARSED)
    ids = ids_to_numpy(table["doc_id"])
    order = np.argsort(ids, kind="stable")  # stable: the first of equals comes first
    is_first = np.ones(len(order), bool)
    is_first[1:] = ids[order][1:] != ids[order][:-1]
    hashes = table.column("split_hash").to_numpy()[order]
    masks: dict[Split, np.ndarray] = {"validation": hashes < trained.first, "development": hashes > trained.last}
    masks["train"] = ~(masks["validation"] | masks["development"])
    documents: dict[Split, pa.Table] = {}
    duplicates: dict[Split, Dropped] = {}
    for split, in_split in masks.items():
        documents[split] = table.take(pa.array(order[in_split & is_first]))
        duplicates[split] = Dropped.of(table, order[in_split & ~is_first])
    return documents, duplicates


def text_pieces(table: pa.Table) -> Iterator[tuple[int, list[str]]]:
    """The texts of some rows at a time, so few that they fit in memory however long they are, with their first row."""
    sizes_N = pc.binary_length(table.column("text")).to_numpy()
    start = num_bytes = 0
    for row, size in enumerate(sizes_N.tolist()):
        if row > start and (num_bytes + size > PIECE_BYTES or row - start == PIECE_ROWS):
            yield start, table.column("text").slice(start, row - start).to_pylist()
            start, num_bytes = row, 0
        num_bytes += size
    if start < len(table):
        yield start, table.column("text").slice(start).to_pylist()


def drop_contaminated(table: pa.Table, ngrams: EvaluationNgrams) -> tuple[pa.Table, Dropped, Counter[str]]:
    """The rows that share no n-gram with an evaluation set; the others, and how many of them share one with each."""
    hits: dict[int, tuple[str, ...]] = {}
    for start, texts in text_pieces(table) if ngrams.num_ngrams else ():
        hits |= {start + row: names for row, names in ngrams.find(texts).items()}
    dropped = Dropped.of(table, np.array([*hits], np.int64))
    if hits:
        table = table.take(pa.array(np.setdiff1d(np.arange(len(table)), list(hits))))
    return table, dropped, Counter(name for names in hits.values() for name in names)


def estimate_distinct(smallest: list[int], low: int, high: int) -> int:
    """How many distinct hashes there are, from the smallest ones: exact below 1,024, within some 3 % above.

    Args:
        smallest: the smallest `HASHES_KEPT` of them, sorted, or all where they are fewer.
        low: the hashes are uniform from here on,
        high: and below this. The split is a cut through the hashes, so neither split's fill all 64 bits.
    """
    if len(smallest) < HASHES_KEPT:
        return len(smallest)
    return round((HASHES_KEPT - 1) * (high - low) / (smallest[-1] - low))
