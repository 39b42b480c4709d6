"""A shard's segments become one file: each sample once, in order. `generation.deduplication` makes its part of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.config import SynthesizeConfig
from sbp_ray.generation.d1 import Sources
from sbp_ray.generation.filters import BAD, real_text_drops
from sbp_ray.generation.segments import SEGMENT, first_of_each, list_segments, read_segments, remove_segments
from sbp_ray.shards import Stats, shard_name
from sbp_ray.steps import SCRATCH

MERGED = f"{SCRATCH}/merged"
_SMALL = ["number", "reason", "detail", "num_generated", "num_prompt", "num_cached", "contaminated", "signature"]
_SMALL += ["d1_id", "sample", "read_outside", "written_outside"]

_OUTSIDE = {"input_tokens": "read", "output_tokens": "written"}


def part_name(shard: int) -> str:
    """Of a finished shard."""
    return f"part-{shard:05d}.parquet"


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

    Two passes: the first over small columns (some 300 bytes a sample) decides what is kept, the second copies the rows,
    of which a few segments are in memory at a time.
    """
    is_there = shard in finished_shards(out)
    with suppress(FileNotFoundError):  # another worker has merged the shard too, and removed the segments
        if not is_there:
            _merge(cfg, shard, sources, out)
    name = finished_shards(out).get(shard)
    assert name, f"not all {len(sources) * cfg.samples_per_document} samples of shard {shard} are in its segments"
    return out.read_stats(name)


def _merge(cfg: SynthesizeConfig, shard: int, sources: Sources, out: Artifact) -> None:
    names = list_segments(out, shard)
    samples = _read_samples(out, names)
    if len(samples) < len(sources) * cfg.samples_per_document:
        return
    kept = samples.filter(pc.is_null(samples["reason"]))
    _write_quarantine(samples, shard, out)
    out.write_table(signatures_name(shard), kept.select(["signature"]))  # whoever sees the rows finds them
    _write_rows(names, {*kept["number"].to_pylist()}, shard, _stats(samples, kept, sources, cfg), out)
    remove_segments(out, shard)


def quarantine_so_far(shard: int, out: Artifact) -> None:
    """List the samples that could not be written, of a shard that is not complete."""
    _write_quarantine(_read_samples(out, list_segments(out, shard)), shard, out)


def _read_samples(out: Artifact, names: Sequence[str]) -> pa.Table:
    """The small columns of each sample, once, in order."""
    nothing = pa.schema([SEGMENT.field(name) for name in _SMALL]).empty_table()
    every = pa.concat_tables([nothing, *read_segments(out, names, _SMALL)])
    return every.take(first_of_each(every["number"]))


def _stats(samples: pa.Table, kept: pa.Table, sources: Sources, cfg: SynthesizeConfig) -> Stats:
    sets = [name for names in samples["contaminated"].to_pylist() for name in names or ()]
    outside = {kind: pc.sum(samples[f"{verb}_outside"]).as_py() or 0 for kind, verb in _OUTSIDE.items()}
    return {
        **({"outside": outside} if cfg.rephrase is not None else {}),
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
    """One JSON line for each sample that could not be written."""
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
        for name, limit in zip(names, [*firsts, np.iinfo(np.int32).max][1:], strict=True):
            table = out.read_table(name, waiting.column_names)
            is_new = pa.array([number in missing for number in table["number"].to_pylist()], pa.bool_())
            missing.difference_update(table["number"].to_pylist())
            waiting = pa.concat_tables([waiting, table.filter(is_new).cast(waiting.schema)]).sort_by("number")
            is_ready = pc.less(waiting["number"], limit)
            writer.write_table(waiting.filter(is_ready).drop_columns(["number"]).cast(target))
            waiting = waiting.filter(pc.invert(is_ready))
