"""corpus -> embeddings: a unit vector for each document, and what pairing needs to know of its text

`embed_corpus` sends the shards to workers and adds up their counts. A `ShardEmbedder` reads a shard in chunks of
bounded size, embeds and signs each, and commits them together. Afterwards bad vectors, and text that the embedder
does not know, are judged for the whole corpus.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EmbedConfig
from sbp_ray.embedder import Running, Tokenized, joined, load_embedder, settle_dtype
from sbp_ray.errors import SbpError
from sbp_ray.neighbors.search_files import vector_length
from sbp_ray.processor import SETTLED
from sbp_ray.schema import SIGNATURE_BYTES, SPLITS, embedding_schema
from sbp_ray.shards import Stats, add_stats, list_shards, read_stats, splits_of
from sbp_ray.steps import Step, run_steps
from sbp_ray.text.content import common_words, content_words, distinct_words
from sbp_ray.text.hashing import hash64
from sbp_ray.text.minhash import document_signature, signature
from sbp_ray.threads import map_in_threads, read_ahead

# N = documents, D = vector length

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine"
_COMMON_WORDS = "words/common.bin"
_SAMPLE_DOCUMENTS = 20_000  # a share of a hundredth is known to within 0.14 percentage points
_SAMPLE_WORDS = 16 << 20  # of books fewer: what is held of a word is 8 bytes, and as much again while they are counted
_PIECE_ROWS = 256  # read and tokenised at once
_PIECE_BYTES = 1 << 24  # of such rows, on average
_UNKNOWN_SHARE_TOLD = 0.01
_PAIRS_TO_TELL = 100
_MEAN_TOLD, _STD_TOLD = 0.9, 0.03  # of random pairs; embedders that know a text have a lower mean or a wider spread
_CHUNK_PIECES = 64  # batches are formed within a chunk: 16,384 documents, of which 5 % padding leaves large batches
_CHUNK_TOKENS = 1 << 23  # at 12 bytes, 100 MiB


def embed_corpus(cfg: EmbedConfig, *, corpus: Artifact, out: Artifact) -> Stats:
    """Embed both splits, shard by shard.

    Returns:
        Vector length; the type that was computed in, `auto` where each GPU took its own; documents, embedded tokens,
        padding computed beside them and documents cut off, of each split; FLOPs, 2 for each token computed and each
        parameter that is multiplied; the share of padding in all tokens computed; documents without a direction
        under `drops`; documents a second and worker.

    Raises:
        SbpError: a shard of the corpus is missing, the model cannot be loaded, gives too many documents no direction,
            or gives vectors of another length than those of the finished shards.
    """
    names = {split: list_shards(corpus, split) for split in splits_of(corpus)}
    # The same in all attempts: vectors are made in one type, on whatever processor they are gone on with.
    cfg = cfg.model_copy(update=out.write_json_once(SETTLED, lambda: {"dtype": settle_dtype(cfg).dtype}))
    embed = Step(
        "embed",
        ShardEmbedder,
        (cfg, corpus, out, _dim_made(out)),
        [{"name": name} for split in names for name in names[split]],
        lambda item: item["name"],
        resources=cfg.resources,
        keeps_worker=True,
    )
    count = Step(
        "embed-words",
        partial,
        (find_common_words, corpus, out),
        [{"names": names["train"]}],
        lambda _: _COMMON_WORDS,
        reads=[(corpus, "train")],
    )
    run_steps(out, [count, embed], cfg.resources)
    by_split: dict[str, Stats] = {split: add_stats(read_stats(out, names[split])) for split in names}
    total = add_stats(by_split.values())
    spread = _spread(add_stats(stats.pop("random_pairs", {}) for stats in by_split.values()))
    _refuse_bad_vectors(cfg, total, out)
    _refuse_unknown_language(cfg, total, spread)
    computed = total["tokens"] + total["padding_tokens"]
    return {
        "dim": _dim_made(out),
        "dtype": cfg.dtype,
        "shards": len(names["train"]),
        "documents": total["documents"],
        "flops": total["flops"],
        "documents_per_s": round(total["documents"] / total["seconds"], 1) if total["seconds"] else 0.0,
        "padding_share": round(total["padding_tokens"] / computed, 4) if computed else 0.0,
        "drops": total.get("drops", {}),
        "unknown_share": round(total["unknown_tokens"] / total["tokens"], 4) if total["tokens"] else 0.0,
        "random_cosine": spread,
        **by_split,
    }


def _refuse_bad_vectors(cfg: EmbedConfig, total: Stats, out: Artifact) -> None:
    """Documents without a direction are put aside, like rows that cannot be read; they have no neighbours."""
    num_bad = total.get("drops", {}).get("no_direction", 0)
    num_documents = total["documents"] + num_bad
    if num_bad > cfg.max_bad_share * num_documents or 0 < num_bad == num_documents:
        raise SbpError(
            f"the embedder gives {num_bad:,} of {num_documents:,} documents no direction (zeros or NaN), more than "
            f"embed.max_bad_share ({cfg.max_bad_share}): see {out.path(QUARANTINE)}, then use embed.dtype=float32 with "
            "--redo embed, or raise the share and run the same command again"
        )
    if num_bad:
        logger.warning(f"embed | {num_bad:,} of {num_documents:,} documents get no vector: {out.path(QUARANTINE)}")


def _random_pairs(vectors_ND: NDArray[np.float32]) -> Stats:
    """Sums over the cosines of documents with the next in the order of their ids, which are random."""
    cosines_N = (vectors_ND[1:] * vectors_ND[:-1]).sum(axis=1, dtype=np.float64)
    return {"pairs": len(cosines_N), "cosines": float(cosines_N.sum()), "squares": float((cosines_N**2).sum())}


def _spread(sums: Stats) -> Stats:
    """Number, mean and standard deviation of the cosines of random pairs."""
    number = sums.get("pairs", 0)
    if not number:
        return {"pairs": 0, "mean": 0.0, "std": 0.0}
    mean = sums["cosines"] / number
    return {
        "pairs": number,
        "mean": round(mean, 4),
        "std": round(max(0.0, sums["squares"] / number - mean**2) ** 0.5, 4),
    }


def _refuse_unknown_language(cfg: EmbedConfig, total: Stats, spread: Stats) -> None:
    """An embedder that does not know the language of the text gives vectors that are all alike."""
    share = total["unknown_tokens"] / max(1, total["tokens"])
    told = f"{share:.1%} of the embedder's tokens are unknown to embed.model={cfg.model}, or spell words out"
    remedy = "choose one that knows the corpus' language"
    if share > cfg.max_unknown_share:
        raise SbpError(
            f"{told}, more than embed.max_unknown_share ({cfg.max_unknown_share}): {remedy}, and use --redo embed, or "
            "raise the share and run the same command again"
        )
    if share > _UNKNOWN_SHARE_TOLD:
        logger.warning(f"embed | {told}: {remedy}")
    if spread["pairs"] >= _PAIRS_TO_TELL and spread["mean"] > _MEAN_TOLD and spread["std"] < _STD_TOLD:
        logger.warning(
            f"embed | the vectors are nearly all alike (cosine of random pairs {spread['mean']:.3f} ± "
            f"{spread['std']:.3f}): look at the pairs, and if they are unrelated {remedy} in embed.model"
        )


def _dim_made(out: Artifact) -> int | None:
    """Vector length of the finished shards; None when there is none yet."""
    names = [name for split in SPLITS for name in out.files(split, ".parquet")]
    dims = list(map_in_threads(partial(vector_length, out), names))
    for name, dim in zip(names, dims, strict=True):
        if dim != dims[0]:
            raise SbpError(
                f"{out.url}: {name} has vectors of length {dim}, {names[0]} of {dims[0]}: embed.model is not the "
                "same on all nodes: mend that, and use --redo embed"
            )
    return dims[0] if dims else None


def find_common_words(corpus: Artifact, out: Artifact, item: dict[str, Any]) -> Stats:
    """Write the words that stand in a hundredth of the train documents, by 20,000 of them, or by fewer long ones."""
    parts: list[NDArray[np.uint64]] = []
    num_words = 0
    for text in _read_texts(corpus, item["names"]):
        parts.append(distinct_words(text))
        num_words += len(parts[-1])
        if len(parts) == _SAMPLE_DOCUMENTS or num_words >= _SAMPLE_WORDS:
            break
    out.write_bytes(_COMMON_WORDS, common_words(parts, len(parts)).tobytes())
    return {}


def _read_texts(corpus: Artifact, names: list[str]) -> Iterator[str]:
    """Of one shard after the other, each of which is a random part of the corpus."""
    for name in names:
        with corpus.fs.open_input_file(corpus.path(name)) as file:
            parquet = pq.ParquetFile(file)
            for rows in parquet.iter_batches(_piece_rows(parquet), columns=["text"]):
                yield from rows.column("text").to_pylist()


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
        bad_ids: list[bytes] = []
        counted = ("documents", "tokens", "padding_tokens", "unknown_tokens", "truncated", "flops")
        stats: Stats = {**dict.fromkeys(counted, 0), "random_pairs": {}}
        tables = [schema.empty_table()]
        for chunk, running in self._started(item["name"]):
            vectors_ND, padding_tokens = running.result()
            has_direction_N = np.isfinite(vectors_ND).all(axis=1)
            bad_ids += chunk.columns.column("doc_id").filter(pa.array(~has_direction_N)).to_pylist()
            stats["unknown_tokens"] += chunk.texts.num_unknown
            stats["random_pairs"] = add_stats([stats["random_pairs"], _random_pairs(vectors_ND[has_direction_N])])
            stats["documents"] += int(has_direction_N.sum())
            stats["tokens"] += int(chunk.texts.num_tokens_N.sum())
            stats["padding_tokens"] += padding_tokens
            computed = int(chunk.texts.num_tokens_N.sum()) + padding_tokens
            stats["flops"] += 2 * self._embedder.num_multiplied_parameters * computed
            stats["truncated"] += int(chunk.texts.truncated_N.sum())
            columns = chunk.columns.add_column(1, schema.field("vector"), vector_array(vectors_ND))
            tables.append(columns.cast(schema).filter(pa.array(has_direction_N)))
        if bad_ids:
            stats["drops"] = {"no_direction": len(bad_ids)}
            self._quarantine(item["name"], bad_ids)
        seconds = round(time.monotonic() - start_s, 3)
        self._out.write_table(item["name"], pa.concat_tables(tables), stats={**stats, "seconds": seconds})
        return stats

    @cached_property
    def _common_words(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._out.read_bytes(_COMMON_WORDS), np.uint64)

    def _quarantine(self, name: str, bad_ids: list[bytes]) -> None:
        """Note the documents that get no vector, before the shard is committed."""
        lines = [json.dumps({"file": name, "doc_id": doc_id.hex(), "reason": "no_direction"}) for doc_id in bad_ids]
        self._out.write_bytes(f"{QUARANTINE}/{name.replace('/', '-')}.jsonl", "\n".join([*lines, ""]).encode())

    def _started(self, name: str) -> Iterator[tuple[Chunk, Running]]:
        """The chunks of a shard; when one is yielded, the next is with the model and the one after it in the making."""
        before: tuple[Chunk, Running] | None = None
        for chunk in read_ahead(self._chunks(name)):
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
            parquet = pq.ParquetFile(file)
            for rows in parquet.iter_batches(_piece_rows(parquet), columns=["doc_id", "group", "text"]):
                texts = rows.column("text").to_pylist()
                signed = [document_signature(text, self._shingle_tokens) for text in texts]
                content = [content_words(text, self._common_words) for text in texts]
                about = [signature(words).tobytes() for words in content]
                columns = {
                    "doc_id": rows.column("doc_id"),
                    "signature": pa.array([made.tobytes() for made, _ in signed], pa.binary(SIGNATURE_BYTES)),
                    "num_shingles": pa.array([number for _, number in signed], pa.int32()),
                    "content_signature": pa.array(about, pa.binary(SIGNATURE_BYTES)),
                    "num_content_words": pa.array([*map(len, content)], pa.int32()),
                    "group_hash": pa.array(
                        [hash64("group", group) for group in rows.column("group").to_pylist()], pa.uint64()
                    ),
                }
                yield Chunk(self._embedder.tokenize(texts), pa.table(columns))


def _piece_rows(parquet: pq.ParquetFile) -> int:
    """How many of a file's rows are in memory at once, tokens included."""
    groups = (parquet.metadata.row_group(number) for number in range(parquet.num_row_groups))
    num_bytes = sum(group.total_byte_size for group in groups)
    return max(1, min(_PIECE_ROWS, _PIECE_BYTES * parquet.metadata.num_rows // (num_bytes + 1)))


def _join(pieces: list[Chunk]) -> Chunk:
    return Chunk(joined([piece.texts for piece in pieces]), pa.concat_tables([piece.columns for piece in pieces]))


def vector_array(vectors_ND: NDArray[np.float32]) -> pa.Array:
    """As an Arrow column of float16 lists of fixed length."""
    values = pa.array(vectors_ND.astype(np.float16).ravel(), pa.float16())
    return pa.FixedSizeListArray.from_arrays(values, vectors_ND.shape[1])
