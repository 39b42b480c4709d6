"""pairs, corpus -> packed rows of pairs: each pair joined to the tokens of its two documents.

    wanted      worker of a shard of pairs: the ids of its d2, each once, put into the bucket of the corpus shard that
                holds it
    fetched     worker of a shard of the corpus: the tokens of the documents in its bucket, put into the bucket of the
                shard of pairs that wants them
    rows        worker of a shard of pairs: its d2 from all buckets, its d1 from the corpus shard of the same number

Each corpus shard is read twice, however many there are, and each file that a worker commits is not made again. A worker
holds a shard of documents, or the ids of a shard's pairs and the tokens of their documents.

Not `ray.data.Dataset.join`: its shuffle would put the tokens of both documents of every pair into the object store
(60 M pairs of 4,096 tokens each: 2 TB), and begin anew when the driver dies.

Legend: N pairs, D documents, T tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import bucket_writer, read_bucket
from sbp_ray.config import TuneConfig
from sbp_ray.doc_ids import id_numbers, ids_to_numpy, shards_of
from sbp_ray.errors import SbpError
from sbp_ray.schema import DOC_ID, DOCUMENT, Split
from sbp_ray.shards import SCRATCH, Stats, Step, remove_scratch, run_steps, shard_name, splits_of
from sbp_ray.text.hashing import id_ranks
from sbp_ray.text.packing import best_fit
from sbp_ray.text.pair_format import DOCUMENT_MARKS, PAIR_MARKS, document_example, pair_example
from sbp_ray.text.tokenizer import SpecialIds
from sbp_ray.training.packed import TokenLists, packing_resources, write_shard
from sbp_ray.training.training_plan import rows_folder

SOURCES: dict[Split, str] = {"train": "pairs", "validation": "validation", "development": "development"}
"""What the packed rows of a split's pairs are called."""
WANTED = pa.schema([("doc_id", DOC_ID)])
FETCHED = pa.schema([("doc_id", DOC_ID), DOCUMENT.field("input_ids")])
UNREAD = "beyond_num_epochs"
"""Why pairs are not packed that no step would read."""
PAIR_ROWS = "pair_rows"
"""Rows that the pairs would take, of a shard whose d2 are packed without their d1."""
_NO_PAIR = 2**62
"""`shortest_pair` of a shard without pairs."""
_FETCH_TOKENS = 8 << 20
"""Tokens that are sent on at a time; they are held twice while they are written."""


def pack_pairs(
    cfg: TuneConfig, *, corpus: Artifact, pairs: Artifact, special: SpecialIds, vocab_size: int, out: Artifact
) -> None:
    """Commit the rows of both splits' pairs, a shard for each shard of pairs, under `rows/`.

    Where `cfg.num_epochs` is less than 1, no more train pairs than it reads.

    Raises:
        SbpError: the corpus lacks a document of the pairs.
    """
    splits = splits_of(pairs)
    items = [
        {"split": split, "shard": shard} for split in splits for shard in range(len(pairs.files(split, ".parquet")))
    ]
    there = {name for split in splits for name in out.files(_folder("rows", split), ".parquet")}
    if not there.issuperset(_file("rows", item) for item in items):
        reads = [(made, split) for made in (corpus, pairs) for split in splits]
        arguments = (cfg, special, vocab_size, corpus, pairs, out)
        steps = [
            Step(f"tune-{name}", worker, arguments, items, partial(_file, name), reads=reads)
            for name, worker in (("wanted", WantLister), ("fetched", TokenFetcher), ("rows", PairPacker))
        ]
        run_steps(out, steps, packing_resources(cfg.resources))
    remove_scratch(out)


def _folder(step: str, split: Split) -> str:
    return rows_folder(SOURCES[split]) if step == "rows" else f"{SCRATCH}/{step}-{split}"


def _file(step: str, item: dict[str, Any]) -> str:
    return shard_name(_folder(step, item["split"]), item["shard"])


class _Worker:
    """What the three steps have in common."""

    def __init__(
        self,
        cfg: TuneConfig,
        special: SpecialIds,
        vocab_size: int,
        corpus: Artifact,
        pairs: Artifact,
        out: Artifact,
    ) -> None:
        self._cfg, self._special, self._vocab_size = cfg, special, vocab_size
        self._corpus, self._pairs, self._out = corpus, pairs, out

    def _bucket(self, step: str, split: Split, shard: int, schema: pa.Schema) -> pa.Table:
        return read_bucket(self._out, self._out.files(_folder(step, split)), shard, schema)

    def _read_pairs(self, split: Split, shard: int, columns: list[str]) -> tuple[pa.Table, int]:
        """The pairs that are read, and how many there are. Held-out pairs are read all."""
        table = self._pairs.read_table(shard_name(split, shard), columns=["d1_id", "d2_id"])
        if split == "train" and self._cfg.num_epochs < 1:
            return table.filter(pa.array(choose_pairs(table, self._cfg.num_epochs))).select(columns), len(table)
        return table.select(columns), len(table)

    def _documents(self, split: Split, shard: int) -> pa.Table:
        return self._corpus.read_table(shard_name(split, shard), columns=["doc_id", "input_ids"])

    def _rows_of(self, doc_ids: pa.ChunkedArray, documents: pa.Table) -> NDArray[np.int64]:
        """Where each document lies in the table."""
        found = pc.index_in(doc_ids, value_set=documents["doc_id"].combine_chunks())
        if found.null_count:
            missing = pc.unique(doc_ids.filter(pc.is_null(found))).to_pylist()
            example = min(missing).hex()
            raise SbpError(
                f"{self._corpus.url} lacks {len(missing)} documents of the pairs, such as {example}: redo pair"
            )
        return found.to_numpy().astype(np.int64)


class WantLister(_Worker):
    """Tells each shard of the corpus which of its documents are d2 in one shard of pairs."""

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard = item["split"], item["shard"]
        ids = pc.unique(self._read_pairs(split, shard, ["d2_id"])[0]["d2_id"])
        num_shards = len(self._corpus.files(split, ".parquet"))
        bucket_D = shards_of(ids_to_numpy(ids), num_shards)
        with bucket_writer(self._out, shard_name(_folder("wanted", split), shard), WANTED) as writer:
            writer.write(pa.table([ids], schema=WANTED), bucket_D)
            writer.finish({})
        return {}


class TokenFetcher(_Worker):
    """Sends the documents of one shard of the corpus to the shards of pairs that want them."""

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard = item["split"], item["shard"]
        wanted = self._bucket("wanted", split, shard, WANTED)  # lies in the order of the shards of pairs
        documents = self._documents(split, shard).combine_chunks()
        row_D = self._rows_of(wanted["doc_id"], documents)
        length_D = pc.list_value_length(documents["input_ids"]).to_numpy()[row_D]
        target_D = wanted["file"].to_numpy()
        with bucket_writer(self._out, shard_name(_folder("fetched", split), shard), FETCHED) as writer:
            for start, end in _parts(length_D, _FETCH_TOKENS):
                writer.write(documents.take(pa.array(row_D[start:end])).cast(FETCHED), target_D[start:end])
            writer.finish({})
        return {}


def _parts(length_D: NDArray[np.integer], num_tokens: int) -> Iterator[tuple[int, int]]:
    """Slices of so many tokens, or as much more as their last document has."""
    number_D = (np.cumsum(length_D) - length_D) // num_tokens
    edges = [0, *(np.flatnonzero(np.diff(number_D)) + 1).tolist(), len(length_D)]
    return ((start, end) for start, end in itertools.pairwise(edges) if end > start)


class PairPacker(_Worker):
    """Packs the pairs of one shard."""

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard = item["split"], item["shard"]
        table, num_pairs = self._read_pairs(split, shard, ["d1_id", "d2_id"])
        documents, fetched = self._documents(split, shard), self._bucket("fetched", split, shard, FETCHED)
        d1 = TokenLists(documents["input_ids"], self._rows_of(table["d1_id"], documents))
        d2 = TokenLists(fetched["input_ids"], self._rows_of(table["d2_id"], fetched))
        length_N = d1.length_D + d2.length_D + PAIR_MARKS
        _, longest = self._cfg.longest_document()
        kept = np.flatnonzero((length_N <= longest) & (d2.length_D > 0))
        drops = {"too_long": len(table) - len(kept), UNREAD: num_pairs - len(table)}
        counts: Stats = {"pairs": num_pairs, "shortest_pair": int(length_N.min(initial=_NO_PAIR)), "drops": drops}
        is_alone = self._cfg.condition == "none"
        if is_alone:
            counts[PAIR_ROWS] = len(best_fit(length_N[kept], self._cfg.seq_len).ends_R)

        def tokens_of(number: int) -> NDArray[np.int32]:
            d2_ids = d2.of(kept[number])
            if is_alone:
                return document_example(d2_ids, self._special).input_ids
            return pair_example(d1.of(kept[number]), d2_ids, self._special).input_ids

        write_shard(
            self._out,
            shard_name(_folder("rows", split), shard),
            length_D=d2.length_D[kept] + DOCUMENT_MARKS if is_alone else length_N[kept],
            first_supervised_D=np.ones_like(kept) if is_alone else d1.length_D[kept] + 2,
            tokens_of=tokens_of,
            seq_len=self._cfg.seq_len,
            vocab_size=self._vocab_size,
            counts=counts,
        )
        return {"documents": num_pairs, "drops": drops}


def choose_pairs(table: pa.Table, share: float) -> NDArray[np.bool_]:
    """About this share of the pairs, by a hash of their two ids: the same ones whenever asked, and more for more."""
    ids = (id_numbers(ids_to_numpy(table[column])) for column in ("d1_id", "d2_id"))
    return (id_ranks("tuning pairs", 0, *ids) >> np.uint64(11)) * 2.0**-53 < share
