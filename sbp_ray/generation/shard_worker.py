"""The Ray Data actor that makes shards of the synthetic corpus.

Row by row: each sample is requested on its own, and its place is taken by the next as soon as it is written. The shard
after the one in work is open too, and fills the places that the last samples of a shard leave.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import uuid
from typing import Any, NamedTuple

from ray import serve

from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, EngineConfig, SynthesizeConfig
from sbp_ray.engine.deploy import identity_of
from sbp_ray.engine.messages import DEPLOYMENT
from sbp_ray.errors import wait_for_outcome
from sbp_ray.generation.d1 import choose_sources, read_related, read_shard
from sbp_ray.generation.engines import Engines
from sbp_ray.generation.merging import merge_shard
from sbp_ray.generation.open_shard import OpenShard, Shared, Slots, write_error
from sbp_ray.generation.rephraser import Rephraser
from sbp_ray.generation.sample_rows import RowMaker, Writer, find_writer
from sbp_ray.logs import set_up_logging
from sbp_ray.shards import Stats, shard_name

OPEN_SHARDS = 2


class Inputs(NamedTuple):
    """What a worker is made from."""

    cfg: SynthesizeConfig
    engine: EngineConfig
    decontaminate: DecontaminateConfig
    shingle_tokens: int
    corpus: Artifact
    synthesizer: Artifact | None
    """None where an outside model writes."""
    out: Artifact
    app_name: str = ""
    max_bad: int = 0
    """Samples of the whole artifact that may fail for good."""
    coordinator: Any = None
    """The driver's actor: see `generation.coordinator`."""
    pairs: Artifact | None = None
    """Where an outside model is given pairs."""


class ShardWorker:
    """Writes shards; two at a time."""

    def __init__(self, inputs: Inputs) -> None:
        set_up_logging()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        cfg, engine = inputs.cfg, inputs.engine
        writer = find_writer(cfg, inputs.corpus, inputs.synthesizer)
        own_slots = max_in_flight(cfg, engine)
        self._corpus, self._pairs = inputs.corpus, inputs.pairs
        self._shared = Shared(
            name=uuid.uuid4().hex,
            cfg=cfg,
            out=inputs.out,
            rows=RowMaker(
                cfg,
                writer,
                inputs.decontaminate,
                window=engine.max_model_len,
                shingle_tokens=inputs.shingle_tokens,
            ),
            engines=_reach_writer(inputs, writer),
            slots=Slots(own_slots),
            own_slots=own_slots,
            starting=asyncio.Lock(),
            coordinator=inputs.coordinator,
            max_bad=inputs.max_bad,
        )

    async def __call__(self, item: dict[str, int]) -> dict[str, str]:
        """`{shard, quota}` -> `{outcome}` in JSON, with the counts of the shard once it is merged."""
        return {"outcome": json.dumps(await wait_for_outcome(self._write(**item)))}

    async def _write(self, shard: int, quota: int) -> Stats:
        shared = self._shared
        columns = ["doc_id", "input_ids"]
        table = await asyncio.to_thread(read_shard, self._corpus, shard_name("train", shard), columns)
        sources = choose_sources(table, quota, shared.cfg.seed)
        related: dict[str, list[str]] = {}
        if self._pairs is not None and isinstance(shared.engines, Rephraser):
            most = shared.cfg.samples_per_document
            related = await asyncio.to_thread(read_related, self._pairs, self._corpus, shard, sources, most)
            shared.engines.related |= related
        await (await asyncio.to_thread(OpenShard, shared, shard, sources)).write()
        if isinstance(shared.engines, Rephraser):
            shared.engines.forget(related)  # else a worker would hold the texts of all its shards
        shared.coordinator.closed.remote(shared.name, shard)
        try:
            return await asyncio.to_thread(merge_shard, shared.cfg, shard, sources, shared.out)
        except OSError as error:
            raise write_error(shared.out, error) from None


def _reach_writer(inputs: Inputs, writer: Writer) -> Engines | Rephraser:
    cfg, give_up_after_s = inputs.cfg, inputs.cfg.resources.give_up_after_s
    if cfg.rephrase is not None:
        return Rephraser(cfg.rephrase, writer.tokenizer, give_up_after_s=give_up_after_s)
    assert inputs.synthesizer is not None
    handle = serve.get_deployment_handle(DEPLOYMENT, app_name=inputs.app_name).options(stream=True)
    identity = identity_of(inputs.engine, inputs.synthesizer)
    silent_for_s = 2 * inputs.engine.resources.stalled_after_s  # first the replica's own watch gets its chance
    return Engines(handle, identity, silent_for_s=silent_for_s, give_up_after_s=give_up_after_s)


def max_in_flight(cfg: SynthesizeConfig, engine: EngineConfig) -> int:
    """Samples that a worker keeps requested."""
    if cfg.rephrase is not None:
        return cfg.rephrase.resources.at_once
    return cfg.resources.max_in_flight or math.ceil(1.25 * engine.resources.max_num_seqs)
