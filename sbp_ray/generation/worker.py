"""The Ray Data actor that makes shards of the synthetic corpus: asks the engines, judges, and keeps the ledger.

Row by row: each sample is asked for on its own, and its place is taken by the next as soon as it is written. The shard
after the one in work is open too, and fills the places that the last samples of a shard leave.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

from ray import serve
from ray.exceptions import RayError

from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, EngineConfig, SynthesizeConfig
from sbp_ray.engine.messages import DEPLOYMENT, Drawn, Draws, Refused, Sampling, sample_seed
from sbp_ray.errors import SbpError
from sbp_ray.generation.filters import REFUSED, TOO_LONG, drop_reason
from sbp_ray.generation.ledger import Ledger
from sbp_ray.generation.merging import merge_shard
from sbp_ray.generation.sources import Source, choose_sources, start_order, vanished
from sbp_ray.logs import set_up_logging
from sbp_ray.shards import shard_name
from sbp_ray.text.contamination import read_evaluation_sets
from sbp_ray.text.minhash import document_signature
from sbp_ray.text.pair_format import control_prompt_ids
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

logger = logging.getLogger(__name__)

OPEN_SHARDS = 2
_ATTEMPTS = 8
_SEGMENT_SAMPLES = 2048  # what is finished and not yet committed is bounded by twice this
_TELL_EVERY_S = 1.0


class Inputs(NamedTuple):
    """What a worker is made from."""

    cfg: SynthesizeConfig
    engine: EngineConfig
    decontaminate: DecontaminateConfig
    shingle_tokens: int
    corpus: Artifact
    embeddings: Artifact
    synthesizer: Artifact
    out: Artifact
    app_name: str
    tally: Any


class _Finished(NamedTuple):
    """A sample that need not be asked for again."""

    number: int
    source: Source
    sample: int
    num_prompt: int
    result: Drawn | Refused | None
    """None where d1 leaves no room to write."""


class ShardWorker:
    """Writes shards; two at a time."""

    def __init__(self, inputs: Inputs) -> None:
        set_up_logging()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._in, self._cfg = inputs, inputs.cfg
        self._ngrams = read_evaluation_sets(inputs.decontaminate)
        self._version = inputs.synthesizer.fingerprint()
        self._tokenizer = load_tokenizer(inputs.synthesizer.local_copy("model"))
        self._special = special_ids(self._tokenizer)
        self._text_ids = frozenset(range(len(self._tokenizer))) - {*self._special}
        self._handle = serve.get_deployment_handle(DEPLOYMENT, app_name=inputs.app_name).options(stream=True)
        self._num_slots = max_in_flight(inputs.cfg, inputs.engine)
        self._slots = asyncio.Semaphore(self._num_slots)
        self._starting = asyncio.Lock()  # one shard starts its samples at a time: the older one first
        self._told = time.monotonic()
        self._counts: Counter[str] = Counter()

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
        async with _Committer(self, ledger) as committer, asyncio.TaskGroup() as tasks, self._starting:
            for place in start_order([len(source.input_ids) for source in sources], 2 * self._num_slots):
                first = place * cfg.samples_per_document
                numbers = ledger.missing(range(first, first + cfg.samples_per_document))
                if numbers:
                    for _ in numbers:
                        await self._slots.acquire()
                    tasks.create_task(self._draw(sources[place], {n - first: n for n in numbers}, committer))
        return await asyncio.to_thread(merge_shard, cfg, shard, sources, embeddings=self._in.embeddings, out=out)

    def _read_sources(self, shard: int, quota: int) -> list[Source]:
        name = shard_name("train", shard)
        try:
            table = self._in.corpus.read_table(name, ["doc_id", "input_ids"])
        except FileNotFoundError:
            raise vanished(self._in.corpus, name) from None
        return choose_sources(table, quota, self._cfg.seed)

    async def _draw(self, source: Source, numbers: dict[int, int], committer: _Committer) -> None:
        """Draw samples of one d1, given by sample and number; frees their slots as they are done and taken in."""
        held = len(numbers)
        try:
            async for num_prompt, result, sample in self._results(source, list(numbers)):
                await committer.add(_Finished(numbers[sample], source, sample, num_prompt, result))
                self._slots.release()
                held -= 1
        finally:
            for _ in range(held):
                self._slots.release()

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
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async for drawn in self._handle.draw.remote(Draws(prompt, seeds, sampling)):
                    del seeds[drawn.sample]
                    yield len(prompt), drawn, drawn.sample
                return
            except RayError as error:  # on another replica, or on the one that takes the place; the seeds are the same
                logger.warning(f"synthesize | a request failed and is sent again: {type(error).__name__}")
                await asyncio.sleep(min(attempt, 5))
        for sample in seeds:
            yield len(prompt), Refused(sample, f"its engine died {_ATTEMPTS} times"), sample

    # From results to rows of a segment; runs in a thread

    def rows(self, finished: list[_Finished]) -> list[dict[str, Any]]:
        """Judged: each with the reason why it is dropped, or with all columns of the artifact."""
        rows = [self._judged(one) for one in finished]
        texts = ["" if row["reason"] else row["text"] for row in rows]
        for place, sets in self._ngrams.find(texts).items():
            rows[place] |= {"reason": "contaminated", "contaminated": sorted(sets)}
        return [row if row["reason"] is None else _without_content(row) for row in rows]

    def _judged(self, one: _Finished) -> dict[str, Any]:
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
            "doc_id": blake2b(f"{one.source.doc_id}/{one.sample}".encode(), digest_size=16).hexdigest(),
            "text": text,
            "input_ids": ids,
            "finish_reason": one.result.finish_reason,
            "synthesizer": self._version,
            "seed": sample_seed(self._cfg.seed, one.source.doc_id, one.sample),
            "temperature": self._cfg.temperature,
            "top_p": self._cfg.top_p,
            "max_tokens": min(self._cfg.max_tokens, self._in.engine.max_model_len - one.num_prompt),
        }

    def count(self, one: _Finished) -> None:
        """Tell the driver, once a second."""
        drawn = one.result if isinstance(one.result, Drawn) else None
        self._counts["documents"] += 1
        self._counts["tokens"] += len(drawn.input_ids) if drawn else 0
        self._counts["prompt_tokens"] += one.num_prompt if drawn else 0
        self._counts["prompt_tokens_cached"] += drawn.num_cached_tokens if drawn else 0
        if time.monotonic() - self._told >= _TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Tell the driver now."""
        self._in.tally.add.remote(dict(self._counts))
        self._counts, self._told = Counter(), time.monotonic()

    @property
    def commit_every_s(self) -> float:
        """Of the settings."""
        return self._cfg.resources.commit_every_s


class _Committer:
    """Gathers what is finished of a shard and commits it, every few seconds and one segment at a time.

    While two segments' worth wait for a slow store, `add` waits, and with it the slots: nothing piles up.
    """

    def __init__(self, worker: ShardWorker, ledger: Ledger) -> None:
        self._worker, self._ledger = worker, ledger
        self._finished: list[_Finished] = []
        self._room = asyncio.Condition()
        self._is_due = asyncio.Event()
        self._committing = asyncio.Lock()

    async def __aenter__(self) -> _Committer:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if kind is None:
            await self._commit()
            self._worker.tell()

    async def add(self, one: _Finished) -> None:
        """Take in a finished sample."""
        self._worker.count(one)
        async with self._room:
            await self._room.wait_for(lambda: len(self._finished) < 2 * _SEGMENT_SAMPLES or self._task.done())
        self._finished.append(one)
        if len(self._finished) >= _SEGMENT_SAMPLES or self._task.done():
            self._is_due.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_due.wait(), self._worker.commit_every_s)
            self._is_due.clear()
            await asyncio.shield(self._commit())

    async def _commit(self) -> None:
        async with self._committing:  # the last one waits for one that is on its way
            finished = self._finished[:]
            if finished:
                rows = await asyncio.to_thread(self._worker.rows, finished)
                await asyncio.to_thread(self._ledger.commit, rows)
                self._finished = self._finished[len(finished) :]
                async with self._room:
                    self._room.notify_all()


def _without_content(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("signature", "text", "input_ids")}


def max_in_flight(cfg: SynthesizeConfig, engine: EngineConfig) -> int:
    """Samples that a worker keeps open."""
    return cfg.resources.max_in_flight or math.ceil(1.25 * engine.resources.max_num_seqs)
