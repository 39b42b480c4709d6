"""Near-copies across the split: held-out documents of whose runs of words too many stand in train documents.

    sketch      worker of a shard: some runs of each document, by their hashes, each into the bucket of its hash
    compare     worker of a bucket: which held-out runs are also a train document's, each into the bucket of its shard

`ShardMaker` then reads what its shard's documents share (`shared_with_train`), and drops by that. No two documents are
compared: a run that thousands of pages have in common costs each of them once. All documents of the train split count,
also those that `max_train_documents` leaves out: corpora of several sizes are measured on the same documents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import bucket_writer, read_bucket
from sbp_ray.ingestion.choosing import TrainRange, gather_shard, text_pieces
from sbp_ray.schema import Split
from sbp_ray.shards import Stats
from sbp_ray.steps import SCRATCH
from sbp_ray.text.shingles import shingle_hashes
from sbp_ray.text.words import word_ids

# S = runs of words, N = documents

HELD_OUT: tuple[Split, ...] = ("validation", "development")
_RUN_WORDS = 13
"""Texts about one subject share hardly any run of so many words: see docs/pairs.md."""
_HELD_OUT_RUNS = 64
"""Of a held-out document: a share of them has a standard error of 0.06 at most."""
_TRAIN_RUNS = 256
"""Of a train document. Both take the runs with the smallest hashes, so what a document shares with one three times as
long is found; of what it shares with one eight times as long, half."""
_TRAIN = 255  # split of a run

RUN = pa.schema([("hash", pa.uint64()), ("split", pa.uint8()), ("row", pa.int64())])
SHARED = pa.schema([("split", pa.uint8()), ("row", pa.int64()), ("is_in_train", pa.bool_())])


def sketch_file(shard: int) -> str:
    """Runs of a shard's documents, in a bucket for each part of the hashes."""
    return f"{SCRATCH}/runs/part-{shard:05d}.arrow"


def shared_file(bucket: int) -> str:
    """Which held-out runs of a bucket are in the train split, in a bucket for each shard."""
    return f"{SCRATCH}/shared/part-{bucket:05d}.arrow"


def smallest_hashes(text: str, number: int) -> NDArray[np.uint64]:
    """uint64[S], the text's smallest hashes of runs of words, sorted."""
    return shingle_hashes(word_ids(text), _RUN_WORDS)[:number]


def sketch_runs(out: Artifact, trained: TrainRange, num_shards: int, item: dict[str, Any]) -> Stats:
    """Write some runs of the documents of one shard."""
    documents, _ = gather_shard(out, item["shard"], trained)
    with bucket_writer(out, sketch_file(item["shard"]), RUN) as writer:
        for split, table in documents.items():
            number, most = (_TRAIN, _TRAIN_RUNS) if split == "train" else (HELD_OUT.index(split), _HELD_OUT_RUNS)
            for start, texts in text_pieces(table):
                runs = [smallest_hashes(text, most) for text in texts]
                hash_S = np.concatenate(runs)
                row_S = np.repeat(item["shard"] << 32 | np.arange(start, start + len(texts)), [*map(len, runs)])
                columns = [pa.array(hash_S), pa.array(np.full(len(hash_S), number, np.uint8)), pa.array(row_S)]
                bucket_S = (hash_S % np.uint64(num_shards)).astype(np.int64)
                writer.write(pa.table(columns, schema=RUN), bucket_S)
        writer.finish({})
    return {}


def compare_runs(out: Artifact, num_shards: int, item: dict[str, Any]) -> Stats:
    """Find the held-out runs of one bucket among those of the train split."""
    table = read_bucket(out, [sketch_file(shard) for shard in range(num_shards)], item["shard"], RUN)
    hash_S, split_S, row_S = (table[name].to_numpy() for name in RUN.names)
    is_held_out_S = split_S != _TRAIN
    is_in_train_S = np.isin(hash_S[is_held_out_S], hash_S[~is_held_out_S])
    split_S, row_S = split_S[is_held_out_S], row_S[is_held_out_S]
    columns = [pa.array(split_S), pa.array(row_S & 0xFFFFFFFF), pa.array(is_in_train_S)]
    with bucket_writer(out, shared_file(item["shard"]), SHARED) as writer:
        writer.write(pa.table(columns, schema=SHARED), row_S >> 32)
        writer.finish({})
    return {}


def shared_with_train(out: Artifact, shard: int, num_shards: int, split: Split, num_rows: int) -> NDArray[np.float64]:
    """float64[N]: of each held-out document of a shard, the share of its runs that a train document has."""
    table = read_bucket(out, [shared_file(bucket) for bucket in range(num_shards)], shard, SHARED)
    table = table.filter(pa.array(table["split"].to_numpy() == HELD_OUT.index(split)))
    row_S, is_in_train_S = table["row"].to_numpy(), table["is_in_train"].to_numpy()
    num_runs_N = np.bincount(row_S, minlength=num_rows)
    return np.bincount(row_S, is_in_train_S, minlength=num_rows) / np.maximum(1, num_runs_N)
