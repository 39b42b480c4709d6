"""corpus, synthesizer -> synthetic: draw d1, have the synthesizer write d2, keep what is sound.

One output shard for each train shard of the corpus, committed whole. A worker keeps its engine full across shard
borders: it has two shards open, and the requests of both queue for the same slots, first come first served.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from ray import serve
from ray.exceptions import RayError

from sbp_ray import metrics, schema
from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, EngineConfig, SynthesizeConfig
from sbp_ray.engine.deploy import DEPLOYMENT, running_synthesizer
from sbp_ray.engine.messages import Draw, Drawn, sample_seed
from sbp_ray.errors import SbpError
from sbp_ray.logs import Progress, set_up_logging
from sbp_ray.shards import Stats, add_stats, shard_name
from sbp_ray.text.contamination import read_evaluation_sets, told
from sbp_ray.text.pair_format import prompt_ids
from sbp_ray.text.quality import repetition_share
from sbp_ray.text.shingles import containment, shingle_hashes
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

logger = logging.getLogger(__name__)

_STAGE = "synthesize"
_OPEN_SHARDS = 2
_ATTEMPTS = 5
_TALLY_EVERY_S = 2.0


class Source(NamedTuple):
    """A drawn d1."""

    doc_id: str
    input_ids: list[int]


def synthesize_documents(
    cfg: SynthesizeConfig,
    *,
    engine: EngineConfig,
    decontaminate: DecontaminateConfig,
    corpus: Artifact,
    synthesizer: Artifact,
    out: Artifact,
) -> Stats:
    """Write `samples_per_document` documents for each of `num_documents` train documents drawn uniformly.

    Returns:
        Counts: `documents` kept, `tokens` in them, `d1` drawn, `samples` asked for, `drops` by reason, and what the
        evaluation sets hit; kept and dropped samples add up to `samples`.

    Raises:
        SbpError: there is nothing to draw from, an evaluation set cannot be read, or the engine cannot start.
    """
    ngrams = read_evaluation_sets(decontaminate)  # before any work
    shards = corpus.files("train", ".parquet")
    quotas = shard_quotas(cfg, [corpus.num_rows(shard) for shard in shards])
    todo = [{"shard": shard, "quota": quota} for shard, quota in enumerate(quotas) if not out.exists(_name(shard))]
    total = sum(quotas) * cfg.samples_per_document
    todo_samples = sum(item["quota"] for item in todo) * cfg.samples_per_document
    if len(todo) < len(shards):
        logger.info(f"{_STAGE} | {len(shards) - len(todo)} of {len(shards)} shards are there already")
    if todo:
        with (
            running_synthesizer(engine, synthesizer, owner=out.url) as app_name,
            _reported(total, done=total - todo_samples) as tally,
        ):
            worker = (cfg, engine, decontaminate, corpus, synthesizer, out, app_name, tally)
            _run(todo, worker, num_workers=min(max(engine.max_replicas, 1), len(todo)))
    stats = add_stats(out.read_stats(_name(shard)) for shard in range(len(shards)))
    stats["contaminated"] = ngrams.counted(stats["drops"].get("contaminated", 0), stats["contaminated"])
    if stats["contaminated"]:
        logger.info(f"{_STAGE} | {told(stats['contaminated'])}")
    return stats


def _name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


# Which d1


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


# Running


def _run(todo: list[dict[str, int]], arguments: tuple[Any, ...], *, num_workers: int) -> None:
    """One worker keeps `max_in_flight` requests open: as many workers as engines."""
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
        Synthesizer,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(size=num_workers, max_concurrent_calls_per_actor=_OPEN_SHARDS),
        num_cpus=0.5,
    )
    dataset.set_name(_STAGE)
    for row in dataset.iter_rows():
        metrics.count_drops(json.loads(row["stats"])["drops"], stage=_STAGE)


class Synthesizer:
    """A Ray Data worker: makes one output shard from one corpus shard."""

    def __init__(
        self,
        cfg: SynthesizeConfig,
        engine: EngineConfig,
        decontaminate: DecontaminateConfig,
        corpus: Artifact,
        synthesizer: Artifact,
        out: Artifact,
        app_name: str,
        tally: Any,
    ) -> None:
        set_up_logging()
        self._ngrams = read_evaluation_sets(decontaminate)
        self._cfg, self._window, self._corpus, self._out, self._tally = cfg, engine.max_model_len, corpus, out, tally
        self._version = synthesizer.fingerprint()
        self._tokenizer = load_tokenizer(synthesizer.local_copy("model"))
        self._special = special_ids(self._tokenizer)
        self._text_ids = frozenset(range(len(self._tokenizer))) - {*self._special}
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._handle = serve.get_deployment_handle(DEPLOYMENT, app_name=app_name)
        self._slots = asyncio.Semaphore(cfg.max_in_flight)  # first come first served: the older shard goes first

    async def __call__(self, item: dict[str, int]) -> dict[str, str]:
        """`{shard, quota}` -> `{stats}`, in JSON, once the shard is committed."""
        name = shard_name("train", item["shard"])
        table = await asyncio.to_thread(self._corpus.read_table, name, ["doc_id", "input_ids"])
        sources = choose_sources(table, item["quota"], self._cfg.seed)
        samples = [(source, sample) for source in sources for sample in range(self._cfg.samples_per_document)]
        drawn = await asyncio.gather(*[self._draw(source, sample) for source, sample in samples])
        rows, stats = self._sift(samples, drawn)
        stats["d1"] = len(sources)
        await asyncio.to_thread(self._out.write_table, _name(item["shard"]), rows, stats)
        return {"stats": json.dumps(stats)}

    async def _draw(self, source: Source, sample: int) -> tuple[Draw, Drawn | None]:
        """Ask for one sample; None where d1 leaves no room to write."""
        prompt = prompt_ids(source.input_ids, self._special)
        draw = Draw(
            prompt_ids=prompt,
            seed=sample_seed(self._cfg.seed, source.doc_id, sample),
            max_tokens=min(self._cfg.max_tokens, self._window - len(prompt)),
            temperature=self._cfg.temperature,
            top_p=self._cfg.top_p,
        )
        drawn = None
        if draw.max_tokens > self._cfg.min_tokens:
            async with self._slots:
                drawn = await self._ask(draw)
        self._tally.add.remote(1, len(drawn.input_ids) if drawn else 0)
        return draw, drawn

    async def _ask(self, draw: Draw) -> Drawn:
        """Through the deployment handle; again, on another replica, where one has died. The seed makes it the same."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._handle.draw.remote(draw)
            except RayError as error:
                if attempt == _ATTEMPTS:
                    raise
                logger.warning(f"{_STAGE} | a request failed and is sent again: {type(error).__name__}")
                await asyncio.sleep(attempt)
        raise AssertionError("unreachable")

    def _sift(
        self, samples: list[tuple[Source, int]], drawn: list[tuple[Draw, Drawn | None]]
    ) -> tuple[pa.Table, Stats]:
        """The rows to keep, in the samples' order, and counts of all."""
        reasons, texts = self._judged(samples, drawn)
        contaminated = self._ngrams.find(texts)
        rows: list[dict[str, Any]] = []
        drops: Counter[str] = Counter()
        seen: set[str] = set()
        for number, ((source, sample), (draw, written)) in enumerate(zip(samples, drawn, strict=True)):
            reason, text = reasons[number], texts[number]
            if reason is None and number in contaminated:
                reason = "contaminated"
            if reason is None and text in seen:
                reason = "duplicate"
            if reason is not None:
                drops[reason] += 1
                continue
            assert written is not None
            seen.add(text)
            rows.append(self._row(source, sample, draw, written, text))
        return pa.Table.from_pylist(rows, schema=schema.SYNTHETIC), {
            "samples": len(samples),
            "documents": len(rows),
            "tokens": sum(len(row["input_ids"]) for row in rows),
            "tokens_generated": sum(len(written.input_ids) for _, written in drawn if written),
            "drops": dict(drops),
            "contaminated": dict(Counter(name for names in contaminated.values() for name in names)),
        }

    def _judged(
        self, samples: list[tuple[Source, int]], drawn: list[tuple[Draw, Drawn | None]]
    ) -> tuple[list[str | None], list[str]]:
        """For each sample: why it is not sound, and its text if it is."""
        reasons: list[str | None] = []
        texts: list[str] = []
        for (source, _), (_, written) in zip(samples, drawn, strict=True):
            reason: str | None = "prompt_too_long"
            if written is not None:
                reason = drop_reason(written, source.input_ids, self._cfg, text_ids=self._text_ids)
            reasons.append(reason)
            texts.append("" if reason or written is None else self._tokenizer.decode(written.input_ids))
        return reasons, texts

    def _row(self, source: Source, sample: int, draw: Draw, written: Drawn, text: str) -> dict[str, Any]:
        return {
            "doc_id": blake2b(f"{source.doc_id}/{sample}".encode(), digest_size=16).hexdigest(),
            "d1_id": source.doc_id,
            "sample": sample,
            "text": text,
            "input_ids": written.input_ids,
            "finish_reason": written.finish_reason,
            "synthesizer": self._version,
            "seed": draw.seed,
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            "max_tokens": draw.max_tokens,
        }


# What to keep


def drop_reason(
    written: Drawn, d1_ids: Sequence[int], cfg: SynthesizeConfig, *, text_ids: Container[int]
) -> str | None:
    """Why a document is not kept, the first reason of those below; None for a sound one.

    Args:
        written: what the synthesizer wrote.
        d1_ids: the document it was given.
        cfg: the limits.
        text_ids: tokens that stand for text; others (marks of the pair format, unused rows of the embedding) do not
            belong inside a document.
    """
    ids = written.input_ids
    if written.finish_reason != "stop" and not cfg.keep_unfinished:
        return "unfinished"
    if len(ids) < cfg.min_tokens:
        return "too_short"
    if not all(token in text_ids for token in ids):
        return "not_text"
    if repetition_share(ids) > cfg.max_repetition:
        return "looping"
    if containment(shingle_hashes(ids), shingle_hashes(d1_ids)) > cfg.max_copy:
        return "copy_of_d1"
    return None


# How far it is


def _new_tally() -> Any:
    """An actor that adds up what the workers finish, for the driver's progress lines."""

    @ray.remote(num_cpus=0)
    class Tally:  # in a function, so that its process imports none of this module: 0.2 GiB and 5 s less
        def __init__(self) -> None:
            self._samples = self._tokens = 0

        def add(self, samples: int, tokens: int) -> None:
            self._samples += samples
            self._tokens += tokens

        def read(self) -> tuple[int, int]:
            return self._samples, self._tokens

    return Tally.remote()  # type: ignore[attr-defined]


@contextmanager
def _reported(total: int, *, done: int) -> Iterator[Any]:
    """Log progress and export metrics while the block runs."""
    tally = _new_tally()
    stop = threading.Event()
    reporter = threading.Thread(target=_report, args=(tally, total, done, stop), daemon=True)
    reporter.start()
    try:
        yield tally
    finally:
        stop.set()
        reporter.join()


def _report(tally: Any, total: int, done: int, stop: threading.Event) -> None:
    progress = Progress(_STAGE, total, "documents", done=done)
    samples = tokens = 0
    last = time.monotonic()
    is_last = False
    while not is_last:
        is_last = stop.wait(_TALLY_EVERY_S)
        now_samples, now_tokens = ray.get(tally.read.remote())
        now = time.monotonic()
        tokens_per_s = (now_tokens - tokens) / (now - last)
        metrics.count("sbp_documents", now_samples - samples, stage=_STAGE)
        metrics.count("sbp_tokens", now_tokens - tokens, stage=_STAGE)
        metrics.gauge("sbp_tokens_per_s", tokens_per_s, stage=_STAGE)
        metrics.gauge("sbp_progress", (done + now_samples) / total, stage=_STAGE)
        if now_samples > samples:
            progress.advance(now_samples - samples, f"{tokens_per_s:,.0f} tokens/s")
        samples, tokens, last = now_samples, now_tokens, now
