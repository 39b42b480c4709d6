"""Documents' tokens, brought from the shards of the corpus to those that want them: two steps and two sets of buckets.

    wanted      whoever packs a shard: the ids of the documents that it lacks, each once, put into the bucket of the
                corpus shard that holds it (`write_wanted`)
    fetched     worker of a shard of the corpus: the tokens of the documents in its bucket, put into the bucket of the
                shard that wants them (`fetch_tokens`), which finds them there (`read_fetched`)

Each corpus shard is read once for it, however many shards there are.

Legend: D documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import bucket_writer, read_bucket
from sbp_ray.doc_ids import ids_to_numpy, shards_of
from sbp_ray.errors import SbpError
from sbp_ray.schema import DOC_ID, DOCUMENT
from sbp_ray.shards import Stats, list_shards, shard_name
from sbp_ray.steps import SCRATCH

_WANTED = pa.schema([("doc_id", DOC_ID)])
_FETCHED = pa.schema([("doc_id", DOC_ID), DOCUMENT.field("input_ids")])
_FETCH_TOKENS = 8 << 20
"""Tokens that are sent on at a time; they are held twice while they are written."""

Item = dict[str, Any]
"""A shard of a split: `split` and `shard`."""


def _folder(step: str, item: Item) -> str:
    return f"{SCRATCH}/{step}-{item['split']}"


def wanted_file(item: Item) -> str:
    """Of a shard that wants documents."""
    return shard_name(_folder("wanted", item), item["shard"])


def fetched_file(item: Item) -> str:
    """Of a shard of the corpus."""
    return shard_name(_folder("fetched", item), item["shard"])


def read_documents(item: Item, corpus: Artifact) -> pa.Table:
    """Ids and tokens of a shard of the corpus."""
    return corpus.read_table(shard_name(item["split"], item["shard"]), columns=["doc_id", "input_ids"])


def write_wanted(item: Item, doc_ids: pa.Array | pa.ChunkedArray, corpus: Artifact, out: Artifact) -> None:
    """Ask for documents on behalf of a shard."""
    ids = pc.unique(doc_ids)
    bucket_D = shards_of(ids_to_numpy(ids), len(list_shards(corpus, item["split"])))
    with bucket_writer(out, wanted_file(item), _WANTED) as writer:
        writer.write(pa.table([ids], schema=_WANTED), bucket_D)
        writer.finish({})


def read_fetched(item: Item, out: Artifact) -> pa.Table:
    """The documents that a shard asked for, in the order of the shards of the corpus."""
    return read_bucket(out, out.files(_folder("fetched", item)), item["shard"], _FETCHED)


def rows_of(doc_ids: pa.ChunkedArray, documents: pa.Table, corpus: Artifact) -> NDArray[np.int64]:
    """Where each document of the pairs lies in the table.

    Raises:
        SbpError: the corpus lacks one.
    """
    found = pc.index_in(doc_ids, value_set=documents["doc_id"].combine_chunks())
    if found.null_count:
        missing = pc.unique(doc_ids.filter(pc.is_null(found))).to_pylist()
        raise SbpError(
            f"{corpus.url} lacks {len(missing)} documents of the pairs, such as {min(missing).hex()}: redo pair"
        )
    return found.to_numpy().astype(np.int64)


def fetch_tokens(corpus: Artifact, out: Artifact, item: Item) -> Stats:
    """Send the documents of one shard of the corpus to the shards that want them."""
    files = out.files(_folder("wanted", item))
    wanted = read_bucket(out, files, item["shard"], _WANTED)  # lies in the order of the shards that ask
    documents = read_documents(item, corpus).combine_chunks()
    row_D = rows_of(wanted["doc_id"], documents, corpus)
    length_D = pc.list_value_length(documents["input_ids"]).to_numpy()[row_D]
    target_D = wanted["file"].to_numpy()
    with bucket_writer(out, fetched_file(item), _FETCHED) as writer:
        for start, end in _parts(length_D, _FETCH_TOKENS):
            writer.write(documents.take(pa.array(row_D[start:end])).cast(_FETCHED), target_D[start:end])
        writer.finish({})
    return {}


def _parts(length_D: NDArray[np.integer], num_tokens: int) -> Iterator[tuple[int, int]]:
    """Slices of so many tokens, or as much more as their last document has."""
    number_D = (np.cumsum(length_D) - length_D) // num_tokens
    edges = [0, *(np.flatnonzero(np.diff(number_D)) + 1).tolist(), len(length_D)]
    return ((start, end) for start, end in itertools.pairwise(edges) if end > start)
