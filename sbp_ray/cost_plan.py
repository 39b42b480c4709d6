"""What a run will take, stage by stage, worked out from its settings and the size of its corpus before anything runs.

`plan_costs` has a function for each stage, which says how much work there is; `_priced` turns work into hours and money
by the rates of a file and the prices in `cluster`. The search for neighbours is planned where it is made
(`neighbors/search_plan.py`). Of ingest and eval only sizes are told: no rate of theirs was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pydantic import PositiveFloat, PositiveInt

from sbp_ray.cluster_limits import demand
from sbp_ray.config import Config, TrainingConfig
from sbp_ray.config_base import Fraction, Section
from sbp_ray.config_file import read_yaml, settings_of
from sbp_ray.errors import SbpError
from sbp_ray.logs import duration
from sbp_ray.model import flops_per_token, num_parameters, padded_vocab_size
from sbp_ray.neighbors.search_plan import plan_search, threads_of
from sbp_ray.nodes import locate
from sbp_ray.report.wording import aligned, scaled
from sbp_ray.schema import SIGNATURE_BYTES

COLUMNS = ("stage", "documents", "tokens", "FLOPs", "written", "core-hours", "GPU-hours", "dollars", "wall time")
_ID_BYTES = 4  # of a token
_STATE_BYTES = 12  # of a parameter in a checkpoint


class Embedder(Section):
    """The size of an embedding model."""

    parameters: PositiveInt
    dim: PositiveInt


class Rates(Section):
    """What a machine does, from `benchmarks/rates.yaml`, which says what of it was measured."""

    mfu: Fraction
    gpu_tflops: PositiveFloat
    core_gflops: PositiveFloat
    engine_gpu_tokens_per_s: PositiveFloat
    signature_core_s: PositiveFloat
    pair_core_s: PositiveFloat
    pairs_per_document: PositiveFloat
    scratch_bytes_per_document: PositiveFloat
    text_bytes_per_token: PositiveFloat
    embedders: dict[str, Embedder]


class Corpus(NamedTuple):
    """Its size."""

    documents: int
    tokens: int


class Work(NamedTuple):
    """What a stage has to do."""

    stage: str
    job: str
    documents: float
    tokens: float
    flops: float | None = None
    written_bytes: float = 0.0
    device_s: float | None = None
    """Seconds of one GPU where the stage's workers hold any, else of one core; None where no rate is known."""


def plan_costs(config: Config, corpus: Corpus, rates: Rates) -> list[tuple[str, ...]]:
    """`COLUMNS` of each stage, and of all.

    Raises:
        SbpError: a stage wants more than `cluster.most`, or the embedder's size is not in the rates.
    """
    refuse_beyond(config)
    rows, total = [], [0.0, 0.0, 0.0, 0.0]
    for work in _works(config, corpus, rates):
        core_hours, gpu_hours, dollars, wall_s = _priced(work, config)
        total = [sum(pair) for pair in zip(total, (core_hours, gpu_hours, dollars, wall_s), strict=True)]
        rows.append(_row(work, core_hours, gpu_hours, dollars, wall_s))
    hours = (f"{total[0]:,.1f}", f"{total[1]:,.1f}", f"${total[2]:,.2f}", duration(total[3]))
    return [*rows, ("all, one after another", "", "", "", "", *hours)]


def print_plan(config: Config, documents: int | None, tokens: int | None, rates_file: str) -> None:
    """Print the table, for a corpus of this size, or for the finished one of the run.

    Raises:
        SbpError: the size is not known, or something cannot fit.
    """
    if not documents or not tokens:
        stats = (locate(config, "corpus").manifest() or {}).get("stats", {})
        documents, tokens = documents or stats.get("documents"), tokens or stats.get("tokens")
    if not documents or not tokens:
        raise SbpError("the corpus is not there yet, and its size not known: give --documents and --tokens")
    rates = settings_of(Rates, read_yaml(rates_file), [], where=rates_file)
    print("\n".join(aligned([COLUMNS, *plan_costs(config, Corpus(documents, tokens), rates)])))


def refuse_beyond(config: Config) -> None:
    """
    Raises:
        SbpError: a stage wants more than `cluster.most` says that there can be.
    """
    for job in ("ingest", "embed", "neighbors", "pair", "pretrain", "tune", "synthesize", "eval"):
        for name, amount in demand(job, config).items():
            most = {**config.cluster.most}.get(name, float("inf"))  # type: ignore[call-overload]
            if amount > most:
                key = "engine" if job == "synthesize" else job
                raise SbpError(
                    f"{key}.resources wants {amount:g} {name}s, and cluster.most has {most:g}: lower "
                    f"{key}.resources, or raise cluster.most"
                )


# Work


def _works(config: Config, corpus: Corpus, rates: Rates) -> Iterator[Work]:
    documents, tokens = corpus
    parameters = num_parameters(config.model, _vocabulary(config))
    yield Work("ingest", "ingest", documents, tokens, written_bytes=tokens * (rates.text_bytes_per_token + _ID_BYTES))
    yield _embed(config, corpus, rates)
    yield _neighbors(config, corpus, rates)
    pairs = documents * min(rates.pairs_per_document, config.pair.max_as_d1)
    pair_bytes = documents * rates.scratch_bytes_per_document
    yield Work("pair", "pair", documents, 0, written_bytes=pair_bytes, device_s=documents * rates.pair_core_s)
    checkpoint = _STATE_BYTES * parameters
    pretrain = config.pretrain
    trained = _train(config, pretrain, pretrain.num_positions(), rates, "pretrain")
    yield trained._replace(stage="pretrain-repetition", documents=documents, written_bytes=2 * checkpoint)
    pair_tokens = min(config.tune.longest_document()[1], 2 * tokens / documents) * pairs * config.tune.num_epochs
    yield _train(config, config.tune, pair_tokens, rates, "tune")._replace(
        documents=pairs, written_bytes=2 * checkpoint
    )
    yield _synthesize(config, corpus, rates, parameters)
    yield trained._replace(stage="pretrain-sbp", documents=documents, written_bytes=2 * checkpoint)
    yield Work("eval", "eval", documents, tokens)


def _vocabulary(config: Config) -> int:
    return padded_vocab_size(config.model, config.ingest.vocab_size)


def _embed(config: Config, corpus: Corpus, rates: Rates) -> Work:
    embedder = _embedder(config, rates)
    tokens = min(corpus.tokens, corpus.documents * config.embed.max_tokens)
    flops = 2.0 * embedder.parameters * tokens
    signed_s = 0.0 if config.embed.resources.num_gpus else corpus.documents * rates.signature_core_s
    written = corpus.documents * (2 * embedder.dim + SIGNATURE_BYTES)
    seconds = flops / _speed(bool(config.embed.resources.num_gpus), rates) + signed_s
    return Work("embed", "embed", corpus.documents, tokens, flops, written, seconds)


def _embedder(config: Config, rates: Rates) -> Embedder:
    if (found := rates.embedders.get(config.embed.model)) is None:
        raise SbpError(f"embed.model={config.embed.model}: its size is not in the rates: add it to the file of --rates")
    return found


def _neighbors(config: Config, corpus: Corpus, rates: Rates) -> Work:
    cfg, shards = config.neighbors, config.ingest.num_shards
    plan = plan_search(cfg, [-(-corpus.documents // shards)] * shards, _embedder(config, rates).dim)
    seconds = sum(step.seconds * step.at_once * threads_of(cfg.resources) for step in plan.steps)
    operations = 1e12 * sum(step.tera_ops for step in plan.steps)
    return Work("neighbors", "neighbors", corpus.documents, 0, operations, plan.disk_gib * 2**30, seconds)


def _train(config: Config, cfg: TrainingConfig, positions: float, rates: Rates, job: str) -> Work:
    flops = positions * flops_per_token(config.model, _vocabulary(config), cfg.longest_document()[1])
    return Work(job, job, 0, positions, flops, 0, flops / _speed(bool(cfg.resources.num_gpus), rates))


def _synthesize(config: Config, corpus: Corpus, rates: Rates, parameters: int) -> Work:
    """As many tokens as the joint training reads, or as the samples hold where they are limited."""
    synthesize, mean = config.synthesize, corpus.tokens / corpus.documents
    number = (synthesize.num_documents or corpus.documents) * synthesize.samples_per_document
    tokens = number * min(synthesize.max_tokens, mean)
    prompts = (synthesize.num_documents or corpus.documents) * mean
    flops = 2.0 * parameters * (tokens + prompts)
    seconds = tokens / rates.engine_gpu_tokens_per_s if config.engine.resources.num_gpus else None
    written = tokens * (rates.text_bytes_per_token + _ID_BYTES)
    return Work("synthesize", "synthesize", number, tokens, flops, written, seconds)


def _speed(has_gpus: bool, rates: Rates) -> float:
    """FLOP/s of one GPU or core that can be hoped for."""
    return rates.mfu * (rates.gpu_tflops * 1e12 if has_gpus else rates.core_gflops * 1e9)


# Hours and money


def _priced(work: Work, config: Config) -> tuple[float, float, float, float]:
    """Core-hours, GPU-hours, dollars, and seconds on the stage's workers."""
    if work.device_s is None:
        return 0.0, 0.0, 0.0, 0.0
    held, hours, cluster = demand(work.job, config), work.device_s / 3600, config.cluster
    if work.job == "synthesize":
        engine = config.engine.resources
        held = {"GPU": engine.max_replicas * engine.tensor_parallel_size} if engine.num_gpus else held
    if gpus := held.get("GPU", 0.0):
        return 0.0, hours, hours * cluster.dollars_per_gpu_hour, work.device_s / gpus
    return hours, 0.0, hours * cluster.dollars_per_core_hour, work.device_s / max(1.0, held["CPU"])


def _row(work: Work, core_hours: float, gpu_hours: float, dollars: float, wall_s: float) -> tuple[str, ...]:
    known = work.device_s is not None
    return (
        work.stage,
        scaled(work.documents) if work.documents else "",
        scaled(work.tokens) if work.tokens else "",
        "" if work.flops is None else f"{work.flops:.1e}",
        _size(work.written_bytes),
        f"{core_hours:,.1f}" if core_hours else "",
        f"{gpu_hours:,.1f}" if gpu_hours else "",
        f"${dollars:,.2f}" if known else "not measured",
        duration(wall_s) if known else "",
    )


def _size(num_bytes: float) -> str:
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:,.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes else ""
