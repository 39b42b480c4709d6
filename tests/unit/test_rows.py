"""Which bytes a rank reads, and that what it reads depends on nothing but the number of the row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from packed_rows import documents_of, write_examples

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PretrainConfig
from sbp_ray.mixing import Address, Mixture
from sbp_ray.schema import PACKED_DOCUMENT
from sbp_ray.text.pair_format import Example
from sbp_ray.training.packed import PackedShard, read_packed
from sbp_ray.training.rows import RowReader, assign_rows

CONFIG = PretrainConfig(seq_len=32, batch_rows=4, total_tokens=1, peak_lr=1.0)
NUM_SHARDS = 2


@pytest.fixture
def out(new_artifact: Callable[[str], Artifact]) -> Artifact:
    """Two shards of 60 documents, each of one token of its own."""
    made = new_artifact("lm")
    rng = np.random.default_rng(0)
    for shard in range(NUM_SHARDS):
        lengths = rng.integers(2, 29, 60)
        examples = [Example(np.full(n, 60 * shard + i, np.int32), 1) for i, n in enumerate(lengths)]
        write_examples(made, "real", examples, 32, shard=shard)
    return made


def an_epoch(out: Artifact, epoch: int, cfg: PretrainConfig) -> list[Any]:
    reader = RowReader(out, cfg)
    shard_rows = read_packed(out, "real").source.shard_rows
    return [reader.row(Address("real", epoch, shard, n)) for shard, rows in enumerate(shard_rows) for n in range(rows)]


def who_shares_a_row(out: Artifact, epoch: int, cfg: PretrainConfig) -> set[frozenset[int]]:
    return {frozenset(ids[0] for ids, _ in documents_of(row)) for row in an_epoch(out, epoch, cfg)}


def test_each_epoch_has_every_document_once_and_its_rows_are_others(out: Artifact) -> None:
    epochs = [who_shares_a_row(out, epoch, CONFIG) for epoch in range(4)]
    for rows in epochs:
        assert sorted(document for row in rows for document in row) == list(range(60 * NUM_SHARDS))
    for number, rows in enumerate(epochs):
        shared = {row for row in rows if len(row) > 1}  # not of one document, which fills it
        assert all(len(shared & earlier) < len(shared) / 2 for earlier in epochs[:number])  # about a fifth, of so few


def test_without_repacking_the_rows_of_every_epoch_are_the_same(out: Artifact) -> None:
    cfg = CONFIG.model_copy(update={"repack": False})
    assert who_shares_a_row(out, 3, cfg) == who_shares_a_row(out, 0, cfg) == who_shares_a_row(out, 0, CONFIG)


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_any_number_of_ranks_reads_the_same_batches(out: Artifact, num_ranks: int) -> None:
    mixture = Mixture(read_packed(out, "real").source, None, 40 * 4, 0, 0)  # several epochs
    alone, readers = RowReader(out, CONFIG), [RowReader(out, CONFIG) for _ in range(num_ranks)]
    for step in (1, 40, 17):  # as one that resumes would, in any order
        whole = alone.batch(assign_rows(mixture, step, 4, 0, 1))
        parts = [reader.batch(assign_rows(mixture, step, 4, n, num_ranks)) for n, reader in enumerate(readers)]
        rows = {a: ids for part in parts for a, ids in zip(part.addresses, part.input_ids_BT.tolist(), strict=True)}
        assert [rows[address] for address in whole.addresses] == whole.input_ids_BT.tolist()
        assert sum(part.num_supervised for part in parts) == whole.num_supervised


def test_of_a_shard_of_more_than_2_to_the_31_tokens_a_row_is_read_and_no_more(
    new_artifact: Callable[[str], Artifact],
) -> None:
    """A sparse file: 2,100 rows of 2**20 tokens, of which only the last is written."""
    out, seq_len, num_rows = new_artifact("synthesizer"), 2**20, 2100
    assert num_rows * seq_len > 2**31
    columns = [np.full(num_rows, seq_len), np.full(num_rows, seq_len - 3), np.arange(num_rows)]
    schema = PACKED_DOCUMENT.with_metadata({"dtype": "uint16"})
    index = pa.table([pa.array(column, pa.int32()) for column in columns], schema=schema)
    out.write_table("rows/pairs/part-00000.parquet", index, {"rows": num_rows})
    with open(out.path("rows/pairs/part-00000.bin"), "wb") as file:
        file.seek(2 * ((num_rows - 1) * seq_len + seq_len - 3))
        file.write(np.array([7, 8, 9], np.uint16).tobytes())
    shard = PackedShard(out, "rows/pairs/part-00000.parquet", seq_len)
    plan, before = shard.plan(None), bytes_read()
    row = shard.read(plan, num_rows - 1)
    assert 2 * seq_len <= bytes_read() - before < 2.01 * seq_len  # its own tokens, and no others
    assert row.input_ids_T[-4:].tolist() == [0, 7, 8, 9]
    assert row.loss_mask_T.nonzero()[0].tolist() == [seq_len - 3, seq_len - 2, seq_len - 1]


def bytes_read() -> int:
    """By this process so far, from whatever file."""
    [line] = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")]
    return int(line.split()[1])
