"""Rows of examples on storage, written and read whole, as the tests of training want them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from sbp_ray.artifacts import Artifact
from sbp_ray.shards import Stats, shard_name
from sbp_ray.text.pair_format import Example
from sbp_ray.training.batches import Row
from sbp_ray.training.packed import PackedShard, write_shard
from sbp_ray.training.training_plan import rows_folder


def write_examples(
    out: Artifact, source: str, examples: Sequence[Example], seq_len: int, *, shard: int = 0, vocab_size: int = 320
) -> Stats:
    """Pack examples into a shard."""
    return write_shard(
        out,
        shard_name(rows_folder(source), shard),
        length_D=np.array([len(example.input_ids) for example in examples], np.int64),
        first_supervised_D=np.array([example.first_supervised for example in examples], np.int64),
        tokens_of=lambda number: examples[number].input_ids,
        seq_len=seq_len,
        vocab_size=vocab_size,
    )


def read_rows(
    out: Artifact, source: str, seq_len: int, *, shard: int = 0, rng: np.random.Generator | None = None
) -> list[Row]:
    """Every row of a shard, as it was written or packed anew."""
    packed = PackedShard(out, shard_name(rows_folder(source), shard), seq_len)
    plan, num_rows = packed.plan(rng), out.read_stats(shard_name(rows_folder(source), shard))["rows"]
    return [packed.read(plan, row) for row in range(num_rows)]


def documents_of(row: Row) -> list[tuple[list[int], list[bool]]]:
    """Token ids and loss mask of each document in a row."""
    columns = zip(row.document_ids_T.tolist(), row.input_ids_T.tolist(), row.loss_mask_T.tolist(), strict=True)
    groups = [(number, list(members)) for number, members in groupby(columns, key=lambda column: column[0])]
    return [([ids for _, ids, _ in members], [m for _, _, m in members]) for number, members in groups if number >= 0]
