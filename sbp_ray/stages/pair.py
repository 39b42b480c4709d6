"""corpus, neighbors -> pairs (d1, d2): related, not copies, both directions

    listed      worker of a shard of neighbours: neighbours within the cosine band, each as two directed pairs, each
                put into the bucket of the shard that holds its d1
    judged      worker of a shard: its pairs from all buckets, each once; near-duplicates go; then, since every pair is
                there in both directions, the pairs in which its documents are d2 are known too, and hubs are capped;
                those left are put into the bucket of the shard that holds *their* d1
    train, validation
                worker of a shard: its pairs from all buckets, sorted

Each worker holds one shard's pairs and shingles, and one more shard of documents at a time.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import bucket_writer, read_bucket
from sbp_ray.config import PairConfig
from sbp_ray.errors import SbpError
from sbp_ray.neighbors.histogram import cosine_histogram, sorted_histogram, threshold_for
from sbp_ray.schema import PAIR, SPLITS, Split, shard_of
from sbp_ray.shards import Stats, add_stats, map_shards, shard_name
from sbp_ray.text.shingles import containment, jaccard, shingle_hashes

logger = logging.getLogger(__name__)

SCRATCH = "scratch"
CANDIDATE = pa.schema([("d1_id", pa.string()), ("d2_id", pa.string()), ("cosine", pa.float32())])
JUDGED = pa.schema([*PAIR, ("same_group", pa.bool_())])
_STATS = "stats.json"
_PAIRS_PER_DOCUMENT = 0.1  # the least for which a threshold is worth suggesting


def pair_documents(cfg: PairConfig, *, corpus: Artifact, neighbors: Artifact, out: Artifact) -> Stats:
    """Choose the pairs of both splits.

    Returns:
        Pairs, documents that are d1 of one, drops by reason, histogram of cosines, and the share of the pairs whose
        documents share a group, of each split.

    Raises:
        SbpError: the train split has no pair; says which threshold would give some.
    """
    if not out.exists(_STATS):
        names = {split: neighbors.files(split, ".parquet") for split in SPLITS}
        for step, worker in (("list", CandidateLister), ("judge", PairJudge), ("write", PairWriter)):
            _run_step(step, worker, (cfg, corpus, neighbors, out, names), cfg, names, out)
        by_split = {split: _split_stats(out, names[split], neighbors) for split in SPLITS}
        if by_split["train"]["pairs"] == 0:
            raise SbpError(_no_pairs(cfg, by_split["train"], neighbors, names["train"]))
        total = add_stats({"pairs": part["pairs"], "drops": part["drops"]} for part in by_split.values())
        out.write_json(_STATS, {**total, **by_split})
    _remove_scratch(out)
    return out.read_json(_STATS)


_FOLDERS = {"list": f"{SCRATCH}/listed-", "judge": f"{SCRATCH}/judged-", "write": ""}


def _file(step: str, split: Split, shard: int) -> str:
    return shard_name(f"{_FOLDERS[step]}{split}", shard)


def _run_step(
    step: str, worker: type, arguments: tuple[Any, ...], cfg: PairConfig, names: dict[Split, list[str]], out: Artifact
) -> None:
    every = [(split, shard) for split in SPLITS for shard in range(len(names[split]))]
    todo = [{"split": split, "shard": shard} for split, shard in every if not out.exists(_file(step, split, shard))]
    stage = "pair" if step == "write" else f"pair-{step}"
    map_shards(stage, worker, arguments, todo, num_done=len(every) - len(todo), resources=cfg.resources)


class _Worker:
    """What the three steps have in common."""

    def __init__(
        self,
        cfg: PairConfig,
        corpus: Artifact,
        neighbors: Artifact,
        out: Artifact,
        names: dict[Split, list[str]],
    ) -> None:
        self._cfg, self._corpus, self._neighbors, self._out, self._names = cfg, corpus, neighbors, out, names

    def _bucket(self, step: str, split: Split, shard: int, schema: pa.Schema) -> pa.Table:
        files = [_file(step, split, other) for other in range(len(self._names[split]))]
        return read_bucket(self._out, files, shard, schema).drop_columns("file")

    def _shards_of(self, split: Split, doc_ids: list[str]) -> NDArray[np.int64]:
        return np.array([shard_of(doc_id, len(self._names[split])) for doc_id in doc_ids], np.int64)


class CandidateLister(_Worker):
    """Turns one shard of neighbours into directed pairs within the cosine band."""

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard = item["split"], item["shard"]
        table = self._neighbors.read_table(self._names[split][shard])
        lists = table.column("neighbor_ids").combine_chunks()
        cosine_N = table.column("cosines").combine_chunks().flatten().to_numpy()
        is_low_N = cosine_N < np.float32(self._cfg.min_cosine)
        is_high_N = cosine_N > np.float32(self._cfg.max_cosine)
        kept = pa.array(np.flatnonzero(~is_low_N & ~is_high_N))
        own = table.column("doc_id").combine_chunks().take(pc.list_parent_indices(lists).take(kept))
        other, cosines = lists.flatten().take(kept), pa.array(cosine_N).take(kept)
        drops = _positive({"below_min_cosine": int(is_low_N.sum()), "above_max_cosine": int(is_high_N.sum())})
        with bucket_writer(self._out, _file("list", split, shard), CANDIDATE) as writer:
            for d1_ids, d2_ids in ((own, other), (other, own)):
                directed = pa.table([d1_ids, d2_ids, cosines], schema=CANDIDATE)
                writer.write(directed, self._shards_of(split, d1_ids.to_pylist()))
            writer.finish({"documents": len(table), "drops": drops})
        return {"drops": drops}


class PairJudge(_Worker):
    """Takes near-duplicates and the pairs of hubs out of one shard's pairs."""

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard = item["split"], item["shard"]
        candidates = _each_once(self._bucket("list", split, shard, CANDIDATE))
        drops: Counter[str] = Counter()
        related = self._without_near_duplicates(split, shard, candidates, drops)
        kept = cap_hubs(related, self._cfg.max_appearances)
        drops["hub_cap"] = len(related) - len(kept)
        drops = Counter(_positive(drops))
        turned = kept.select(["d2_id", "d1_id", "cosine", "jaccard", "same_group"]).rename_columns(JUDGED.names)
        with bucket_writer(self._out, _file("judge", split, shard), JUDGED) as writer:
            writer.write(turned, self._shards_of(split, turned.column("d1_id").to_pylist()))
            writer.finish({"drops": dict(drops)})
        return {"drops": dict(drops)}

    def _without_near_duplicates(self, split: Split, shard: int, candidates: pa.Table, drops: Counter[str]) -> pa.Table:
        """Rows of `JUDGED`."""
        own = self._read_shingles(split, shard, set(candidates.column("d1_id").to_pylist()))
        by_shard: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in candidates.to_pylist():
            by_shard[shard_of(row["d2_id"], len(self._names[split]))].append(row)
        kept = []
        for other, rows in sorted(by_shard.items()):
            others = own if other == shard else {}
            wanted = {row["d2_id"] for row in rows} - others.keys()
            others = others | self._read_shingles(split, other, wanted) if wanted else others
            for row in rows:
                (group_1, shingles_1), (group_2, shingles_2) = own[row["d1_id"]], others[row["d2_id"]]
                reason = near_duplicate(shingles_1, shingles_2, self._cfg)
                if reason:
                    drops[reason] += 1
                else:
                    similarity = {"jaccard": jaccard(shingles_1, shingles_2), "same_group": group_1 == group_2}
                    kept.append({**row, **similarity})
        return pa.Table.from_pylist(kept, JUDGED)

    def _read_shingles(self, split: Split, shard: int, wanted: set[str]) -> dict[str, tuple[str, NDArray[np.uint64]]]:
        """Group and shingles of the wanted documents of a shard."""
        table = self._corpus.read_table(shard_name(split, shard), ["doc_id", "group", "input_ids"])
        table = table.filter(pc.is_in(table.column("doc_id"), pa.array(sorted(wanted), pa.string())))
        found = {}
        for doc_id, group, input_ids in zip(*table.columns, strict=True):
            shingles = shingle_hashes(input_ids.values.to_numpy(), self._cfg.shingle_tokens)
            found[doc_id.as_py()] = (group.as_py(), shingles)
        return found


class PairWriter(_Worker):
    """Writes one shard's pairs, most similar first for each d1."""

    def __call__(self, item: dict[str, Any]) -> Stats:
        split, shard = item["split"], item["shard"]
        table = self._bucket("judge", split, shard, JUDGED)
        table = table.sort_by([("d1_id", "ascending"), ("cosine", "descending"), ("d2_id", "ascending")])
        stats = {
            "pairs": len(table),
            "documents_with_pair": pc.count_distinct(table.column("d1_id")).as_py(),
            "same_group_pairs": pc.sum(table.column("same_group")).as_py() or 0,
            "histogram": cosine_histogram(table.column("cosine").to_numpy()),
        }
        self._out.write_table(_file("write", split, shard), table.select(PAIR.names).cast(PAIR), stats=stats)
        return {"pairs": len(table)}


def near_duplicate(a: NDArray[np.uint64], b: NDArray[np.uint64], cfg: PairConfig) -> str | None:
    """The reason why two documents, given by their shingles, are too much alike; None when they are not."""
    if jaccard(a, b) > cfg.max_jaccard:
        return "near_duplicate_jaccard"
    if max(containment(a, b), containment(b, a)) > cfg.max_containment:
        return "near_duplicate_containment"
    return None


def cap_hubs(pairs: pa.Table, max_appearances: int) -> pa.Table:
    """Keep, for each d1, its most similar pairs; equally similar ones by the id of d2."""
    ranked = pairs.sort_by([("d1_id", "ascending"), ("cosine", "descending"), ("d2_id", "ascending")])
    if len(ranked) == 0:
        return ranked
    ids = ranked.column("d1_id").to_numpy()
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    lengths = np.diff([*starts, len(ids)])
    rank_N = np.arange(len(ids)) - np.repeat(starts, lengths)
    return ranked.filter(pa.array(rank_N < max_appearances))


def _each_once(candidates: pa.Table) -> pa.Table:
    """A pair that both documents list is there twice, and its cosines may differ in the last bit: the higher counts."""
    grouped = candidates.group_by(["d1_id", "d2_id"]).aggregate([("cosine", "max")])
    return grouped.rename_columns(["d1_id", "d2_id", "cosine"]).sort_by(
        [("d1_id", "ascending"), ("d2_id", "ascending")]
    )


def _positive(counts: dict[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count}


def _split_stats(out: Artifact, names: list[str], neighbors: Artifact) -> Stats:
    [split] = {name.split("/")[0] for name in names}
    files = {step: [_file(step, split, shard) for shard in range(len(names))] for step in _FOLDERS}  # type: ignore[arg-type]
    stats = add_stats(out.read_stats(name) for name in files["write"])
    same_group = stats.pop("same_group_pairs")
    before = add_stats(out.read_stats(name) for step in ("list", "judge") for name in files[step])
    return {
        **stats,
        "documents": before["documents"],
        "same_group_share": round(same_group / stats["pairs"], 4) if stats["pairs"] else None,
        "histogram": sorted_histogram(stats["histogram"]),
        "drops": before["drops"],
    }


def _no_pairs(cfg: PairConfig, train: Stats, neighbors: Artifact, names: list[str]) -> str:
    """What there is instead, and a setting that would give some."""
    drops = ", ".join(f"{count:,} {reason}" for reason, count in train["drops"].items()) or "no neighbours"
    histogram = add_stats(neighbors.read_stats(name)["histogram_all"] for name in names)
    fact = f"no pairs with pair.min_cosine={cfg.min_cosine}, pair.max_cosine={cfg.max_cosine} ({drops})"
    in_band = {edge: count for edge, count in histogram.items() if float(edge) < cfg.max_cosine}
    if not in_band:
        return f"{fact}: the train split needs at least two documents that are not copies of each other"
    line = " ".join(f"{edge}:{count}" for edge, count in sorted_histogram(histogram).items())
    threshold, num_pairs = threshold_for(in_band, _PAIRS_PER_DOCUMENT * train["documents"])
    if threshold >= cfg.min_cosine:
        return f"{fact}; cosines of neighbours {line}: raise pair.max_jaccard and pair.max_containment"
    return (
        f"{fact}; cosines of neighbours {line}: use --redo pair pair.min_cosine={threshold:.2f}, "
        f"which keeps about {num_pairs:,} for {train['documents']:,} documents"
    )


def _remove_scratch(out: Artifact) -> None:
    if out.exists(SCRATCH):
        out.fs.delete_dir(out.path(SCRATCH))
