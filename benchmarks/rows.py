"""How fast one rank gets its rows, beside rows as Parquet lists of which a rank decodes whole shards; bytes on disk.

    python benchmarks/rows.py [--quick]

Documents have the lengths of web text and a vocabulary of 32,768. One rank out of 1, 8 and 64 reads what it trains on
in one pass over all shards, as batches: in the first epoch, and in a later one, whose rows are packed anew. Files are
in the page cache, for both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import alternate, emit

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PretrainConfig
from sbp_ray.mixing import Address, Mixture
from sbp_ray.shards import shard_name
from sbp_ray.training.batches import Row, make_batch, make_blank_row
from sbp_ray.training.packed import PackedShard, read_packed, write_shard
from sbp_ray.training.rows import RowReader, assign_rows
from sbp_ray.training.training_plan import rows_folder

SEQ_LEN = 4096
BATCH_ROWS = 64
VOCAB_SIZE = 32_768
SOURCE = "real"
PEER = "Parquet lists, whole shards"


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints one line of JSON for each case.")
    parser.add_argument("--quick", action="store_true", help="less text")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--documents", type=int, default=10_000, help="of each shard")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shards, arguments.documents, arguments.rounds = 2, 1000, 2
    with tempfile.TemporaryDirectory() as folder:
        out = Artifact("lm", folder)
        for shard in range(arguments.shards):
            write_both(out, shard, arguments.documents)
        compare_bytes(out)
        for num_ranks in (1, 8, 64):
            compare_speed(out, num_ranks, arguments.rounds)


def write_both(out: Artifact, shard: int, num_documents: int) -> None:
    """A shard of invented documents in our format, and the same rows in the peer's."""
    rng = np.random.default_rng(shard)
    length_D = np.clip(rng.lognormal(np.log(828) - 0.5, 1.0, num_documents), 8, 8 * SEQ_LEN).astype(np.int64)
    start_D = np.cumsum(length_D) - length_D
    ids = (rng.zipf(1.2, length_D.sum()) % VOCAB_SIZE).astype(np.int32)  # few words are most of any text
    name = shard_name(rows_folder(SOURCE), shard)
    write_shard(
        out,
        name,
        length_D=length_D,
        first_supervised_D=np.ones_like(length_D),
        tokens_of=lambda document: ids[start_D[document] :][: length_D[document]],
        seq_len=SEQ_LEN,
        vocab_size=VOCAB_SIZE,
        is_repeated=True,
    )
    packed = PackedShard(out, name, SEQ_LEN)
    plan = packed.plan(None)
    rows = [packed.read(plan, row) for row in range(len(plan.ends_R))]
    types = {"input_ids_T": pa.int32(), "loss_mask_T": pa.bool_(), "document_ids_T": pa.int32()}
    lists = {column: pa.array([getattr(row, column) for row in rows], pa.list_(kind)) for column, kind in types.items()}
    Path(out.path("lists")).mkdir(exist_ok=True)
    pq.write_table(pa.table(lists), out.path(shard_name("lists", shard)), compression="zstd")


class ListReader:
    """The peer: keeps the shard that was asked for last, decoded."""

    def __init__(self, out: Artifact) -> None:
        self._out, self._shard, self._columns = out, -1, [np.empty(0)]

    def row(self, address: Address) -> Row:
        if address.shard != self._shard:
            self._columns = [np.empty(0)]  # the old one goes before the new one comes
            table = pq.read_table(self._out.path(shard_name("lists", address.shard)))
            lists = [column.combine_chunks().flatten() for column in table.columns]
            self._columns = [values.to_numpy(zero_copy_only=False).reshape(-1, SEQ_LEN) for values in lists]
            self._shard = address.shard
        ids_T, mask_T, documents_T = (column[address.position] for column in self._columns)
        return Row(ids_T.astype(np.int64), mask_T, documents_T.astype(np.int64))


def compare_bytes(out: Artifact) -> None:
    """Disk space of a position, padding counted as one."""
    positions = read_packed(out, SOURCE).source.num_rows * SEQ_LEN
    ours, index, lists = (
        sum(path.stat().st_size for path in Path(out.path()).glob(pattern)) / positions
        for pattern in (f"{rows_folder(SOURCE)}/*", f"{rows_folder(SOURCE)}/*.parquet", "lists/*")
    )
    emit(
        "rows", f"on disk, of which index {index:.3f}", "size", "B/position", ours, PEER, lists, higher_is_better=False
    )


def compare_speed(out: Artifact, num_ranks: int, rounds: int) -> None:
    """One pass of one rank, as the training reads it."""
    cfg = PretrainConfig(seq_len=SEQ_LEN, batch_rows=BATCH_ROWS, total_tokens=1, peak_lr=1.0)
    source = read_packed(out, SOURCE).source
    steps_a_pass = source.num_rows // BATCH_ROWS
    mixture = Mixture(source, None, 3 * source.num_rows, 0, 0)

    def a_pass(epoch: int, make_reader: Callable[[], RowReader | ListReader]) -> float:
        """Rows a second."""
        reader, blank, num_rows = make_reader(), make_blank_row(SEQ_LEN), 0
        start = time.perf_counter()
        first = -(-epoch * source.num_rows // BATCH_ROWS) + 1
        for step in range(first, first + steps_a_pass):
            addresses = assign_rows(mixture, step, BATCH_ROWS, 0, num_ranks)
            make_batch(addresses, [blank if a is None else reader.row(a) for a in addresses])
            num_rows += len(addresses)
        return num_rows / (time.perf_counter() - start)

    cases = {
        "as written": partial(a_pass, 0, lambda: RowReader(out, cfg)),
        "packed anew": partial(a_pass, 1, lambda: RowReader(out, cfg)),
        PEER: partial(a_pass, 0, lambda: ListReader(out)),
    }
    median = {name: statistics.median(values) for name, values in alternate(cases, rounds).items()}
    for name in ("as written", "packed anew"):
        what = f"one rank of {num_ranks}, rows of {SEQ_LEN}, {name}"
        emit("rows", what, "rows read", "1/s", median[name], PEER, median[PEER], higher_is_better=True)


if __name__ == "__main__":
    main()
