"""Which documents of a shard are d1, and in which order their samples are requested."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import SynthesizeConfig
from sbp_ray.doc_ids import id_numbers, ids_to_numpy
from sbp_ray.errors import SbpError
from sbp_ray.shards import fetch_rows, shard_name
from sbp_ray.text.hashing import id_ranks

_TOO_MANY_TO_DRAW = 10**9
"""Documents from which NumPy draws no hypergeometric sample any more."""


class Source(NamedTuple):
    """A d1."""

    doc_id: bytes
    input_ids: list[int]


def read_shard(made: Artifact, name: str, columns: list[str]) -> pa.Table:
    """
    Raises:
        SbpError: the shard was there when the job began, and has gone.
    """
    try:
        return made.read_table(name, columns)
    except FileNotFoundError:
        raise SbpError(
            f"{made.path(name)} is not there: bring it back and run the same command again to go on"
        ) from None


def shard_quotas(cfg: SynthesizeConfig, sizes: Sequence[int]) -> list[int]:
    """How many d1 each shard gives, as many as if they were chosen uniformly from all documents.

    Only the shards' sizes are known here, so the numbers are a multivariate hypergeometric sample; of a billion
    documents or more, each shard's proportionate part. Each shard then chooses its d1 alone.
    """
    available = sum(sizes)
    if not available:
        raise SbpError("the corpus has no train documents to choose d1 from: run jobs/ingest.py on a larger input")
    wanted = available if cfg.num_documents is None else cfg.num_documents
    if wanted > available:
        raise SbpError(
            f"synthesize.num_documents={wanted} is more than the {available} train documents: "
            f"lower it, or raise samples_per_document"
        )
    if wanted == available:
        return [*sizes]
    if available >= _TOO_MANY_TO_DRAW:
        bounds = [wanted * before // available for before in itertools.accumulate(sizes, initial=0)]
        return [end - start for start, end in itertools.pairwise(bounds)]
    rng = np.random.default_rng([cfg.seed, available])
    return rng.multivariate_hypergeometric(sizes, wanted, method="marginals").tolist()


class Sources(Sequence[Source]):
    """The d1 that a shard gives, in its order; in Arrow's memory, 4 bytes a token, until one is read."""

    def __init__(self, table: pa.Table) -> None:
        self._doc_ids = table["doc_id"].combine_chunks()
        self._input_ids = table["input_ids"].combine_chunks()

    def __len__(self) -> int:
        return len(self._doc_ids)

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(place)
        return Source(self._doc_ids[place].as_py(), self._input_ids[place].values.to_numpy().tolist())

    @property
    def doc_ids(self) -> list[bytes]:
        """Of all of them."""
        return self._doc_ids.to_pylist()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return pc.list_value_length(self._input_ids).to_pylist()


def choose_sources(table: pa.Table, quota: int, seed: int) -> Sources:
    """The `quota` documents of a corpus shard that the seed ranks first, in the shard's order."""
    chosen = choose_rows(table["doc_id"], quota, seed)
    return Sources(table.select(["doc_id", "input_ids"]).take(chosen))


def choose_rows(doc_ids: pa.ChunkedArray, quota: int, seed: int) -> NDArray[np.int64]:
    """Which rows of a shard those documents are, in order."""
    return np.sort(np.argsort(id_ranks("d1", seed, id_numbers(ids_to_numpy(doc_ids))), kind="stable")[:quota])


def start_order(lengths: Sequence[int], tail: int) -> list[int]:
    """The order in which to request a shard's d1: as they come, but the last `tail` of them longest first.

    Long d1 get long d2, and for the d2 that is requested last an otherwise idle engine waits.
    """
    numbers = list(range(len(lengths)))
    cut = max(0, len(numbers) - tail)
    return numbers[:cut] + sorted(numbers[cut:], key=lambda number: -lengths[number])


def read_related(pairs: Artifact, corpus: Artifact, shard: int, sources: Sources, most: int) -> dict[str, list[str]]:
    """Texts of the d2 of some d1 of a shard, by the d1's id in hex: so many of each at most, the most similar first.

    Raises:
        SbpError: a shard has gone, or the corpus lacks a d2.
    """
    table = read_shard(pairs, shard_name("train", shard), ["d1_id", "d2_id"])
    related: dict[bytes, list[bytes]] = {d1: [] for d1 in sources.doc_ids}
    for d1, d2 in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if len(related.get(d1, range(most))) < most:
            related[d1].append(d2)
    wanted = list({d2: None for several in related.values() for d2 in several})
    texts = dict(zip(wanted, fetch_rows(corpus, "train", wanted, ["text"])["text"].to_pylist(), strict=True))
    return {d1.hex(): [texts[d2] for d2 in several] for d1, several in related.items()}
