"""The chain of artifacts behind each training of an experiment, and the settings of each arm.

`Chains` gives an arm its settings, and plans one artifact after the other, with the same plan that a run has. Chains
meet where their recipes are equal: an artifact that is there already is not added again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from sbp_ray.config import Config, IngestConfig
from sbp_ray.errors import SbpError
from sbp_ray.experiment.arms import BASELINE, BUILT_IN, ORACLE, overrides_of
from sbp_ray.experiment.descent import Point
from sbp_ray.experiment.settings import ExperimentConfig
from sbp_ray.nodes import Node
from sbp_ray.plan import plan_node
from sbp_ray.recipes import reads_of
from sbp_ray.stage_table import STAGES

_OF_SYNTHETIC = ("mixture", "tune", "synthesize", "engine")
"""Sections that say nothing of an arm without synthetic text."""
PILOT_SAMPLES = 256
MANY_SAMPLES = 10_000
"""Two cores write some three samples a second: an hour."""
_NOWHERE: Point = {}
_STAGE = {stage.name: stage for stage in STAGES}


class Chains:
    """The nodes of an experiment, in an order in which each comes after those it needs."""

    def __init__(self, experiment: ExperimentConfig) -> None:
        self._experiment = experiment
        self.nodes: dict[str, Node] = {}

    # Settings

    def corpus_times(self, arm: str) -> float | None:
        """Of an arm with more or fewer documents than the base."""
        own = self._experiment.arms[arm]
        is_oracle = (own.like or arm) == ORACLE
        return own.corpus_times or (self._experiment.oracle_times if is_oracle else None)

    def config_of(self, arm: str, point: Point = _NOWHERE, more: Sequence[str] = (), where: str = "") -> Config:
        """`point`: of a sweep. `more`: overrides of another arm, `where`, that is otherwise as this one."""
        base = self._experiment.base_config()
        own = self._experiment.arms[arm]
        overrides = [*overrides_of(own.like or arm, base), *own.overrides]
        overrides += [*(f"{setting}={json.dumps(value)}" for setting, value in point.items()), *more]
        config = self._experiment.base_config(*overrides, where=f"arms.{where or arm}")
        _refuse_other_corpus(arm, config, base)
        if (times := self.corpus_times(arm)) is not None:
            overrides += self._corpus_overrides(arm, base, times)
            config = self._experiment.base_config(*overrides, where=f"arms.{where or arm}")
        _refuse_what_is_missing(where or arm, own.like or arm, (*own.overrides, *more), config)
        return config

    def _corpus_overrides(self, arm: str, base: Config, times: float) -> list[str]:
        cap = base.ingest.max_train_documents
        if cap is None:
            raise SbpError(
                f"arms.{arm}: base has all documents there are: set ingest.max_train_documents in base, of which the "
                f"arm has {times:g} times as many"
            )
        corpus = self.corpus_of_base()
        return [
            f"ingest.max_train_documents={round(times * cap)}",
            f"ingest.tokenizer={corpus.config.run_dir}/tokenizer",
        ]

    def for_base_lm(self, arm: str, config: Config) -> Config:
        """The base LM is the repetition arm's, but for what the arm says of its `writer`: an arm's own pretraining
        settings are those of its joint LM."""
        arms = self._experiment.arms
        own = arms[arm].writer
        if outside := [change for change in own if change.split(".")[0] not in ("model", "pretrain")]:
            raise SbpError(f"arms.{arm}.writer: {outside[0]}: it changes model or pretrain: put others in overrides")
        base = self._experiment.base_config(*arms[BASELINE].overrides, *own, where=f"arms.{arm}.writer")
        pretrain = base.pretrain.model_copy(update={"seed": config.pretrain.seed})
        return config.model_copy(update={"model": base.model, "pretrain": pretrain})

    def corpus_of_base(self) -> Node:
        return self.node("ingest", self.config_of(BASELINE), {})

    # Nodes

    def mine(self, config: Config, corpus: Node, own_embedder: Node | None) -> tuple[Node, Node]:
        """Embeddings and pairs."""
        if own_embedder is not None:
            embed = config.embed.model_copy(update={"model": f"{own_embedder.config.run_dir}/model"})
            config = config.model_copy(update={"embed": embed})
        after = [own_embedder] if own_embedder else []
        embeddings = self.node("embed", config, {"corpus": corpus}, after=after)
        neighbors = self.node("neighbors", config, {"embeddings": embeddings})
        return embeddings, self.node("pair", config, {"corpus": corpus, "neighbors": neighbors})

    def graph(self, config: Config, corpus: Node, pairs: Node | None = None) -> dict[str, Node]:
        """What a pretraining reads that packs related documents behind one another."""
        return {"pairs": pairs or self.mine(config, corpus, None)[1]} if config.pretrain.in_context else {}

    def synthesize(self, config: Config, made: Mapping[str, Node]) -> Node:
        """The text; one of many samples is made after a small one that says whether it will be enough."""
        read = {noun: made[noun] for noun in reads_of(_STAGE["synthesize"], config)}
        pilot = _pilot_of(config, config.synthesize.num_documents or config.ingest.max_train_documents)
        after = [] if pilot is None else [self.node("synthesize", pilot, read)]
        return self.node("synthesize", config, read, after=after)

    def node(self, stage_name: str, config: Config, read: Mapping[str, Node], after: Iterable[Node] = ()) -> Node:
        planned = plan_node(_STAGE[stage_name], config, read, after=after)
        node = self.nodes.setdefault(
            planned.key, planned.placed_in(f"{self._experiment.run_dir}/artifacts/{planned.key}")
        )
        assert node.fingerprint == planned.fingerprint, "two artifacts of one name"
        return node


def _pilot_of(config: Config, num_documents: int | None) -> Config | None:
    """A sample of a large synthesis, which shows how much of it will be kept; None for one of few samples."""
    own = config.synthesize
    if num_documents is not None and num_documents * own.samples_per_document < MANY_SAMPLES:
        return None
    each = 1 if own.keep_best is None else own.samples_per_document
    few = {
        "num_documents": min(-(-PILOT_SAMPLES // each), num_documents or PILOT_SAMPLES),
        "samples_per_document": each,
    }
    return config.model_copy(update={"synthesize": own.model_copy(update=few)})


def with_seed(config: Config, seed: int) -> Config:
    """The settings with the seed of all trainings and samples."""
    return config.model_copy(
        update={
            name: getattr(config, name).model_copy(update={"seed": seed}) for name in ("pretrain", "tune", "synthesize")
        }
    )


def _refuse_what_is_missing(arm: str, like: str, overrides: Iterable[str], config: Config) -> None:
    """An arm has what its settings are of."""
    built_in = BUILT_IN[like]
    if not built_in.has_synthetic:
        if change := next((each for each in overrides if each.split(".")[0] in _OF_SYNTHETIC), None):
            raise SbpError(
                f"arms.{arm}: {change}: it is of synthetic text, and {like} reads none: make the arm like one that "
                "does, such as sbp"
            )
    elif built_in.outside_writes != (config.synthesize.rephrase is not None):
        raise SbpError(
            f"arms.{arm}: synthesize.rephrase names no outside model: put model and resources.base_url into its "
            "overrides, see docs/experiment.md"
            if built_in.outside_writes
            else f"arms.{arm}: synthesize.rephrase has an outside model write, and {like} is an arm whose text our own "
            "LM writes: make the arm like rephrase"
        )


def _refuse_other_corpus(arm: str, config: Config, base: Config) -> None:
    """Losses are only comparable on one split with one tokenizer."""
    if config.decontaminate != base.decontaminate:
        raise SbpError(f"arms.{arm}: decontaminate must be that of base: arms are compared on one split of one corpus")
    for key in sorted(IngestConfig.model_fields.keys() - {"resources"}):
        if getattr(config.ingest, key) != getattr(base.ingest, key):
            is_amount = key == "max_train_documents"
            remedy = (
                "say how much of it by corpus_times" if is_amount else "arms are compared on one split of one corpus"
            )
            raise SbpError(f"arms.{arm}: ingest.{key} must be that of base: {remedy}")
