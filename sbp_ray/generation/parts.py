"""The last steps, once shards are merged: each merged shard becomes a part of the artifact, without what is dropped.

scores    of each sample, where a setting chooses by them (`generation.scores`)
copies    of corpus documents and of earlier samples (`generation.deduplication`)
part      the merged shard without copies, and without the samples that their scores rule out
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Resources, SynthesizeConfig
from sbp_ray.doc_ids import ids_to_numpy
from sbp_ray.generation.deduplication import COPY_OF_CORPUS, copy_steps, read_copies
from sbp_ray.generation.merging import finished_shards, merged_name, part_name
from sbp_ray.generation.scores import (
    SCORES,
    SCORES_FOLDER,
    choose_by_scores,
    refuse_if_none_is_good,
    score_step,
    scores_name,
)
from sbp_ray.schema import SYNTHETIC
from sbp_ray.shards import Stats, add_stats, read_stats
from sbp_ray.steps import Step, remove_scratch, run_steps

# R = rows of a shard


def make_parts(
    cfg: SynthesizeConfig,
    corpus_shards: int,
    *,
    corpus: Artifact,
    embeddings: Artifact,
    synthesizer: Artifact | None,
    out: Artifact,
    resources: Resources,
) -> None:
    """Make the parts of all merged shards.

    Raises:
        SbpError: a shard of the corpus or of the embeddings has gone, or no sample is within the limits of its scores.
    """
    merged = [shard for shard, name in finished_shards(out).items() if name == merged_name(shard)]
    items = [{"shard": shard} for shard in merged]

    def steps() -> Iterator[Step]:
        if cfg.needs_scores:
            assert synthesizer is not None
            yield score_step(cfg, items, corpus=corpus, synthesizer=synthesizer, out=out)
            refuse_if_none_is_good(cfg, add_stats(read_stats(out, out.files(SCORES_FOLDER))))
        copies, files = copy_steps(cfg, corpus_shards, embeddings=embeddings, out=out)
        yield from copies
        yield Step("synthesize-parts", PartWriter, (cfg, files, out), items, lambda item: part_name(item["shard"]))

    if merged:
        run_steps(out, steps(), resources)
    remove_scratch(out)


class PartWriter:
    """Writes a merged shard without what is dropped, and removes the merged one."""

    def __init__(self, cfg: SynthesizeConfig, copy_files: list[str], out: Artifact) -> None:
        self._cfg, self._copy_files, self._out = cfg, copy_files, out

    def __call__(self, item: dict[str, Any]) -> Stats:
        shard, out = item["shard"], self._out
        with out.fs.open_input_file(out.path(merged_name(shard))) as source:
            merged = pq.ParquetFile(source)
            stats = json.loads(merged.metadata.metadata[b"stats"])
            is_kept_R = np.ones(merged.metadata.num_rows, bool)
            copies, num_d1 = read_copies(out, self._copy_files, shard)
            drops = {reason: _drop(is_kept_R, rows) for reason, rows in copies.items()}
            scores = None
            if self._cfg.needs_scores:
                scores = out.read_table(scores_name(shard))
                stats["scores"] = out.read_stats(scores_name(shard))
                d1_id_R = ids_to_numpy(merged.read(["d1_id"])["d1_id"])
                drops |= {
                    reason: _drop(is_kept_R, rows)
                    for reason, rows in choose_by_scores(self._cfg, scores, d1_id_R, is_kept_R).items()
                }
            drops = {reason: number for reason, number in drops.items() if number}
            stats["drops"] |= drops
            stats["real_text"]["drops"][COPY_OF_CORPUS] = num_d1
            _write_part(merged, is_kept_R, scores, stats, shard, out)
        out.fs.delete_file(out.path(merged_name(shard)))
        return {"drops": drops}


def _drop(is_kept_R: NDArray[np.bool_], rows: NDArray[Any]) -> int:
    """Mark rows as dropped; how many of them were kept so far."""
    before = np.count_nonzero(is_kept_R)
    is_kept_R[rows] = False
    return int(before - np.count_nonzero(is_kept_R))


def _write_part(
    merged: pq.ParquetFile,
    is_kept_R: NDArray[np.bool_],
    scores: pa.Table | None,
    stats: Stats,
    shard: int,
    out: Artifact,
) -> None:
    """The kept rows, a group of rows at a time, with the counts that are left."""
    start, tokens = 0, 0
    with out.writing(part_name(shard)) as stream, pq.ParquetWriter(stream, SYNTHETIC, compression="zstd") as writer:
        for group in range(merged.num_row_groups):
            rows = merged.read_row_group(group, SYNTHETIC.names)
            those = slice(start, start + len(rows))
            if scores is not None:
                for field in SCORES:
                    place = rows.schema.get_field_index(field.name)
                    rows = rows.set_column(place, field, scores[field.name].slice(start, len(rows)))
            kept = rows.filter(pa.array(is_kept_R[those]))
            start += len(rows)
            tokens += sum(len(ids) for ids in kept["input_ids"])
            writer.write_table(kept.cast(SYNTHETIC))
        stats |= {"documents": int(is_kept_R.sum()), "tokens": tokens}
        writer.add_key_value_metadata({"stats": json.dumps(stats)})
