"""A shard's segments become its part of the artifact: each sample once, in order, without copies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.config import SynthesizeConfig
from sbp_ray.generation.filters import BAD, real_text_drops
from sbp_ray.generation.ledger import SEGMENT, first_of_each, ledger_name, part_name, segments_folder
from sbp_ray.generation.sources import Sources, read_shard
from sbp_ray.shards import Stats, shard_name
from sbp_ray.text.copies import copies_of_corpus, copies_of_earlier

COPY_OF_SYNTHETIC = "copy_of_synthetic"
_SMALL = ["number", "reason", "detail", "num_generated", "num_prompt", "num_cached", "contaminated", "signature"]
_SMALL += ["d1_id", "sample", "doc_id"]


def signatures(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """uint8[M, 256] of a column without nulls."""
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, schema.SIGNATURE_BYTES)


def corpus_signatures(embeddings: Artifact, names: Sequence[str]) -> Iterator[tuple[list[bytes], NDArray[np.uint8]]]:
    """Ids and signatures of the train documents, shard by shard.

    Raises:
        SbpError: a shard has gone.
    """
    for name in names:
        table = read_shard(embeddings, name, ["doc_id", "signature"])
        yield table["doc_id"].to_pylist(), signatures(table["signature"])


def merge_shard(
    cfg: SynthesizeConfig, shard: int, sources: Sources, *, names: Sequence[str], embeddings: Artifact, out: Artifact
) -> Stats:
    """Commit `part-<shard>.parquet` from the shard's segments, and remove these.

    Two passes: the first over small columns (some 300 bytes a sample) decides what is kept, the second copies the rows,
    of which a few segments are in memory at a time.

    Args:
        cfg: the limits.
        shard: which one.
        sources: its d1.
        names: all train shards of the corpus, and of the embeddings.
        embeddings: with the signatures that copies are told by.
        out: the artifact.

    Raises:
        SbpError: a shard of the embeddings has gone.
    """
    segments = out.files(segments_folder(shard), ".parquet")
    samples = _samples(segments, out)
    wanted = len(sources) * cfg.samples_per_document
    assert len(samples) == wanted, f"shard {shard} has {len(samples)} of {wanted} samples"
    corpus = corpus_signatures(embeddings, names)
    reasons, real_copies = _with_copies(
        cfg, samples, sources.doc_ids, _signatures_of(sources, shard, embeddings), corpus
    )
    is_kept = pa.array([reason is None for reason in reasons], pa.bool_())
    kept = samples.filter(is_kept)
    stats = _stats(samples, reasons)
    stats |= {"d1": len(sources), "documents": len(kept), "tokens": pc.sum(kept["num_generated"]).as_py() or 0}
    real = real_text_drops((source.input_ids for source in sources), cfg)
    stats["real_text"] = {"documents": len(sources), "drops": {**real, "copy_of_corpus": real_copies}}
    _write_quarantine(samples, shard, out)
    _write_signatures(kept, shard, out)
    _write_rows(segments, set(kept["number"].to_pylist()), shard, stats, out)
    remove_traces(out, shard)
    return stats


def signatures_name(shard: int) -> str:
    """Of a finished shard's documents, for comparing it with other shards."""
    return f"signatures/part-{shard:05d}.parquet"


def compared_name(shard: int) -> str:
    """The mark that the shard holds no copy of a document of an earlier shard: see `generation.across`."""
    return f"compared/part-{shard:05d}.json"


def quarantine_so_far(shard: int, out: Artifact) -> None:
    """What could not be drawn of a shard that is not complete."""
    _write_quarantine(_samples(out.files(segments_folder(shard), ".parquet"), out), shard, out)


def _samples(segments: Sequence[str], out: Artifact) -> pa.Table:
    """The small columns of each sample, once, in order."""
    nothing = pa.schema([SEGMENT.field(name) for name in _SMALL]).empty_table()
    every = pa.concat_tables([nothing, *(out.read_table(name, _SMALL) for name in segments)])
    return every.take(first_of_each(every["number"]))


def remove_traces(out: Artifact, shard: int) -> None:
    """Segments and ledger of a shard whose part is there."""
    for name in out.files(segments_folder(shard), ".parquet"):
        out.fs.delete_file(out.path(name))
    if out.exists(ledger_name(shard)):
        out.fs.delete_file(out.path(ledger_name(shard)))


def _with_copies(
    cfg: SynthesizeConfig,
    samples: pa.Table,
    real_ids: Sequence[bytes],
    real: NDArray[np.uint8],
    corpus: Iterator[tuple[list[bytes], NDArray[np.uint8]]],
) -> tuple[list[str | None], int]:
    """Each sample's reason, copies now among them; and how many of the real d1 copy another document."""
    reasons: list[str | None] = samples["reason"].to_pylist()
    kept = np.flatnonzero([reason is None for reason in reasons])
    written = signatures(samples["signature"].take(kept))
    in_corpus = copies_of_corpus(
        np.concatenate([written, real]), [b""] * len(kept) + [*real_ids], corpus, cfg.max_jaccard
    )
    for row, is_copy in zip(kept, in_corpus, strict=False):
        if is_copy:
            reasons[row] = "copy_of_corpus"
    left = np.flatnonzero(~in_corpus[: len(kept)])
    for row, is_copy in zip(kept[left], copies_of_earlier(written[left], cfg.max_jaccard), strict=True):
        if is_copy:
            reasons[row] = COPY_OF_SYNTHETIC
    return reasons, int(in_corpus[len(kept) :].sum())


def _signatures_of(sources: Sources, shard: int, embeddings: Artifact) -> NDArray[np.uint8]:
    """uint8[M, 256] of these train documents of one shard, in their order."""
    table = read_shard(embeddings, shard_name("train", shard), ["doc_id", "signature"])
    rows = pc.index_in(pa.array(sources.doc_ids, schema.DOC_ID), value_set=table["doc_id"].combine_chunks())
    return signatures(table["signature"].take(rows))


def _stats(samples: pa.Table, reasons: Sequence[str | None]) -> Stats:
    sets = [name for names in samples["contaminated"].to_pylist() for name in names or ()]
    return {
        "samples": len(samples),
        "tokens_generated": pc.sum(samples["num_generated"]).as_py() or 0,
        "prompt_tokens": pc.sum(samples["num_prompt"]).as_py() or 0,
        "prompt_tokens_cached": pc.sum(samples["num_cached"]).as_py() or 0,
        "drops": dict(Counter(reason for reason in reasons if reason)),
        "contaminated": dict(Counter(sets)),
    }


def _write_quarantine(samples: pa.Table, shard: int, out: Artifact) -> None:
    """One JSON line for each sample that could not be drawn."""
    rows = samples.select(["d1_id", "sample", "reason", "detail"]).to_pylist()
    lines = [json.dumps(row | {"d1_id": row["d1_id"].hex()}) for row in rows if row["reason"] in BAD]
    if lines:
        out.write_bytes(f"quarantine/part-{shard:05d}.jsonl", "\n".join([*lines, ""]).encode())


def _write_signatures(kept: pa.Table, shard: int, out: Artifact) -> None:
    """Before the part itself: whoever sees that one finds these. A part that is made again is compared again."""
    if out.exists(compared_name(shard)):
        out.fs.delete_file(out.path(compared_name(shard)))
    out.write_table(signatures_name(shard), kept.select(["doc_id", "signature"]))


def _write_rows(names: Sequence[str], kept: set[int], shard: int, stats: Stats, out: Artifact) -> None:
    """The kept rows in the order of their numbers. Segments overlap a little: rows wait for the next one's first."""
    firsts = [int(name.rsplit("/", 1)[1].split("-")[0]) for name in names]
    target = schema.SYNTHETIC.with_metadata({"stats": json.dumps(stats)})
    waiting = schema.SYNTHETIC.insert(0, SEGMENT.field("number")).empty_table()
    missing = set(kept)
    with out.writing(part_name(shard)) as stream, pq.ParquetWriter(stream, target, compression="zstd") as writer:
        for name, limit in zip(names, [*firsts[1:], np.iinfo(np.int32).max], strict=True):
            table = out.read_table(name, waiting.column_names)
            is_new = pa.array([number in missing for number in table["number"].to_pylist()], pa.bool_())
            missing.difference_update(table["number"].to_pylist())
            waiting = pa.concat_tables([waiting, table.filter(is_new).cast(waiting.schema)]).sort_by("number")
            is_ready = pc.less(waiting["number"], limit)
            writer.write_table(waiting.filter(is_ready).drop_columns(["number"]).cast(target))
            waiting = waiting.filter(pc.invert(is_ready))
