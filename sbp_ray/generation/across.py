"""Copies across shards: the last step, once all shards are there.

Each shard keeps the signatures of its documents, and is compared with those of every shard before it, of which one is
in memory at a time. What is dropped follows from the documents alone: neither from which shard was finished first, nor
from what had been compared when a job died.

    signatures/part-00003.parquet   of each document that the shard's own merging kept
    compared/part-00003.json        the shard holds no copy of an earlier one's document any more
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.generation.ledger import part_name
from sbp_ray.generation.merging import COPY_OF_SYNTHETIC, compared_name, signatures, signatures_name
from sbp_ray.generation.sources import read_shard
from sbp_ray.shards import Stats
from sbp_ray.text.copies import copies_of_corpus


class ShardComparer:
    """Drops a shard's copies of documents of earlier shards."""

    def __init__(self, out: Artifact, max_jaccard: float) -> None:
        self._out, self._max_jaccard = out, max_jaccard

    def __call__(self, item: dict[str, int]) -> Stats:
        """`{shard}` -> the drops.

        Raises:
            SbpError: an earlier shard's signatures have gone.
        """
        shard = item["shard"]
        doc_ids, signature_MH = self._signed(shard)
        earlier = (self._signed(before) for before in range(shard))
        is_copy_M = copies_of_corpus(signature_MH, [b""] * len(doc_ids), earlier, self._max_jaccard)
        copies = [doc_ids[row] for row in np.flatnonzero(is_copy_M)]
        if copies:
            drop_documents(self._out, part_name(shard), copies)
        self._out.write_json(compared_name(shard), {"copies": len(copies)})
        return {"drops": {COPY_OF_SYNTHETIC: len(copies)}} if copies else {}

    def _signed(self, shard: int) -> tuple[list[bytes], NDArray[np.uint8]]:
        table = read_shard(self._out, signatures_name(shard), ["doc_id", "signature"])
        return table["doc_id"].to_pylist(), signatures(table["signature"])


def drop_documents(out: Artifact, name: str, doc_ids: Sequence[bytes]) -> None:
    """Write a part again without these documents, a group of rows at a time. One that has lost them stays as it is."""
    lost = pa.array(doc_ids, schema.DOC_ID)
    with out.fs.open_input_file(out.path(name)) as source:
        part = pq.ParquetFile(source)
        small = _row_groups(part, ["doc_id", "input_ids"])
        gone = pa.concat_tables([rows.filter(pc.is_in(rows["doc_id"], lost)) for rows in small])
        if not len(gone):
            return
        stats = _without(out.read_stats(name), gone)
        target = schema.SYNTHETIC.with_metadata({"stats": json.dumps(stats)})
        with out.writing(name) as stream, pq.ParquetWriter(stream, target, compression="zstd") as writer:
            for rows in _row_groups(part):
                writer.write_table(rows.filter(pc.invert(pc.is_in(rows["doc_id"], lost))).cast(target))


def _without(stats: Stats, gone: pa.Table) -> Stats:
    """A part's counts once these rows are dropped."""
    tokens = pc.sum(pc.list_value_length(gone["input_ids"])).as_py()
    drops = {**stats["drops"], COPY_OF_SYNTHETIC: stats["drops"].get(COPY_OF_SYNTHETIC, 0) + len(gone)}
    return {**stats, "documents": stats["documents"] - len(gone), "tokens": stats["tokens"] - tokens, "drops": drops}


def _row_groups(part: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[pa.Table]:
    return (part.read_row_group(group, columns) for group in range(part.num_row_groups))
