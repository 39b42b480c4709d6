"""corpus -> embeddings: a unit vector for each document, and what pairing needs to know of its text"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EmbedConfig
from sbp_ray.embedder import Running, Tokenized, joined, load_embedder
from sbp_ray.errors import SbpError
from sbp_ray.schema import SIGNATURE_BYTES, SPLITS, Split, embedding_schema
from sbp_ray.shards import Stats, add_stats, map_shards, shard_name
from sbp_ray.text.hashing import hash64
from sbp_ray.text.minhash import document_signature

# N = documents, D = vector length

T = TypeVar("T")

_PIECE_ROWS = 256  # read and tokenised at once
_CHUNK_PIECES = 64  # batches are formed within a chunk: 16,384 documents, of which 5 % padding leaves large batches
_CHUNK_TOKENS = 1 << 23  # at 12 bytes, 100 MiB


def embed_corpus(cfg: EmbedConfig, *, corpus: Artifact, out: Artifact) -> Stats:
    """Embed both splits, shard by shard.

    Returns:
        Vector length; documents, embedded tokens, padding computed beside them and documents cut off, of each split;
        FLOPs, 2 for each parameter of the model and each token computed; the share of padding in all tokens computed;
        documents a second and worker.

    Raises:
        SbpError: a shard of the corpus is missing, the model cannot be loaded, gives a document no direction, or gives
            vectors of another length than those of the finished shards.
    """
    names = _corpus_shards(corpus)
    every = [name for split in SPLITS for name in names[split]]
    todo = [{"name": name} for name in every if not out.exists(name)]
    dim = _dim_made(out, every)
    num_done = len(every) - len(todo)
    map_shards("embed", ShardEmbedder, (cfg, corpus, out, dim), todo, num_done=num_done, resources=cfg.resources)
    by_split: dict[str, Stats] = {split: add_stats(out.read_stats(name) for name in names[split]) for split in SPLITS}
    total = add_stats(by_split.values())
    computed = total["tokens"] + total["padding_tokens"]
    return {
        "dim": _dim_made(out, every),
        "documents": total["documents"],
        "flops": total["flops"],
        "documents_per_s": round(total["documents"] / total["seconds"], 1) if total["seconds"] else 0.0,
        "padding_share": round(total["padding_tokens"] / computed, 4) if computed else 0.0,
        "drops": {},
        **by_split,
    }


def _corpus_shards(corpus: Artifact) -> dict[Split, list[str]]:
    """Names of the shards of each split; ingest writes as many of each, empty ones too."""
    there = {split: corpus.files(split, ".parquet") for split in SPLITS}
    manifest = corpus.manifest()
    num_shards = manifest["settings"]["ingest"]["num_shards"] if manifest else max(len(n) for n in there.values())
    names = {split: [shard_name(split, shard) for shard in range(num_shards)] for split in SPLITS}
    missing = [name for split in SPLITS for name in names[split] if name not in there[split]]
    if missing:
        raise SbpError(
            f"{corpus.url}: {missing[0]} is missing ({len(missing)} of {len(SPLITS) * num_shards} shards are): "
            "put it back, or use --redo ingest"
        )
    return names


def _dim_made(out: Artifact, names: list[str]) -> int | None:
    """Vector length of the finished shards; None when there is none yet."""
    first: tuple[str, int] | None = None
    for name in names:
        if out.exists(name):
            with out.fs.open_input_file(out.path(name)) as file:
                dim = pq.read_schema(file).field("vector").type.list_size
            first = first or (name, dim)
            if dim != first[1]:
                raise SbpError(
                    f"{out.url}: {name} has vectors of length {dim}, {first[0]} of {first[1]}: embed.model is not the "
                    "same on all nodes: mend that, and use --redo embed"
                )
    return first[1] if first else None


class Chunk(NamedTuple):
    """Some documents of a shard, ready for the model."""

    texts: Tokenized
    columns: pa.Table
    """All of their row but the vector."""


class ShardEmbedder:
    """Embeds one shard of one split."""

    def __init__(self, cfg: EmbedConfig, corpus: Artifact, out: Artifact, dim: int | None) -> None:
        self._corpus, self._out = corpus, out
        self._shingle_tokens = cfg.shingle_tokens
        self._embedder = load_embedder(cfg)
        if dim not in (None, self._embedder.dim):
            raise SbpError(
                f"embed.model={cfg.model} gives vectors of length {self._embedder.dim}, the finished shards of "
                f"{out.url} have {dim}: bring back the model that made them, or use --redo embed"
            )

    def __call__(self, item: dict[str, Any]) -> Stats:
        if self._out.exists(item["name"]):  # Ray repeats a task whose actor died after the commit
            return self._out.read_stats(item["name"])
        start_s = time.monotonic()
        schema = embedding_schema(self._embedder.dim)
        stats = {"documents": 0, "tokens": 0, "padding_tokens": 0, "truncated": 0, "flops": 0}
        tables = [schema.empty_table()]
        for chunk, running in self._started(item["name"]):
            vectors_ND, padding_tokens = running.result()
            _require_directions(chunk.columns.column("doc_id"), vectors_ND)
            stats["documents"] += len(vectors_ND)
            stats["tokens"] += int(chunk.texts.num_tokens_N.sum())
            stats["padding_tokens"] += padding_tokens
            computed = int(chunk.texts.num_tokens_N.sum()) + padding_tokens
            stats["flops"] += 2 * self._embedder.num_parameters * computed
            stats["truncated"] += int(chunk.texts.truncated_N.sum())
            columns = chunk.columns.add_column(1, schema.field("vector"), vector_array(vectors_ND))
            tables.append(columns.cast(schema))
        seconds = round(time.monotonic() - start_s, 3)
        self._out.write_table(item["name"], pa.concat_tables(tables), stats={**stats, "seconds": seconds})
        return stats

    def _started(self, name: str) -> Iterator[tuple[Chunk, Running]]:
        """The chunks of a shard; when one is yielded, the next is with the model and the one after it in the making."""
        before: tuple[Chunk, Running] | None = None
        for chunk in one_ahead(self._chunks(name)):
            running = self._embedder.start(chunk.texts)
            if before:
                yield before
            before = chunk, running
        if before:
            yield before

    def _chunks(self, name: str) -> Iterator[Chunk]:
        """Each twice as large as the one before, up to a limit: the model starts early, and never waits for long."""
        pieces: list[Chunk] = []
        wanted, num_tokens = 1, 0
        for piece in self._pieces(name):
            pieces.append(piece)
            num_tokens += int(piece.texts.num_tokens_N.sum())
            if len(pieces) >= wanted or num_tokens >= _CHUNK_TOKENS:
                yield _join(pieces)
                pieces, num_tokens = [], 0
                wanted = min(2 * wanted, _CHUNK_PIECES)
        if pieces:
            yield _join(pieces)

    def _pieces(self, name: str) -> Iterator[Chunk]:
        with self._corpus.fs.open_input_file(self._corpus.path(name)) as file:
            for rows in pq.ParquetFile(file).iter_batches(_PIECE_ROWS, columns=["doc_id", "group", "text"]):
                texts = rows.column("text").to_pylist()
                signed = [document_signature(text, self._shingle_tokens) for text in texts]
                columns = {
                    "doc_id": rows.column("doc_id"),
                    "signature": pa.array([made.tobytes() for made, _ in signed], pa.binary(SIGNATURE_BYTES)),
                    "num_shingles": pa.array([number for _, number in signed], pa.int32()),
                    "group_hash": pa.array(
                        [hash64("group", group) for group in rows.column("group").to_pylist()], pa.uint64()
                    ),
                }
                yield Chunk(self._embedder.tokenize(texts), pa.table(columns))


def _join(pieces: list[Chunk]) -> Chunk:
    return Chunk(joined([piece.texts for piece in pieces]), pa.concat_tables([piece.columns for piece in pieces]))


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items while a thread makes the next one; what it raises is raised here."""
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _require_directions(doc_ids: pa.ChunkedArray, vectors_ND: NDArray[np.float32]) -> None:
    bad_N = ~np.isfinite(vectors_ND).all(axis=1)
    if bad_N.any():
        doc_id = doc_ids[int(np.flatnonzero(bad_N)[0])].as_py().hex()
        raise SbpError(f"document {doc_id}: the embedder gives it no direction (a zero vector or NaN): try float32")


def vector_array(vectors_ND: NDArray[np.float32]) -> pa.Array:
    """As an Arrow column of float16 lists of fixed length."""
    values = pa.array(vectors_ND.astype(np.float16).ravel(), pa.float16())
    return pa.FixedSizeListArray.from_arrays(values, vectors_ND.shape[1])
