"""Shards of an artifact: their names, which there are, rows of documents by id, and what was counted of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import SbpError
from sbp_ray.schema import SPLITS, Split, shard_of
from sbp_ray.stage_table import STAGES
from sbp_ray.threads import map_in_threads

Stats = dict[str, Any]
_MADE_BY = {stage.writes: stage.name for stage in STAGES}


def shard_name(folder: str, shard: int) -> str:
    """`train/part-00003.parquet`."""
    return f"{folder}/part-{shard:05d}.parquet"


def splits_of(artifact: Artifact) -> tuple[Split, ...]:
    """The splits that the artifact has; the development split is there if it was asked for."""
    stats = (artifact.manifest() or {}).get("stats", {})
    is_there = "development" in stats or artifact.files("development", ".parquet")
    return SPLITS if is_there else ("train", "validation")


def list_shards(artifact: Artifact, split: Split) -> list[str]:
    """Names of all shards of a split, in order. All splits have as many shards, empty shards too.

    Raises:
        SbpError: a shard is missing.
    """
    there = {each: artifact.files(each, ".parquet") for each in SPLITS}
    manifest = artifact.manifest() or {}
    num_shards = manifest.get("stats", {}).get("shards") or max(1, *map(len, there.values()))
    names = [shard_name(split, shard) for shard in range(num_shards)]
    if missing := sorted({*names} - {*there[split]}):
        stage = _MADE_BY.get(artifact.name, artifact.name)
        raise SbpError(
            f"{artifact.url}: {missing[0]} is missing ({len(missing)} of {num_shards} shards of {split} are): put it "
            f"back, or use --redo {stage}"
        )
    return names


def fetch_rows(
    artifact: Artifact, split: Split, ids: Sequence[bytes], columns: Sequence[str], *, skips_missing: bool = False
) -> pa.Table:
    """Rows of some documents in the order of `ids`, with the columns named and `doc_id`; one shard in memory at a time.

    Args:
        skips_missing: documents that the artifact lacks have no row; without it they are an error.

    Raises:
        SbpError: a shard is missing, or a document is.
    """
    names = list_shards(artifact, split)
    places: dict[int, list[int]] = defaultdict(list)
    for place, doc_id in enumerate(ids):
        places[shard_of(doc_id, len(names))].append(place)
    wanted = ["doc_id", *(name for name in columns if name != "doc_id")]
    parts = [artifact.read_table(names[0], wanted).slice(0, 0)]
    for shard, those in sorted(places.items()):
        table = artifact.read_table(names[shard], wanted)
        asked = pa.array([ids[place] for place in those], table["doc_id"].type)
        found = pc.index_in(asked, value_set=table["doc_id"].combine_chunks())
        if found.null_count and skips_missing:
            those = [place for place, row in zip(those, found.to_pylist(), strict=True) if row is not None]
            places[shard], found = those, found.drop_null()
        elif found.null_count:
            missing = asked.filter(pc.is_null(found)).to_pylist()
            raise SbpError(
                f"{artifact.url}: {names[shard]} lacks {len(missing)} documents, such as {missing[0].hex()}: it is "
                f"not the {artifact.name} that they were chosen from"
            )
        parts.append(table.take(found))
    order = np.argsort([place for _, those in sorted(places.items()) for place in those])
    return pa.concat_tables(parts).take(pa.array(order, pa.int64()))


def read_stats(artifact: Artifact, names: Iterable[str]) -> Iterator[Stats]:
    """The counts of each file, in order; the files are asked for in threads."""
    return map_in_threads(artifact.read_stats, names)


def add_stats(parts: Iterable[Stats]) -> Stats:
    """Add up counts key by key; nested dicts too."""
    total: Stats = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, dict):
                total[key] = add_stats([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return total
