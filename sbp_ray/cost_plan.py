"""What a run will take, stage by stage, worked out from its settings and the size of its corpus before anything runs.

`list_work` has a function for each stage, which says how much work there is; `_priced` turns work into hours and money
by the rates of a file and the prices in `cluster`. The search for neighbours is planned where it is made
(`neighbors/search_plan.py`). What a stage took in trial runs goes before what its arithmetic would take; of ingest and
eval nothing else is known.

Where the corpus is finished its splits are known, and where the pairs are, their number; else the settings say what is
held out, and trials how many pairs to expect, or the settings how many there can be at most. What follows from a limit
is a limit too, and marked `≤`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sbp_ray.cluster_limits import demand
from sbp_ray.config import Config, TrainingConfig
from sbp_ray.config_base import Fraction, Section
from sbp_ray.config_file import read_yaml, settings_of
from sbp_ray.errors import SbpError
from sbp_ray.logs import duration
from sbp_ray.model import flops_per_token, num_parameters, padded_vocab_size
from sbp_ray.neighbors.histogram import bin_numbers
from sbp_ray.neighbors.search_plan import plan_search, threads_of
from sbp_ray.nodes import locate
from sbp_ray.report.wording import aligned, scaled
from sbp_ray.schema import SIGNATURE_BYTES

COLUMNS = ("stage", "documents", "tokens", "FLOPs", "written", "core-hours", "GPU-hours", "dollars", "wall time")
_ID_BYTES = 4  # of a token
_STATE_BYTES = 12  # of a parameter in a checkpoint
_PAIR_MARKS = 3  # <bos>, <related>, <eos>

Finished = Mapping[str, Mapping[str, Any]]
"""What the stages counted whose artifacts are finished, by noun."""


class Embedder(Section):
    """The size of an embedding model."""

    multiplied_parameters: PositiveInt
    """All but the tables in which tokens and positions are looked up."""
    dim: PositiveInt


class Trial(Section):
    """How long a stage took in runs of several sizes."""

    start_s: NonNegativeFloat
    """Whatever the size: imports, workers, an engine."""
    device_s: NonNegativeFloat
    """Of one GPU where the stage's workers hold any, else of one core, for each unit of its `Work.amount`."""


class PairTrial(Section):
    """How many pairs runs of several sizes found: `pairs` at `documents`, and in proportion to a power of these."""

    documents: PositiveFloat
    """Of the train split."""
    pairs: NonNegativeFloat
    """Directed ones."""
    growth: NonNegativeFloat
    """The power: 1 where each document has as many, whatever the size."""


class Rates(Section):
    """What a machine does, from `benchmarks/rates.yaml`, which says what of it was measured."""

    mfu: Fraction
    gpu_tflops: PositiveFloat
    core_gflops: PositiveFloat
    engine_gpu_tokens_per_s: PositiveFloat
    signature_core_s: PositiveFloat
    pair_core_s: PositiveFloat
    scratch_bytes_per_document: PositiveFloat
    text_bytes_per_token: PositiveFloat
    embedders: dict[str, Embedder]
    trials: dict[str, Trial] = Field(default_factory=dict)
    """By stage; `benchmarks/rates.py` writes them."""
    pairs: PairTrial | None = None
    """It writes these too."""


class Corpus(NamedTuple):
    """Its size, and the pairs of its train split."""

    documents: float
    """Of all splits."""
    tokens: float
    train_documents: float
    train_tokens: float
    pairs: float
    """Directed ones."""
    has_fewer_pairs: bool
    """Whether `pairs` is what there can be at most."""

    @property
    def mean_tokens(self) -> float:
        """Of a train document."""
        return self.train_tokens / self.train_documents


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
    is_limit: bool = False
    """Whether all this is the most that it can be."""
    start_s: float = 0.0
    """Before and after the work itself, where that is known."""

    @property
    def amount(self) -> float:
        """What its time grows with: operations where they are counted, else tokens or documents."""
        return self.flops or self.tokens or self.documents


def plan_costs(config: Config, corpus: Corpus, rates: Rates) -> list[tuple[str, ...]]:
    """`COLUMNS` of each stage, and of all.

    Raises:
        SbpError: a stage wants more than `cluster.most`, or the embedder's size is not in the rates.
    """
    refuse_beyond(config)
    rows, total, has_limits = [], [0.0, 0.0, 0.0, 0.0], False
    for work in list_work(config, corpus, rates):
        core_hours, gpu_hours, dollars, wall_s = _priced(work, config)
        total = [sum(pair) for pair in zip(total, (core_hours, gpu_hours, dollars, wall_s), strict=True)]
        rows.append(_row(work, core_hours, gpu_hours, dollars, wall_s))
        has_limits |= work.is_limit
    hours = (f"{total[0]:,.1f}", f"{total[1]:,.1f}", f"${total[2]:,.2f}", duration(total[3]))
    return [*rows, ("all, one after another", "", "", "", "", *_marked(hours, has_limits))]


def print_plan(config: Config, documents: int | None, tokens: int | None, rates_file: str, finished: Finished) -> None:
    """Print the table, for an input of this size, or for the finished corpus of the run.

    Raises:
        SbpError: the size is not known, or something cannot fit.
    """
    rates = settings_of(Rates, read_yaml(rates_file), [], where=rates_file)
    if documents and tokens:
        corpus = corpus_of_size(config, documents, tokens, rates)
    elif documents or tokens or "corpus" not in finished:
        where = locate(config, "corpus").url
        raise SbpError(f"no finished corpus of these settings lies in {where}: give --documents and --tokens")
    else:
        corpus = finished_corpus(config, finished, rates)
    print("\n".join(aligned([COLUMNS, *plan_costs(config, corpus, rates)])))


def refuse_beyond(config: Config) -> None:
    """Raises SbpError where a stage wants more than `cluster.most` says that there can be."""
    for job in ("ingest", "embed", "neighbors", "pair", "pretrain", "tune", "synthesize", "eval"):
        for name, amount in demand(job, config).items():
            most = {**config.cluster.most}.get(name, float("inf"))  # type: ignore[call-overload]
            if amount > most:
                key = "engine" if job == "synthesize" else job
                raise SbpError(
                    f"{key}.resources wants {amount:g} {name}s, and cluster.most has {most:g}: lower "
                    f"{key}.resources, or raise cluster.most"
                )


# Sizes


def corpus_of_size(config: Config, documents: int, tokens: int, rates: Rates) -> Corpus:
    """What ingest makes of an input that holds so much, if nothing is dropped from it."""
    ingest, mean = config.ingest, tokens / documents
    held_out = documents * (ingest.validation_share + ingest.development_share)
    train = min(documents - held_out, ingest.max_train_documents or documents)
    there = train + held_out
    return Corpus(there, there * mean, train, train * mean, *expect_pairs(config, train, rates))


def finished_corpus(config: Config, finished: Finished, rates: Rates) -> Corpus:
    """What lies there. Where the neighbours are finished and the pairs are not, there are two pairs at most for each
    entry of the lists that may lie in the band of similarity.
    """
    corpus = finished["corpus"]
    train = corpus["train"]
    pairs, has_fewer = expect_pairs(config, train["documents"], rates)
    if "pairs" in finished:
        pairs, has_fewer = finished["pairs"]["train"]["pairs"], False
    elif "neighbors" in finished:
        pairs = min(pairs, 2 * _in_band(config, finished["neighbors"]["train"]["histogram_all"]))
    return Corpus(corpus["documents"], corpus["tokens"], train["documents"], train["tokens"], pairs, has_fewer)


def expect_pairs(config: Config, documents: float, rates: Rates) -> tuple[float, bool]:
    """Directed pairs of so many documents, by what trials found; without trials the most there can be, and True."""
    most, trial = most_pairs(config, documents), rates.pairs
    if trial is None:
        return most, True
    return min(most, trial.pairs * (documents / trial.documents) ** trial.growth), False


def most_pairs(config: Config, documents: float) -> float:
    """Directed pairs that so many documents can make: by their lists, each entry of which counts both ways, and by the
    caps of what one document takes part in."""
    listed = 2 * min(config.neighbors.num_neighbors, max(0, documents - 1))
    return documents * min(listed, config.pair.max_as_d1, config.pair.max_as_d2)


def _in_band(config: Config, histogram: Mapping[str, int]) -> int:
    """Similarities in those bins of which a part, at least, lies between `min_cosine` and `max_cosine`."""
    low, high = bin_numbers(np.array([config.pair.min_cosine, config.pair.max_cosine]))
    edges = bin_numbers(np.array([float(edge) for edge in histogram]))
    return sum(count for number, count in zip(edges, histogram.values(), strict=True) if low <= number <= high)


def tuning_tokens(config: Config, pairs: float, mean_tokens: float) -> float:
    """Tokens of all passes over the pairs, if documents in pairs are as long as the others."""
    return pairs * config.tune.num_epochs * min(config.tune.longest_document()[1], 2 * mean_tokens + _PAIR_MARKS)


# Work


def list_work(config: Config, corpus: Corpus, rates: Rates) -> list[Work]:
    """Of each stage, in order."""
    return [_as_tried(work, rates) for work in _works(config, corpus, rates)]


def _as_tried(work: Work, rates: Rates) -> Work:
    if (trial := rates.trials.get(work.stage)) is None:
        return work
    return work._replace(device_s=work.amount * trial.device_s, start_s=trial.start_s)


def _works(config: Config, corpus: Corpus, rates: Rates) -> Iterator[Work]:
    parameters = num_parameters(config.model, _vocabulary(config))
    documents, written = corpus.documents, corpus.tokens * (rates.text_bytes_per_token + _ID_BYTES)
    yield Work("ingest", "ingest", documents, corpus.tokens, written_bytes=written)
    yield _embed(config, corpus, rates)
    yield _neighbors(config, corpus, rates)
    pair_bytes = documents * rates.scratch_bytes_per_document
    yield Work("pair", "pair", documents, 0, written_bytes=pair_bytes, device_s=documents * rates.pair_core_s)
    checkpoints = 2 * _STATE_BYTES * parameters
    trained = _train(config, config.pretrain, config.pretrain.num_positions(), rates, "pretrain")
    trained = trained._replace(documents=corpus.train_documents, written_bytes=checkpoints)
    yield trained._replace(stage="pretrain-repetition")
    yield _tune(config, corpus, rates)._replace(written_bytes=checkpoints)
    yield _synthesize(config, corpus, rates, parameters)
    yield trained._replace(stage="pretrain-sbp")
    yield Work("eval", "eval", documents, corpus.tokens)


def _vocabulary(config: Config) -> int:
    return padded_vocab_size(config.model, config.ingest.vocab_size)


def _embed(config: Config, corpus: Corpus, rates: Rates) -> Work:
    embedder = _embedder(config, rates)
    tokens = min(corpus.tokens, corpus.documents * config.embed.max_tokens)
    flops = 2.0 * embedder.multiplied_parameters * tokens
    signed_s = 0.0 if config.embed.resources.num_gpus else corpus.documents * rates.signature_core_s
    written = corpus.documents * (2 * embedder.dim + SIGNATURE_BYTES)
    seconds = flops / _speed(bool(config.embed.resources.num_gpus), rates) + signed_s
    return Work("embed", "embed", corpus.documents, tokens, flops, written, seconds)


def _embedder(config: Config, rates: Rates) -> Embedder:
    if (found := rates.embedders.get(config.embed.model)) is None:
        raise SbpError(f"embed.model={config.embed.model}: its size is not in the rates: add it to the file of --rates")
    return found


def _neighbors(config: Config, corpus: Corpus, rates: Rates) -> Work:
    """Held-out documents are searched by themselves."""
    cfg, shards, dim = config.neighbors, config.ingest.num_shards, _embedder(config, rates).dim
    sizes = [math.ceil(size) for size in (corpus.train_documents, corpus.documents - corpus.train_documents)]
    plans = [plan_search(cfg, [-(-size // shards)] * shards, dim) for size in sizes if size]
    steps = [step for plan in plans for step in plan.steps]
    seconds = sum(step.seconds * step.at_once * threads_of(cfg.resources) for step in steps)
    operations, written = 1e12 * sum(step.tera_ops for step in steps), sum(plan.disk_gib for plan in plans) * 2**30
    return Work("neighbors", "neighbors", corpus.documents, 0, operations, written, seconds)


def _train(config: Config, cfg: TrainingConfig, positions: float, rates: Rates, job: str) -> Work:
    flops = positions * flops_per_token(config.model, _vocabulary(config), cfg.longest_document()[1])
    return Work(job, job, 0, positions, flops, 0, flops / _speed(bool(cfg.resources.num_gpus), rates))


def _tune(config: Config, corpus: Corpus, rates: Rates) -> Work:
    work = _train(config, config.tune, tuning_tokens(config, corpus.pairs, corpus.mean_tokens), rates, "tune")
    return work._replace(documents=corpus.pairs * min(1, config.tune.num_epochs), is_limit=corpus.has_fewer_pairs)


def _synthesize(config: Config, corpus: Corpus, rates: Rates, parameters: int) -> Work:
    """As many tokens as the joint training reads, or as the samples hold where they are limited."""
    synthesize, mean = config.synthesize, corpus.mean_tokens
    num_d1 = min(corpus.train_documents, synthesize.num_documents or corpus.train_documents)
    number, prompts = num_d1 * synthesize.samples_per_document, num_d1 * mean
    tokens = number * min(synthesize.max_tokens, mean)
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
    kind, number = devices_of(work.job, config)
    hours = (work.device_s + work.start_s * number) / 3600
    wall_s = work.device_s / number + work.start_s
    if kind == "GPU":
        return 0.0, hours, hours * config.cluster.dollars_per_gpu_hour, wall_s
    return hours, 0.0, hours * config.cluster.dollars_per_core_hour, wall_s


def devices_of(job: str, config: Config) -> tuple[str, float]:
    """What a job's workers compute on, `GPU` or `CPU`, and how many of these there are."""
    held, section = demand(job, config), getattr(config, job)
    if isinstance(section, TrainingConfig):  # which can do with fewer, for a while
        own = section.resources
        held = {"CPU": own.num_workers * own.num_cpus, "GPU": own.num_workers * own.num_gpus}
    if job == "synthesize" and config.engine.resources.num_gpus:
        held = {"GPU": config.engine.resources.max_replicas * config.engine.resources.tensor_parallel_size}
    gpus = held.get("GPU", 0.0)
    return ("GPU", gpus) if gpus else ("CPU", max(1.0, held["CPU"]))


def _row(work: Work, core_hours: float, gpu_hours: float, dollars: float, wall_s: float) -> tuple[str, ...]:
    known = work.device_s is not None
    counted = (
        scaled(work.documents) if work.documents else "",
        scaled(work.tokens) if work.tokens else "",
        "" if work.flops is None else f"{work.flops:.1e}",
    )
    hours = (
        f"{core_hours:,.1f}" if core_hours else "",
        f"{gpu_hours:,.1f}" if gpu_hours else "",
        f"${dollars:,.2f}" if known else "not measured",
        duration(wall_s) if known else "",
    )
    is_limit = work.is_limit
    return (work.stage, *_marked(counted, is_limit), _size(work.written_bytes), *_marked(hours, is_limit))


def _marked(cells: tuple[str, ...], is_limit: bool) -> tuple[str, ...]:
    return tuple(f"≤{cell}" if is_limit and cell else cell for cell in cells)


def _size(num_bytes: float) -> str:
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:,.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes else ""
