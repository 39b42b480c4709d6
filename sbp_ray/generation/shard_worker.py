"""The Ray Data actor that makes shards of the synthetic corpus: asks the engines, judges, and keeps the ledger.

Row by row: each sample is asked for on its own, and its place is taken by the next as soon as it is written. The shard
after the one in work is open too, and fills the places that the last samples of a shard leave.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from ray import serve

from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, EngineConfig, SynthesizeConfig
from sbp_ray.engine.messages import DEPLOYMENT, Drawn, Refused, Sampling, sample_seed
from sbp_ray.errors import SbpError
from sbp_ray.generation.committing import Committer, Finished, cannot_be_written
from sbp_ray.generation.d1 import Source, Sources, choose_sources, read_shard, start_order
from sbp_ray.generation.drawing import Engines
from sbp_ray.generation.filters import REFUSED, TOO_LONG, drop_reason
from sbp_ray.generation.ledger import Ledger
from sbp_ray.generation.merging import merge_shard, quarantine_so_far
from sbp_ray.generation.slots import Slots
from sbp_ray.logs import set_up_logging
from sbp_ray.rounds import round_of_text
from sbp_ray.shards import shard_name
from sbp_ray.text.contamination import read_evaluation_sets
from sbp_ray.text.hashing import hash_bytes
from sbp_ray.text.minhash import document_signature
from sbp_ray.text.pair_format import control_prompt_ids
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

logger = logging.getLogger(__name__)

OPEN_SHARDS = 2


class Inputs(NamedTuple):
    """What a worker is made from."""

    cfg: SynthesizeConfig
    engine: EngineConfig
    decontaminate: DecontaminateConfig
    shingle_tokens: int
    corpus: Artifact
    synthesizer: Artifact
    out: Artifact
    app_name: str = ""
    max_bad: int = 0
    """Samples of the whole artifact that may fail for good."""
    tally: Any = None
    """The driver's actor: see `generation.tally`."""


class ShardWorker:
    """Writes shards; two at a time."""

    def __init__(self, inputs: Inputs) -> None:
        set_up_logging()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._in, self._cfg = inputs, inputs.cfg
        self._ngrams = read_evaluation_sets(inputs.decontaminate)
        self._version, self._round = inputs.synthesizer.fingerprint(), round_of_text(inputs.synthesizer)
        self._tokenizer = load_tokenizer(inputs.synthesizer.local_copy("model"))
        self._special = special_ids(self._tokenizer)
        self._text_ids = frozenset(range(len(self._tokenizer))) - {*self._special}
        self._engines = Engines(
            serve.get_deployment_handle(DEPLOYMENT, app_name=inputs.app_name).options(stream=True),
            silent_for_s=2 * inputs.engine.resources.stalled_after_s,  # first the replica's own watch gets its chance
            give_up_after_s=inputs.cfg.resources.give_up_after_s,
        )
        self._own_slots = max_in_flight(inputs.cfg, inputs.engine)
        self._slots = Slots(self._own_slots)
        self._starting = asyncio.Lock()  # one shard starts its samples at a time: the older one first
        self._name = uuid.uuid4().hex

    async def __call__(self, item: dict[str, int]) -> dict[str, str]:
        """`{shard, quota}` -> `{stats, error}` once the shard is committed; what the user can fix travels as a row."""
        try:
            return {"stats": json.dumps(await self._make(item["shard"], item["quota"])), "error": ""}
        except SbpError as error:
            return {"stats": "", "error": str(error)}

    async def _make(self, shard: int, quota: int) -> dict[str, Any]:
        cfg, out = self._cfg, self._in.out
        sources = await asyncio.to_thread(self._read_sources, shard, quota)
        ledger = await asyncio.to_thread(Ledger, out, shard, len(sources) * cfg.samples_per_document)
        try:
            await self._write(shard, sources, ledger)
        except ExceptionGroup as group:
            raise _first(group) from None
        self._in.tally.closed.remote(self._name, shard)
        try:
            return await asyncio.to_thread(merge_shard, cfg, shard, sources, out)
        except OSError as error:
            raise cannot_be_written(out.url, error) from None

    def _read_sources(self, shard: int, quota: int) -> Sources:
        table = read_shard(self._in.corpus, shard_name("train", shard), ["doc_id", "input_ids"])
        return choose_sources(table, quota, self._cfg.seed)

    async def _write(self, shard: int, sources: Sources, ledger: Ledger) -> None:
        """Draw and commit what is missing of a shard. What fails first cancels all else; what is finished by then is
        committed, if that can be done."""

        async def report(finished: list[Finished]) -> None:
            await self._report(shard, ledger, finished)

        await report([])
        committer = Committer(ledger, judge=self.rows, report=report, every_s=self._cfg.resources.commit_every_s)
        async with asyncio.TaskGroup() as tasks:
            committing = tasks.create_task(committer.run())
            try:
                async with asyncio.TaskGroup() as draws, self._starting:
                    await self._start(sources, ledger, committer, draws)
            finally:
                committer.close()
                await asyncio.wait({committing})

    async def _start(self, sources: Sources, ledger: Ledger, committer: Committer, draws: asyncio.TaskGroup) -> None:
        """Ask for one document after another, each when there are slots for its samples.

        A document with more samples than there are slots is asked for in parts.
        """
        samples = self._cfg.samples_per_document
        for place in start_order(sources.lengths, 2 * self._slots.limit):
            first = place * samples
            missing = ledger.missing(range(first, first + samples))
            for start in range(0, len(missing), self._own_slots):
                numbers = missing[start : start + self._own_slots]
                await self._slots.take(len(numbers))
                draws.create_task(self._draw(sources[place], {n - first: n for n in numbers}, committer))

    async def _report(self, shard: int, ledger: Ledger, finished: list[Finished]) -> None:
        """Count what has been committed; learn how many samples may be kept open from now on.

        Raises:
            SbpError: more samples cannot be drawn than `max_bad_share` allows.
        """
        counts = counts_of(finished)
        bad, share = await self._in.tally.committed.remote(self._name, shard, ledger.num_bad, counts)
        await self._slots.resize(int(self._own_slots * share))
        if bad > self._in.max_bad:
            await asyncio.to_thread(quarantine_so_far, shard, self._in.out)
            raise too_many_bad(bad, self._in.max_bad, self._cfg, self._in.out)

    async def _draw(self, source: Source, numbers: dict[int, int], committer: Committer) -> None:
        """Have the samples of one d1 written, and give each one's slot back once it is taken in.

        Args:
            numbers: by sample, the number of each in the shard.
        """
        held = len(numbers)
        try:
            async for num_prompt, result, sample in self._results(source, list(numbers)):
                await committer.add(Finished(numbers[sample], source, sample, num_prompt, result))
                await self._slots.give_back()
                held -= 1
        finally:
            await self._slots.give_back(held)

    async def _results(
        self, source: Source, samples: list[int]
    ) -> AsyncIterator[tuple[int, Drawn | Refused | None, int]]:
        """Length of the prompt, result and sample, in the order in which they are done."""
        prompt = control_prompt_ids(self._cfg.condition, source.input_ids, self._special)
        room = min(self._cfg.max_tokens, self._in.engine.max_model_len - len(prompt))
        if room <= self._cfg.min_tokens:
            for sample in samples:
                yield len(prompt), None, sample
            return
        sampling = Sampling(room, self._cfg.temperature, self._cfg.top_p)
        seeds = {sample: sample_seed(self._cfg.seed, source.doc_id, sample) for sample in samples}
        async for drawn in self._engines.draw(source.doc_id.hex(), prompt, seeds, sampling):
            yield len(prompt), drawn, drawn.sample

    # From results to rows of a segment; runs in a thread

    def rows(self, finished: list[Finished]) -> list[dict[str, Any]]:
        """Judged: each with the reason why it is dropped, or with all columns of the artifact."""
        rows = [self._judged(one) for one in finished]
        texts = ["" if row["reason"] else row["text"] for row in rows]
        for place, sets in self._ngrams.find(texts).items():
            rows[place] |= {"reason": "contaminated", "contaminated": sorted(sets)}
        return [row if row["reason"] is None else _without_content(row) for row in rows]

    def _judged(self, one: Finished) -> dict[str, Any]:
        row: dict[str, Any] = {"number": one.number, "d1_id": one.source.doc_id, "sample": one.sample}
        row |= {"num_prompt": one.num_prompt, "num_generated": 0, "num_cached": 0}
        if not isinstance(one.result, Drawn):
            detail = one.result.reason if one.result else f"{one.num_prompt} tokens of {self._in.engine.max_model_len}"
            return row | {"reason": REFUSED if one.result else TOO_LONG, "detail": detail}
        ids = one.result.input_ids
        reason = drop_reason(one.result, one.source.input_ids, self._cfg, text_ids=self._text_ids)
        row |= {"reason": reason, "num_generated": len(ids), "num_cached": one.result.num_cached_tokens}
        if reason:
            return row
        text = self._tokenizer.decode(ids)
        return row | {
            "signature": document_signature(text, self._in.shingle_tokens)[0].tobytes(),
            "doc_id": hash_bytes("synthetic", one.source.doc_id, one.sample, num_bytes=16),
            "text": text,
            "input_ids": ids,
            "finish_reason": one.result.finish_reason,
            "synthesizer": self._version,
            "round": self._round,
            "seed": sample_seed(self._cfg.seed, one.source.doc_id, one.sample),
            "temperature": self._cfg.temperature,
            "top_p": self._cfg.top_p,
            "max_tokens": min(self._cfg.max_tokens, self._in.engine.max_model_len - one.num_prompt),
        }


def counts_of(finished: list[Finished]) -> dict[str, int]:
    """What the tally adds up."""
    counts: Counter[str] = Counter()
    for one in finished:
        drawn = one.result if isinstance(one.result, Drawn) else None
        counts["documents"] += 1
        counts["tokens"] += len(drawn.input_ids) if drawn else 0
        counts["prompt_tokens"] += one.num_prompt if drawn else 0
        counts["prompt_tokens_cached"] += drawn.num_cached_tokens if drawn else 0
    return dict(counts)


def too_many_bad(bad: int, max_bad: int, cfg: SynthesizeConfig, out: Artifact) -> SbpError:
    """The error budget is spent."""
    return SbpError(
        f"{bad} samples could not be drawn, more than synthesize.max_bad_share={cfg.max_bad_share} allows ({max_bad}): "
        f"see {out.path('quarantine')}, then go on with the same command and a larger synthesize.max_bad_share, or "
        "start again in a new run_dir with a larger engine.max_model_len"
    )


def _first(group: ExceptionGroup) -> Exception:
    """The exception to raise for a group: one that the user can fix, else the first."""
    every: list[Exception] = []
    for error in group.exceptions:
        every.append(_first(error) if isinstance(error, ExceptionGroup) else error)
    return next((error for error in every if isinstance(error, SbpError)), every[0])


def _without_content(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("signature", "text", "input_ids")}


def max_in_flight(cfg: SynthesizeConfig, engine: EngineConfig) -> int:
    """Samples that a worker keeps open."""
    return cfg.resources.max_in_flight or math.ceil(1.25 * engine.resources.max_num_seqs)
