"""Random pairs, the control of the mined ones: the same d1, as often, each with a d2 drawn from the whole split.

    ask         worker of a shard of pairs: draws the place of each d2, and puts the request into the bucket of the
                shard that holds that place
    answer      worker of a shard of neighbours: the ids at the places in its bucket, put into the bucket of the
                shard that asked
    shuffle     worker of a shard of pairs: its d1 with the ids from all buckets

A place is a shard and a row in it, so that a uniform draw needs the shards' sizes and not their ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import bucket_writer, read_bucket
from sbp_ray.errors import SbpError
from sbp_ray.schema import DOC_ID, PAIR
from sbp_ray.shards import Stats, shard_name

# N = pairs of a shard, in their order

ASKED = pa.schema([("row", pa.int64()), ("pair", pa.int64())])
ANSWERED = pa.schema([("pair", pa.int64()), ("d2_id", DOC_ID)])


class RandomPairer:
    """One of the three steps, for one shard of the train split."""

    def __init__(self, seed: int, neighbors: Artifact, out: Artifact, sizes: list[int], scratch: str) -> None:
        self._seed, self._neighbors, self._out, self._sizes, self._scratch = seed, neighbors, out, sizes, scratch

    def __call__(self, item: dict[str, Any]) -> Stats:
        step: str = item["step"]
        return {"ask": self._ask, "answer": self._answer, "shuffle": self._shuffle}[step](item["shard"])

    def file(self, step: str, shard: int) -> str:
        """The file that a step commits."""
        return shard_name("train" if step == "shuffle" else f"{self._scratch}/{step}", shard)

    def _ask(self, shard: int) -> Stats:
        d1_ids = self._mined(shard).column("d1_id").combine_chunks()
        own = self._ids(shard).combine_chunks()
        starts = np.cumsum([0, *self._sizes])
        own_place_N = starts[shard] + pc.index_in(d1_ids, value_set=own).to_numpy().astype(np.int64)
        place_N = draw_places(own_place_N, int(starts[-1]), np.random.default_rng([self._seed, shard]))
        shard_N = np.searchsorted(starts, place_N, side="right") - 1
        asked = pa.table([pa.array(place_N - starts[shard_N]), pa.array(np.arange(len(place_N)))], schema=ASKED)
        with bucket_writer(self._out, self.file("ask", shard), ASKED) as writer:
            writer.write(asked, shard_N)
            writer.finish({})
        return {}

    def _answer(self, shard: int) -> Stats:
        asked = self._bucket("ask", shard, ASKED)
        d2_ids = self._ids(shard).take(asked.column("row"))
        answered = pa.table([asked.column("pair"), d2_ids], schema=ANSWERED)
        with bucket_writer(self._out, self.file("answer", shard), ANSWERED) as writer:
            writer.write(answered, asked.column("file").to_numpy())
            writer.finish({})
        return {}

    def _shuffle(self, shard: int) -> Stats:
        d1_ids = self._mined(shard).column("d1_id")
        answered = self._bucket("answer", shard, ANSWERED).sort_by("pair")
        assert len(answered) == len(d1_ids)
        unknown = pa.nulls(len(d1_ids), pa.float32())
        table = pa.table([d1_ids, answered.column("d2_id"), unknown, unknown], schema=PAIR)
        self._out.write_table(self.file("shuffle", shard), table, stats={"pairs": len(table)})
        return {"pairs": len(table)}

    def _mined(self, shard: int) -> pa.Table:
        return self._out.read_table(shard_name(f"{self._scratch}/mined-train", shard), columns=["d1_id"])

    def _ids(self, shard: int) -> pa.ChunkedArray:
        return self._neighbors.read_table(shard_name("train", shard), columns=["doc_id"]).column("doc_id")

    def _bucket(self, step: str, shard: int, schema: pa.Schema) -> pa.Table:
        files = [self.file(step, other) for other in range(len(self._sizes))]
        return read_bucket(self._out, files, shard, schema)


def draw_places(own_place_N: NDArray[np.int64], num_places: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """For each pair a uniform place, int64 [N]: never that of its d1, and no place twice with the same d1.

    Args:
        own_place_N: the place of each pair's d1.

    Raises:
        SbpError: a d1 has more pairs than there are other documents.
    """
    if len(own_place_N) and np.unique(own_place_N, return_counts=True)[1].max() >= num_places:
        raise SbpError(
            f"pair.source=random: {num_places} documents are too few to draw as many d2 as pair.max_as_d1 allows: "
            "lower it, or use a larger corpus"
        )
    place_N = np.full(len(own_place_N), -1, np.int64)
    while (is_open_N := place_N < 0).any():
        drawn = generator.integers(num_places - 1, size=int(is_open_N.sum()))
        place_N[is_open_N] = drawn + (drawn >= own_place_N[is_open_N])  # as if d1's place were not there
        _, first = np.unique(np.stack([own_place_N, place_N]), axis=1, return_index=True)
        is_again_N = np.ones(len(place_N), bool)
        is_again_N[first] = False
        place_N[is_again_N] = -1
    return place_N
