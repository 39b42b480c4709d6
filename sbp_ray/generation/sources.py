"""Which d1 are drawn, and in which order they are started."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from sbp_ray.artifacts import MANIFEST, Artifact
from sbp_ray.config import SynthesizeConfig
from sbp_ray.engine.messages import sample_seed
from sbp_ray.errors import SbpError
from sbp_ray.shards import shard_name


class Source(NamedTuple):
    """A drawn d1."""

    doc_id: str
    input_ids: list[int]


def corpus_shards(corpus: Artifact) -> list[str]:
    """The train shards that the corpus was made with.

    Raises:
        SbpError: one of them is not there.
    """
    there = corpus.files("train", ".parquet")
    if not corpus.exists(MANIFEST):
        return there
    manifest = corpus.read_json(MANIFEST)
    names = [shard_name("train", shard) for shard in range(manifest["settings"]["ingest"]["num_shards"])]
    missing = sorted({*names} - {*there})
    if missing:
        raise vanished(corpus, missing[0])
    return names


def vanished(corpus: Artifact, name: str) -> SbpError:
    """What to say when a shard that was there has gone."""
    return SbpError(f"{corpus.path(name)} is not there: bring it back and run the same command again to go on")


def shard_quotas(cfg: SynthesizeConfig, sizes: Sequence[int]) -> list[int]:
    """How many d1 each shard gives: what a uniform draw without replacement from all of them would take.

    Knowing only the shards' sizes this is a multivariate hypergeometric draw, so that shards choose alone and the
    number is exact.
    """
    available = sum(sizes)
    if not available:
        raise SbpError("the corpus has no train documents to draw d1 from: run jobs/ingest.py on a larger input")
    wanted = available if cfg.num_documents is None else cfg.num_documents
    if wanted > available:
        raise SbpError(
            f"synthesize.num_documents={wanted} is more than the {available} train documents: "
            f"lower it, or raise samples_per_document"
        )
    rng = np.random.default_rng([cfg.seed, available])
    return rng.multivariate_hypergeometric(sizes, wanted, method="marginals").tolist()


def choose_sources(table: pa.Table, quota: int, seed: int) -> list[Source]:
    """The `quota` documents of a corpus shard whose hash with the seed is smallest, in the shard's order."""
    doc_ids = table["doc_id"].to_pylist()
    by_hash = sorted(range(len(doc_ids)), key=lambda row: sample_seed(seed, doc_ids[row]))
    rows = sorted(by_hash[:quota])
    return [Source(doc_ids[row], ids) for row, ids in zip(rows, table["input_ids"].take(rows).to_pylist(), strict=True)]


def start_order(lengths: Sequence[int], tail: int) -> list[int]:
    """The order in which to start a shard's d1: as they come, but the last `tail` of them longest first.

    Long d1 get long d2, and one that is started last is waited for by an engine that is otherwise idle.
    """
    numbers = list(range(len(lengths)))
    cut = max(0, len(numbers) - tail)
    return numbers[:cut] + sorted(numbers[cut:], key=lambda number: -lengths[number])
