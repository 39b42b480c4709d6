"""corpus -> embeddings: a unit vector for each document"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EmbedConfig
from sbp_ray.embedder import load_embedder
from sbp_ray.errors import SbpError
from sbp_ray.schema import SPLITS, embedding_schema
from sbp_ray.shards import Stats, add_stats, map_shards

# N = documents, D = vector length

_CHUNK_ROWS = 4096  # sorted by length among themselves


def embed_corpus(cfg: EmbedConfig, *, corpus: Artifact, out: Artifact) -> Stats:
    """Embed both splits, shard by shard.

    Returns:
        Vector length; documents, embedded tokens and documents cut off, of each split; documents a second and worker.

    Raises:
        SbpError: the model cannot be loaded, or gives a document no direction.
    """
    names = {split: corpus.files(split, ".parquet") for split in SPLITS}
    every = [name for split in SPLITS for name in names[split]]
    todo = [{"name": name} for name in every if not out.exists(name)]
    map_shards(
        "embed", ShardEmbedder, (cfg, corpus, out), todo, num_done=len(every) - len(todo), resources=cfg.resources
    )
    by_split: dict[str, Stats] = {split: add_stats(out.read_stats(name) for name in names[split]) for split in SPLITS}
    total = add_stats(by_split.values())
    return {
        "dim": out.read_table(every[0]).schema.field("vector").type.list_size,
        "documents": total["documents"],
        "documents_per_s": round(total["documents"] / total["seconds"], 1) if total["seconds"] else 0.0,
        "drops": {},
        **by_split,
    }


class ShardEmbedder:
    """Embeds one shard of one split."""

    def __init__(self, cfg: EmbedConfig, corpus: Artifact, out: Artifact) -> None:
        self._corpus, self._out = corpus, out
        self._embedder = load_embedder(cfg)

    def __call__(self, item: dict[str, Any]) -> Stats:
        start_s = time.monotonic()
        table = self._corpus.read_table(item["name"], ["doc_id", "text"])
        schema = embedding_schema(self._embedder.dim)
        stats = {"documents": len(table), "tokens": 0, "truncated": 0}
        chunks = []
        for start in range(0, len(table), _CHUNK_ROWS):
            chunk = table.slice(start, _CHUNK_ROWS)
            embedded = self._embedder.embed(chunk.column("text").to_pylist())
            _require_directions(chunk.column("doc_id"), embedded.vectors_ND)
            limit = self._embedder.max_tokens
            stats["tokens"] += int(np.minimum(embedded.num_tokens_N, limit).sum())
            stats["truncated"] += int((embedded.num_tokens_N > limit).sum())
            chunks.append(vector_array(embedded.vectors_ND))
        vectors = pa.chunked_array(chunks, schema.field("vector").type)
        seconds = round(time.monotonic() - start_s, 3)
        self._out.write_table(
            item["name"],
            pa.table([table.column("doc_id"), vectors], schema=schema),
            stats={**stats, "seconds": seconds},
        )
        return stats


def _require_directions(doc_ids: pa.ChunkedArray, vectors_ND: NDArray[np.float32]) -> None:
    bad_N = ~np.isfinite(vectors_ND).all(axis=1)
    if bad_N.any():
        doc_id = doc_ids[int(np.flatnonzero(bad_N)[0])].as_py()
        raise SbpError(f"document {doc_id}: the embedder gives it no direction (a zero vector or NaN): try float32")


def vector_array(vectors_ND: NDArray[np.float32]) -> pa.Array:
    """As an Arrow column of float16 lists of fixed length."""
    values = pa.array(vectors_ND.astype(np.float16).ravel(), pa.float16())
    return pa.FixedSizeListArray.from_arrays(values, vectors_ND.shape[1])
