"""corpus, embeddings, synthesizer -> synthetic: draw d1, have the synthesizer write d2, keep what is sound.

One output shard for each train shard of the corpus. Rows never pass through Ray's object store: a worker gets them from
the engines' handle and writes them to storage, and what travels to the driver is counts. Once all shards are there,
they are compared with one another.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

import ray

from sbp_ray import metrics
from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.cluster import WRITER_CPUS
from sbp_ray.config import DecontaminateConfig, EngineConfig, Resources, SynthesizeConfig
from sbp_ray.engine.running import running_synthesizer
from sbp_ray.errors import SbpError
from sbp_ray.generation.across import ShardComparer
from sbp_ray.generation.filters import BAD
from sbp_ray.generation.ledger import num_done, part_name
from sbp_ray.generation.merging import compared_name, remove_traces
from sbp_ray.generation.sources import corpus_shards, shard_quotas
from sbp_ray.generation.tally import reported
from sbp_ray.generation.worker import OPEN_SHARDS, Inputs, ShardWorker, too_many_bad
from sbp_ray.rounds import round_of_text
from sbp_ray.shards import Stats, add_stats, run_tasks
from sbp_ray.text.contamination import read_evaluation_sets, told

logger = logging.getLogger(__name__)

_STAGE = "synthesize"
TAKEN = "taken.json"


def synthesize_documents(
    cfg: SynthesizeConfig,
    *,
    engine: EngineConfig,
    decontaminate: DecontaminateConfig,
    shingle_tokens: int,
    corpus: Artifact,
    embeddings: Artifact,
    synthesizer: Artifact,
    out: Artifact,
) -> Stats:
    """Write `samples_per_document` documents for each of `num_documents` train documents drawn uniformly.

    Args:
        shingle_tokens: words in a shingle of the embeddings' signatures.

    Returns:
        Counts: `documents` kept, `tokens` in them, `d1` drawn, `samples` asked for, `drops` by reason, the same
        of `real_text`, and what the evaluation sets hit; kept and dropped samples add up to `samples`. And `round`.

    Raises:
        SbpError: there is nothing to draw from, a shard or an evaluation set cannot be read, the engine cannot start,
            or too many samples cannot be drawn.
    """
    ngrams = read_evaluation_sets(decontaminate)  # before any work
    number = round_of_text(synthesizer)
    if cfg.finished_of is not None:
        taken = take_finished(Artifact("synthetic", cfg.finished_of), synthesizer, out)
        return _totals(out, taken, ngrams, number)
    shards = corpus_shards(corpus)
    quotas = shard_quotas(cfg, [corpus.num_rows(shard) for shard in shards])
    todo = [{"shard": shard, "quota": quota} for shard, quota in enumerate(quotas) if not out.exists(part_name(shard))]
    for shard in {*range(len(shards))} - {item["shard"] for item in todo}:
        remove_traces(out, shard)  # of a run that died just before it did
    if len(todo) < len(shards):
        logger.info(f"{_STAGE} | {len(shards) - len(todo)} of {len(shards)} shards are there already")
    spent = {}
    if todo:
        total = sum(quotas) * cfg.samples_per_document
        missing = sum(item["quota"] for item in todo) * cfg.samples_per_document
        done = total - missing + num_done(out, [item["shard"] for item in todo])
        max_bad = int(cfg.max_bad_share * total)
        bad = _bad_of_finished(out, len(shards))
        if sum(bad.values()) > max_bad:
            raise too_many_bad(sum(bad.values()), max_bad, cfg, out)
        num_workers = min(engine.resources.max_replicas, len(todo))
        price = cfg.resources.dollars_per_node_hour
        with running_synthesizer(engine, synthesizer, owner=out.url) as app_name:
            start = time.monotonic()
            with reported(
                total, done=done, bad=bad, num_todo=len(todo), num_workers=num_workers, dollars_per_node_hour=price
            ) as (reporter, tally):
                arguments = (cfg, engine, decontaminate, shingle_tokens, corpus, embeddings, synthesizer, out, app_name)
                _run(todo, Inputs(*arguments, max_bad, tally), num_workers)
            spent = {"last_run": _spent(reporter.tokens, reporter.dollars, time.monotonic() - start)}
    _compare_shards(cfg, len(shards), out)
    return _totals(out, [part_name(shard) for shard in range(len(shards))], ngrams, number) | spent


def take_finished(growing: Artifact, synthesizer: Artifact, out: Artifact) -> list[str]:
    """Copy the shards of another run's artifact that are finished by now; returns their names.

    A run that goes on takes no more than it took first: training must find the same rows again.

    Raises:
        SbpError: there is none yet, or another synthesizer wrote them.
    """
    if not out.exists(TAKEN):
        out.write_json(TAKEN, growing.files(suffix=".parquet"))
    names = out.read_json(TAKEN)
    if not names:
        out.fs.delete_file(out.path(TAKEN))
        raise SbpError(f"synthesize.finished_of={growing.url}: no shard is finished there: wait for the first")
    version = growing.read_json(STARTED)["recipe"]["inputs"]["synthesizer"]
    if version != synthesizer.fingerprint():
        raise SbpError(
            f"synthesize.finished_of={growing.url} was written by synthesizer {version}, which is "
            f"{synthesizer.fingerprint()} here: link the other run's artifacts into this run_dir"
        )
    for name in names:
        if not out.exists(name):
            out.write_table(name, growing.read_table(name), stats=growing.read_stats(name))
    logger.info(f"{_STAGE} | took {len(names)} finished shards of {growing.url}")
    return names


def _spent(tokens: int, dollars: float, seconds: float) -> Stats:
    """What the run that just ended did; earlier ones of the same artifact are not in it."""
    return {
        "tokens_generated": tokens,
        "wall_s": round(seconds, 1),
        "tokens_per_s": round(tokens / seconds, 1),
        "dollars": round(dollars, 2),
        "dollars_per_billion_tokens": round(dollars / tokens * 1e9, 2) if tokens else None,
    }


def _totals(out: Artifact, parts: Sequence[str], ngrams: Any, number: int) -> Stats:
    stats = add_stats(map(out.read_stats, parts))
    stats["contaminated"] = ngrams.counted(stats["drops"].get("contaminated", 0), stats["contaminated"])
    stats["round"] = number
    if stats["contaminated"]:
        logger.info(f"{_STAGE} | {told(stats['contaminated'])}")
    prompts = stats["prompt_tokens"]
    stats["prefix_cache_hit_rate"] = round(stats["prompt_tokens_cached"] / prompts, 4) if prompts else None
    return stats


def _bad_of_finished(out: Artifact, num_shards: int) -> dict[int, int]:
    """By shard, samples that were never drawn."""
    made = {shard: part_name(shard) for shard in range(num_shards) if out.exists(part_name(shard))}
    return {shard: sum(out.read_stats(name)["drops"].get(reason, 0) for reason in BAD) for shard, name in made.items()}


def _compare_shards(cfg: SynthesizeConfig, num_shards: int, out: Artifact) -> None:
    """Drop copies of documents of other shards, on all CPUs of the cluster: the engines have gone."""
    todo = [{"shard": shard} for shard in range(num_shards) if not out.exists(compared_name(shard))]
    everywhere = Resources(num_workers=max(1, int(ray.cluster_resources().get("CPU", 1))))
    num_done = num_shards - len(todo)
    run_tasks("synthesize-copies", ShardComparer, (out, cfg.max_jaccard), todo, num_done=num_done, resources=everywhere)


def _run(todo: list[dict[str, int]], inputs: Inputs, num_workers: int) -> None:
    """As many workers as engines; each works on one shard and has the next one open."""
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
        ShardWorker,
        fn_constructor_args=(inputs,),
        compute=ray.data.ActorPoolStrategy(size=num_workers, max_concurrent_calls_per_actor=OPEN_SHARDS),
        num_cpus=WRITER_CPUS,
    )
    dataset.set_name(_STAGE)
    for row in dataset.iter_rows():
        if row["error"]:
            raise SbpError(row["error"])
        metrics.count_drops(json.loads(row["stats"])["drops"], stage=_STAGE)
