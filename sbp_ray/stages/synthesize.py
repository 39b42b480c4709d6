"""corpus, embeddings, synthesizer -> synthetic: choose d1, have the synthesizer write d2, keep what is sound.

One output shard for each train shard of the corpus. Rows never pass through Ray's object store: a worker gets them from
the engines' handle and writes them to storage, and what travels to the driver is counts. Once all shards are there,
copies among them and of the corpus are dropped, and samples whose scores are too bad.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import ray

from sbp_ray import metrics
from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.cluster_limits import WRITER_CPUS
from sbp_ray.config import DecontaminateConfig, EngineConfig, Resources, SynthesizeConfig
from sbp_ray.engine.deploy import identity_of, settle_dtype
from sbp_ray.engine.running import running_synthesizer
from sbp_ray.errors import Outcome, SbpError
from sbp_ray.generation.coordinator import coordinate
from sbp_ray.generation.d1 import shard_quotas
from sbp_ray.generation.filters import BAD
from sbp_ray.generation.merging import finished_shards, merged_name, part_name, signatures_name
from sbp_ray.generation.open_shard import too_many_bad
from sbp_ray.generation.parts import make_parts
from sbp_ray.generation.rephraser import require_rephraser
from sbp_ray.generation.scores import describe_scores, summarise_scores
from sbp_ray.generation.segments import count_done, remove_segments
from sbp_ray.generation.shard_worker import OPEN_SHARDS, Inputs, ShardWorker
from sbp_ray.logs import duration
from sbp_ray.processor import SETTLED
from sbp_ray.rounds import round_of_text
from sbp_ray.shards import Stats, add_stats, list_shards, read_stats
from sbp_ray.steps import ACTOR_RETRIES, read_dataset
from sbp_ray.text.contamination import EvaluationNgrams, describe_contamination, read_evaluation_sets
from sbp_ray.threads import map_in_threads

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
    synthesizer: Artifact | None,
    pairs: Artifact | None = None,
    out: Artifact,
) -> Stats:
    """Write `samples_per_document` documents for each of `num_documents` train documents, chosen uniformly.

    Args:
        shingle_tokens: words in a shingle of the embeddings' signatures.
        synthesizer: None where an outside model writes (`cfg.rephrase`).
        pairs: what an outside model is given that rewrites pairs.

    Returns:
        Counts: `documents` kept, `tokens` in them, `d1` chosen, `samples` requested, `drops` by reason, the same
        of `real_text`, and what the evaluation sets hit; kept and dropped samples add up to `samples`. And `round`,
        and `written_by` of what our engines wrote.

    Raises:
        SbpError: there is nothing to choose from, a shard or an evaluation set cannot be read, the engine cannot
            start, or too many samples cannot be written.
    """
    ngrams = read_evaluation_sets(decontaminate)  # before any work
    number = 1 if synthesizer is None else round_of_text(synthesizer)
    shards = list_shards(corpus, "train")
    spent: Stats = {}
    if cfg.finished_of is not None and synthesizer is not None:
        take_finished(Artifact("synthetic", cfg.finished_of), synthesizer, out)
    else:
        if synthesizer is not None:
            engine = _settle_dtype(engine, out)
            spent["written_by"] = identity_of(engine, synthesizer)
        inputs = Inputs(cfg, engine, decontaminate, shingle_tokens, corpus, synthesizer, out, pairs=pairs)
        spent |= _write_shards(shards, inputs)
    make_parts(
        cfg,
        len(shards),
        corpus=corpus,
        embeddings=embeddings,
        synthesizer=synthesizer,
        out=out,
        resources=_all_cpus(),
    )
    return _totals(out, ngrams, number) | spent


def _settle_dtype(engine: EngineConfig, out: Artifact) -> EngineConfig:
    """The same in all attempts: an artifact is written in one type, on whatever processor it is gone on with."""
    if engine.dtype != "auto":
        return engine
    settled = out.write_json_once(SETTLED, lambda: {"dtype": settle_dtype(engine).dtype})
    logger.info(f"{_STAGE} | engines compute in {settled['dtype']} (engine.dtype=auto)")
    return engine.model_copy(update=settled)


def _write_shards(shards: Sequence[str], inputs: Inputs) -> Stats:
    """Write and merge the shards that are not merged yet; returns what that took."""
    cfg, engine, out = inputs.cfg, inputs.engine, inputs.out
    quotas = shard_quotas(cfg, list(map_in_threads(inputs.corpus.num_rows, shards)))
    finished = finished_shards(out)
    todo = [{"shard": shard, "quota": quota} for shard, quota in enumerate(quotas) if shard not in finished]
    for shard in finished:
        remove_segments(out, shard)  # of a run that died just before it did
    if finished:
        logger.info(f"{_STAGE} | {len(finished)} of {len(shards)} shards are there already")
    if not todo:
        return {}
    if cfg.rephrase is not None:
        require_rephraser(cfg)
    total = sum(quotas) * cfg.samples_per_document
    missing = sum(item["quota"] for item in todo) * cfg.samples_per_document
    max_bad = int(cfg.max_bad_share * total)
    drops = {shard: out.read_stats(name)["drops"] for shard, name in finished.items()}
    bad = {shard: sum(by_reason.get(reason, 0) for reason in BAD) for shard, by_reason in drops.items()}
    if sum(bad.values()) > max_bad:
        raise too_many_bad(sum(bad.values()), max_bad, cfg, out)
    num_workers = min(engine.resources.max_replicas, len(todo)) if cfg.rephrase is None else 1
    coordinating = coordinate(
        total,
        done=total - missing + count_done(out, [item["shard"] for item in todo]),
        bad=bad,
        num_todo=len(todo),
        num_workers=num_workers,
        dollars_per_node_hour=cfg.resources.dollars_per_node_hour,
    )
    with _running_writer(inputs) as app_name:
        start = time.monotonic()
        with coordinating as (reporter, coordinator):
            _run(todo, inputs._replace(app_name=app_name, max_bad=max_bad, coordinator=coordinator), num_workers)
        return {"last_run": reporter.summary(time.monotonic() - start)}


def _running_writer(inputs: Inputs) -> AbstractContextManager[str]:
    """The Serve application of the synthesizer; an outside model runs elsewhere."""
    if inputs.synthesizer is None:
        return nullcontext("")
    return running_synthesizer(inputs.engine, inputs.synthesizer, owner=inputs.out.url)


def take_finished(growing: Artifact, synthesizer: Artifact, out: Artifact) -> None:
    """Copy the shards of another run's artifact that are finished by now.

    A run that goes on takes no more than it took first: training must find the same rows again. Those that were not yet
    freed of copies there are freed of them here, among what was taken.

    Raises:
        SbpError: there is none yet, or another synthesizer wrote them.
    """
    if not out.exists(TAKEN):
        out.write_json(TAKEN, sorted(finished_shards(growing)))
    shards = out.read_json(TAKEN)
    if not shards:
        out.fs.delete_file(out.path(TAKEN))
        raise SbpError(f"synthesize.finished_of={growing.url}: no shard is finished there: wait for the first")
    version = growing.read_json(STARTED)["recipe"]["inputs"]["synthesizer"]
    if version != synthesizer.fingerprint():
        raise SbpError(
            f"synthesize.finished_of={growing.url} was written by synthesizer {version}, which is "
            f"{synthesizer.fingerprint()} here: link the other run's artifacts into this run_dir"
        )
    for shard in {*shards} - finished_shards(out).keys():
        _copy_shard(growing, shard, out)
    logger.info(f"{_STAGE} | took {len(shards)} finished shards of {growing.url}")


def _copy_shard(growing: Artifact, shard: int, out: Artifact) -> None:
    """Rows and counts come from one opening of the file: the other run may put its part in a merged shard's place."""
    out.write_table(signatures_name(shard), growing.read_table(signatures_name(shard)))
    try:
        out.write_table(merged_name(shard), growing.read_table(merged_name(shard)))
    except FileNotFoundError:
        out.write_table(part_name(shard), growing.read_table(part_name(shard)))


def _all_cpus() -> Resources:
    """The whole cluster: the engines have gone."""
    num_cpus = ray.cluster_resources().get("CPU", 1) if metrics.ray_is_running() else 1
    return Resources(num_workers=max(1, int(num_cpus)))


def _totals(out: Artifact, ngrams: EvaluationNgrams, number: int) -> Stats:
    stats = add_stats(read_stats(out, out.files(suffix=".parquet")))
    stats["contaminated"] = ngrams.count_hits(stats["drops"].get("contaminated", 0), stats["contaminated"])
    stats["round"] = number
    if "scores" in stats:
        stats["scores"] = scores = summarise_scores(stats["scores"])
        cost = f"{scores['tokens_scored']:,} tokens scored in {duration(scores['seconds'])}"
        logger.info(f"{_STAGE} | scores in nats a token: {describe_scores(scores)} | {cost}")
    if stats["contaminated"]:
        logger.info(f"{_STAGE} | {describe_contamination(stats['contaminated'])}")
    prompts = stats["prompt_tokens"]
    stats["prefix_cache_hit_rate"] = round(stats["prompt_tokens_cached"] / prompts, 4) if prompts else None
    return stats


def _run(todo: list[dict[str, int]], inputs: Inputs, num_workers: int) -> None:
    """As many workers as engines; each works on one shard and has the next one open."""
    dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
        ShardWorker,
        fn_constructor_args=(inputs,),
        compute=ray.data.ActorPoolStrategy(size=num_workers, max_concurrent_calls_per_actor=OPEN_SHARDS),
        num_cpus=WRITER_CPUS,
        max_task_retries=ACTOR_RETRIES,
    )
    dataset.set_name(_STAGE)
    for row in read_dataset(dataset, _STAGE):
        stats = Outcome(*json.loads(row["outcome"])).get()
        metrics.count_drops(stats["drops"], stage=_STAGE)
