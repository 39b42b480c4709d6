"""neighbors -> pairs (d1, d2): related, not copies, both directions

    list        worker of a shard of neighbours: those in the cosine band that are no near-duplicates, each as two
                directed pairs, each put into the bucket of the shard of its d1
    cap         worker of a shard: its pairs from all buckets, each once. As every pair is there in both directions, the
                pairs in which its documents are d2 are known too: of these, each document keeps the most similar ones,
                `max_as_d2`, and they are put into the bucket of the shard of *their* d1
    write       worker of a shard: its pairs from all buckets; each d1 keeps the most similar ones, `max_as_d1`

The caps are greedy and in this order, so that a hub is taken away before it can fill a d1's places; equally similar
pairs go by id. Both keep the most similar, so what they keep above a threshold does not depend on the threshold.

Under `pair.source=random` the train split's pairs then get other d2: see `sbp_ray.pairing.random_pairs`.

Each worker holds one shard's pairs as columns of numbers. No text is read: how alike two documents' shingles are came
with the neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import BucketWriter, bucket_writer, read_bucket
from sbp_ray.config import PairConfig
from sbp_ray.doc_ids import ids_to_numpy, shards_of
from sbp_ray.errors import SbpError
from sbp_ray.neighbors.histogram import cosine_histogram, sorted_histogram
from sbp_ray.pairing.candidates import (
    CANDIDATE,
    MEASURES,
    REASONS,
    RELATED,
    TEXT_REASONS,
    judge,
    judge_texts,
    rank_pairs,
    turn_pairs,
)
from sbp_ray.pairing.guide import (
    GUIDE,
    Sample,
    choose_samples,
    degree_counts,
    draw_samples,
    drop_zeros,
    explain_no_pairs,
    in_slots,
    make_guide,
    shares_content,
    what_if_slots,
)
from sbp_ray.pairing.random_pairs import RandomPairer
from sbp_ray.schema import NEIGHBORS, PAIR, Split
from sbp_ray.shards import Stats, add_stats, list_shards, shard_name, splits_of
from sbp_ray.steps import SCRATCH, Step, make_stats_once, run_steps

logger = logging.getLogger(__name__)

_BATCH_DOCUMENTS = 4096
"""Documents whose lists are read at a time: with 200 neighbours each about 60 MB."""
_WRITE_ROWS = 4_000_000
"""Pairs, of 42 bytes each, that are written at a time: fewer would make buckets of many small pieces."""

Names = dict[Split, list[str]]


def pair_documents(cfg: PairConfig, *, neighbors: Artifact, out: Artifact) -> Stats:
    """Choose the pairs of both splits, and write `guide.json`, which tells how to choose the thresholds.

    Returns:
        Pairs, documents that are d1 of one, drops by reason, histogram of cosines, and the share of the pairs whose
        documents share a group, of each split. Reasons that name a setting of the band or a near-duplicate count listed
        neighbours, the caps count directed pairs.

    Raises:
        SbpError: a shard of the neighbours is missing; or the train split has no pair: says which threshold would give
            some.
    """
    return make_stats_once(out, partial(_pair_both, cfg, neighbors, out))


def _pair_both(cfg: PairConfig, neighbors: Artifact, out: Artifact) -> Stats:
    names: Names = {split: list_shards(neighbors, split) for split in splits_of(neighbors)}
    num_documents = {split: sum(map(neighbors.num_rows, names[split])) for split in names}
    slots = {split: what_if_slots(num_documents[split]) for split in names}
    _run_passes(cfg, neighbors, out, names, slots)
    found = {split: _split_stats(cfg, out, names[split], split) for split in names}
    if found["train"]["histogram"] == {}:
        raise SbpError(explain_no_pairs(cfg, found["train"]))
    out.write_json(GUIDE, {split: make_guide(found[split]) for split in names})
    by_split: dict[str, Stats] = {split: _manifest_stats(found[split]) for split in names}
    if cfg.source == "random":
        _draw_random(cfg, neighbors, out, names["train"])
        by_split["train"] |= {"histogram": {}, "same_group_share": None}  # of the mined pairs they were
    if "development" in by_split and not by_split["development"]["pairs"]:
        logger.warning(
            "pair | the development split has no pairs, by which tuning chooses a checkpoint: raise "
            "ingest.development_share, or set tune.checkpoint=last"
        )
    total = add_stats({"pairs": part["pairs"], "drops": part["drops"]} for part in by_split.values())
    return {**total, **by_split}


_FOLDERS = {"list": f"{SCRATCH}/listed-", "cap": f"{SCRATCH}/capped-", "write": ""}


def _file(step: str, split: Split, shard: int, cfg: PairConfig) -> str:
    is_mined_only = step == "write" and split == "train" and cfg.source == "random"
    return shard_name(f"{SCRATCH}/mined-{split}" if is_mined_only else f"{_FOLDERS[step]}{split}", shard)


def _draw_random(cfg: PairConfig, neighbors: Artifact, out: Artifact, names: list[str]) -> None:
    """Give each mined pair of the train split a random d2."""
    arguments = (cfg.seed, neighbors, out, [neighbors.num_rows(name) for name in names], SCRATCH)
    pairer = RandomPairer(*arguments)
    steps = [
        Step(
            f"pair-{step}",
            RandomPairer,
            arguments,
            [{"step": step, "shard": shard} for shard in range(len(names))],
            lambda item: pairer.file(item["step"], item["shard"]),
            reads=[(neighbors, "train")],
        )
        for step in ("ask", "answer", "shuffle")
    ]
    run_steps(out, steps, cfg.resources)


def _run_passes(cfg: PairConfig, neighbors: Artifact, out: Artifact, names: Names, slots: dict[Split, int]) -> None:
    items = [{"split": split, "shard": shard} for split in names for shard in range(len(names[split]))]

    def new_step(name: str, step: str, worker: type) -> Step:
        return Step(
            name,
            worker,
            (cfg, neighbors, out, names, slots),
            items,
            lambda item: _file(step, item["split"], item["shard"], cfg),
            reads=[(neighbors, split) for split in names],
        )

    passes = (("pair-list", "list", CandidateLister), ("pair-cap", "cap", D2Capper), ("pair", "write", PairWriter))
    run_steps(out, [new_step(*each) for each in passes], cfg.resources)


class _Worker:
    """What the three steps have in common."""

    def __init__(
        self, cfg: PairConfig, neighbors: Artifact, out: Artifact, names: Names, slots: dict[Split, int]
    ) -> None:
        self._cfg, self._neighbors, self._out, self._names, self._slots = cfg, neighbors, out, names, slots

    def _rank(self, step: str, split: Split, shard: int) -> tuple[pa.Table, NDArray[np.int64]]:
        files = [_file(step, split, other, self._cfg) for other in range(len(self._names[split]))]
        return rank_pairs(read_bucket(self._out, files, shard, CANDIDATE))

    def _write(self, writer: BucketWriter, split: Split, parts: list[pa.Table]) -> None:
        """Each row into the bucket of its d1's shard."""
        if parts:
            table = pa.concat_tables(parts)
            writer.write(table, shards_of(ids_to_numpy(table["d1_id"]), len(self._names[split])))


class CandidateLister(_Worker):
    """Turns one shard of neighbours into directed pairs within the cosine band.

    Pairs below the band go along for a sample of the documents, for the guide.
    """

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard = item["split"], item["shard"]
        total: Stats = {"documents": 0, "what_if_documents": 0, "drops": {}}  # a shard may be empty
        total |= {name: {} for name in ("listed", "last", "related", *TEXT_REASONS)}
        samples: list[Sample] = []
        waiting: list[pa.Table] = []
        with bucket_writer(self._out, _file("list", split, shard, self._cfg), CANDIDATE) as writer:
            for batch in self._batches(split, shard):
                directed, stats, found = self._list(batch, split)
                total, samples = add_stats([total, stats]), choose_samples([*samples, *found])
                waiting += directed
                if sum(map(len, waiting)) >= _WRITE_ROWS:
                    self._write(writer, split, waiting)
                    waiting = []
            self._write(writer, split, waiting)
            writer.finish({**total, "samples": samples})
        return {"documents": total["documents"], "drops": total["drops"]}

    def _batches(self, split: Split, shard: int) -> Iterator[pa.RecordBatch]:
        with self._neighbors.fs.open_input_file(self._neighbors.path(self._names[split][shard])) as file:
            yield from pq.ParquetFile(file).iter_batches(_BATCH_DOCUMENTS, columns=NEIGHBORS.names)

    def _list(self, batch: pa.RecordBatch, split: Split) -> tuple[list[pa.Table], Stats, list[Sample]]:
        """Pairs of one batch in both directions, counts for the guide, and sample pairs."""
        cfg, slots = self._cfg, self._slots[split]
        lists = batch.column("neighbor_ids")
        parents = pc.list_parent_indices(lists)
        names = ("cosine", *MEASURES)
        values = [batch.column(f"{name}s").flatten() for name in names]
        ids = [batch.column("doc_id").take(parents), lists.flatten()]
        rest = [*values[:2], batch.column("same_group").flatten(), pa.repeat(False, len(parents))]
        there = pa.table([*ids, *rest], schema=CANDIDATE)
        columns = dict(zip(names, (each.to_numpy() for each in values), strict=True))
        text_N = judge_texts(columns["jaccard"], columns["containment"], columns["content_overlap"], cfg)
        verdict_N = judge(columns["cosine"], text_N, cfg)
        in_band_N = verdict_N == RELATED
        is_low_N = (verdict_N == 1) & (text_N == RELATED)  # goes along where a document is in the sample
        is_own_drawn = in_slots(batch.column("doc_id"), slots)
        here = there.filter(pa.array(in_band_N | (is_low_N & is_own_drawn[parents.to_numpy()])))
        back = there.filter(pa.array(in_band_N | (is_low_N & in_slots(ids[1], slots))))
        is_related_N = shares_content(columns["content_overlap"]) & (text_N == RELATED)
        lengths = pc.list_value_length(lists).to_numpy()
        last = columns["cosine"][np.cumsum(lengths)[lengths > 0] - 1]
        stats = {
            "documents": len(batch),
            "what_if_documents": int(is_own_drawn.sum()),
            "drops": drop_zeros({reason: int((verdict_N == i).sum()) for i, reason in enumerate(REASONS, start=1)}),
            "listed": cosine_histogram(columns["cosine"]),
            "last": cosine_histogram(last),
            "related": cosine_histogram(columns["cosine"][is_related_N]),
            **{r: cosine_histogram(columns["cosine"][text_N == REASONS.index(r) + 1]) for r in TEXT_REASONS},
        }
        return [here, turn_pairs(back, is_listed=True)], stats, draw_samples(there, columns, text_N)


class D2Capper(_Worker):
    """Takes hubs out of one shard's pairs: those in which its documents are d2 too often."""

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard = item["split"], item["shard"]
        found, rank_N = self._rank("list", split, shard)
        cosine_N, is_listed_N = found["cosine"].to_numpy(), found["is_listed"].to_numpy()
        in_band_N = cosine_N >= np.float32(self._cfg.min_cosine)
        is_kept_N = rank_N < self._cfg.max_as_d2
        is_drawn_N = in_slots(found["d1_id"], self._slots[split])
        drops = drop_zeros({"d2_cap": int((in_band_N & ~is_kept_N).sum())})
        document_N = np.cumsum(rank_N == 0) - 1
        stats = {
            "drops": drops,
            "nearest": cosine_histogram(cosine_N[is_drawn_N & (rank_N == 0)]),
            "within_cap": cosine_histogram(cosine_N[is_drawn_N & is_kept_N]),
            "listed_by": degree_counts(np.bincount(document_N[in_band_N & is_listed_N])),
            "as_d2": degree_counts(np.bincount(document_N[in_band_N & is_kept_N])),
        }
        kept = found.filter(pa.array(in_band_N & is_kept_N))
        with bucket_writer(self._out, _file("cap", split, shard, self._cfg), CANDIDATE) as writer:
            self._write(writer, split, [turn_pairs(kept, is_listed=False)])
            writer.finish(stats)
        return {"drops": drops}


class PairWriter(_Worker):
    """Writes one shard's pairs, most similar first for each d1."""

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard = item["split"], item["shard"]
        found, rank_N = self._rank("cap", split, shard)
        is_kept_N = rank_N < self._cfg.max_as_d1
        pairs = found.filter(pa.array(is_kept_N))
        stats = {
            "pairs": len(pairs),
            "documents_with_pair": int((rank_N == 0).sum()),
            "same_group_pairs": int(pairs["same_group"].to_numpy().sum()),
            "histogram": cosine_histogram(pairs["cosine"].to_numpy()),
            "as_d1": degree_counts(np.bincount((np.cumsum(rank_N == 0) - 1)[is_kept_N])),
            "drops": drop_zeros({"d1_cap": len(found) - len(pairs)}),
        }
        self._out.write_table(_file("write", split, shard, self._cfg), pairs.select(PAIR.names), stats=stats)
        return {"pairs": len(pairs), "drops": stats["drops"]}


# What the driver makes of the workers' counts


def _split_stats(cfg: PairConfig, out: Artifact, names: list[str], split: Split) -> Stats:
    """Every count of the split's shards added up, and the sample pairs."""
    total: Stats = {}
    samples: list[Sample] = []
    for shard in range(len(names)):
        for step in _FOLDERS:
            part = out.read_stats(_file(step, split, shard, cfg))
            samples = choose_samples([*samples, *part.pop("samples", [])])
            total = add_stats([total, part])
    return {**total, "histogram": sorted_histogram(total["histogram"]), "samples": samples}


def _manifest_stats(found: Stats) -> Stats:
    pairs = found["pairs"]
    return {
        **{key: found[key] for key in ("pairs", "documents_with_pair", "documents", "histogram", "drops")},
        "same_group_share": round(found["same_group_pairs"] / pairs, 4) if pairs else None,
    }
