"""A shard's segments become one file: each sample once, in order. `generation.deduplication` makes its part of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.config import SynthesizeConfig
from sbp_ray.generation.d1 import Sources
from sbp_ray.generation.filters import BAD, real_text_drops
from sbp_ray.generation.ledger import SEGMENT, first_of_each, ledger_name, segments_folder
from sbp_ray.shards import SCRATCH, Stats, shard_name

MERGED = f"{SCRATCH}/merged"
_SMALL = ["number", "reason", "detail", "num_generated", "num_prompt", "num_cached", "contaminated", "signature"]
_SMALL += ["d1_id", "sample"]


def merged_name(shard: int) -> str:
    """Of a shard whose samples are all there."""
    return shard_name(MERGED, shard)


def signatures_name(shard: int) -> str:
    """Of the documents of a merged shard, by which copies are found; in the order of its rows."""
    return shard_name("signatures", shard)


def finished_shards(out: Artifact) -> dict[int, str]:
    """The shards that need no engine any more, and the file of each: merged, or its part."""
    names = [*out.files(MERGED, ".parquet"), *out.files(suffix=".parquet")]
    return {int(name[-len("00000.parquet") : -len(".parquet")]): name for name in names}


def merge_shard(cfg: SynthesizeConfig, shard: int, sources: Sources, out: Artifact) -> Stats:
    """Commit the merged shard from its segments, and remove these. A shard that is merged already stays as it is.

    Should two workers hold one shard, the first to end removes the segments that the other one reads: the merged shard
    is then there, and holds what the other one would write.

    Two passes: the first over small columns (some 300 bytes a sample) decides what is kept, the second copies the rows,
    of which a few segments are in memory at a time.
    """
    if stats := _stats_of_merged(shard, out):
        return stats
    segments = out.files(segments_folder(shard), ".parquet")
    try:
        samples = _samples(segments, out)
        if len(samples) == len(sources) * cfg.samples_per_document:
            kept = samples.filter(pc.is_null(samples["reason"]))
            stats = _stats(samples, kept, sources, cfg)
            _write_quarantine(samples, shard, out)
            out.write_table(signatures_name(shard), kept.select(["signature"]))  # whoever sees the rows finds them
            _write_rows(segments, {*kept["number"].to_pylist()}, shard, stats, out)
            remove_traces(out, shard)
            return stats
    except FileNotFoundError:
        if not (stats := _stats_of_merged(shard, out)):
            raise
        return stats
    stats = _stats_of_merged(shard, out)
    assert stats, f"shard {shard} has {len(samples)} of {len(sources) * cfg.samples_per_document} samples"
    return stats


def _stats_of_merged(shard: int, out: Artifact) -> Stats | None:
    name = finished_shards(out).get(shard)
    return out.read_stats(name) if name else None


def quarantine_so_far(shard: int, out: Artifact) -> None:
    """What could not be drawn of a shard that is not complete."""
    _write_quarantine(_samples(out.files(segments_folder(shard), ".parquet"), out), shard, out)


def _samples(segments: Sequence[str], out: Artifact) -> pa.Table:
    """The small columns of each sample, once, in order."""
    nothing = pa.schema([SEGMENT.field(name) for name in _SMALL]).empty_table()
    every = pa.concat_tables([nothing, *(out.read_table(name, _SMALL) for name in segments)])
    return every.take(first_of_each(every["number"]))


def remove_traces(out: Artifact, shard: int) -> None:
    """Segments and ledger of a shard that is merged."""
    for name in out.files(segments_folder(shard), ".parquet"):
        out.fs.delete_file(out.path(name))
    if out.exists(ledger_name(shard)):
        out.fs.delete_file(out.path(ledger_name(shard)))


def _stats(samples: pa.Table, kept: pa.Table, sources: Sources, cfg: SynthesizeConfig) -> Stats:
    sets = [name for names in samples["contaminated"].to_pylist() for name in names or ()]
    return {
        "d1": len(sources),
        "samples": len(samples),
        "documents": len(kept),
        "tokens": pc.sum(kept["num_generated"]).as_py() or 0,
        "tokens_generated": pc.sum(samples["num_generated"]).as_py() or 0,
        "prompt_tokens": pc.sum(samples["num_prompt"]).as_py() or 0,
        "prompt_tokens_cached": pc.sum(samples["num_cached"]).as_py() or 0,
        "drops": dict(Counter(reason for reason in samples["reason"].to_pylist() if reason)),
        "contaminated": dict(Counter(sets)),
        "real_text": {
            "documents": len(sources),
            "drops": real_text_drops((source.input_ids for source in sources), cfg),
        },
    }


def _write_quarantine(samples: pa.Table, shard: int, out: Artifact) -> None:
    """One JSON line for each sample that could not be drawn."""
    rows = samples.select(["d1_id", "sample", "reason", "detail"]).to_pylist()
    lines = [json.dumps(row | {"d1_id": row["d1_id"].hex()}) for row in rows if row["reason"] in BAD]
    if lines:
        out.write_bytes(f"quarantine/part-{shard:05d}.jsonl", "\n".join([*lines, ""]).encode())


def _write_rows(names: Sequence[str], kept: set[int], shard: int, stats: Stats, out: Artifact) -> None:
    """The kept rows in the order of their numbers. Segments overlap a little: rows wait for the next one's first."""
    firsts = [int(name.rsplit("/", 1)[1].split("-")[0]) for name in names]
    target = schema.SYNTHETIC.with_metadata({"stats": json.dumps(stats)})
    waiting = schema.SYNTHETIC.insert(0, SEGMENT.field("number")).empty_table()
    missing = set(kept)
    with out.writing(merged_name(shard)) as stream, pq.ParquetWriter(stream, target, compression="zstd") as writer:
        for name, limit in zip(names, [*firsts[1:], np.iinfo(np.int32).max], strict=True):
            table = out.read_table(name, waiting.column_names)
            is_new = pa.array([number in missing for number in table["number"].to_pylist()], pa.bool_())
            missing.difference_update(table["number"].to_pylist())
            waiting = pa.concat_tables([waiting, table.filter(is_new).cast(waiting.schema)]).sort_by("number")
            is_ready = pc.less(waiting["number"], limit)
            writer.write_table(waiting.filter(is_ready).drop_columns(["number"]).cast(target))
            waiting = waiting.filter(pc.invert(is_ready))
