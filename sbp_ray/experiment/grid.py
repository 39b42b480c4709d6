"""The grid as a graph: each artifact that some arm needs stands there once, named by what it is made from.

`plan_grid` walks arms, shares, rounds and seeds. For each training `_Planner` plans the chain of artifacts behind it
with the same plan that a run has; chains meet where their recipes are equal. Then arms that come to the same are
refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sbp_ray.config import Config, IngestConfig, MixtureConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.study import Training
from sbp_ray.experiment.arms import BASELINE, BUILT_IN, ORACLE, overrides_of
from sbp_ray.experiment.settings import ExperimentConfig
from sbp_ray.nodes import Node
from sbp_ray.plan import plan_node
from sbp_ray.recipes import reads_of
from sbp_ray.stage_table import STAGES

__all__ = ("Grid", "Node", "Training", "plan_grid")

_OWN_CORPUS = {"max_train_documents", "tokenizer", "resources"}
"""What an arm may change of `ingest`: how much it reads."""
_OF_SYNTHETIC = ("mixture", "tune", "synthesize", "engine")
"""Sections that say nothing of an arm without synthetic text."""
PILOT_SAMPLES = 256
MANY_SAMPLES = 10_000
"""Two cores write some three samples a second: an hour."""
_STAGE = {stage.name: stage for stage in STAGES}


@dataclass
class Grid:
    """Nodes in an order in which each comes after those it needs, and the trainings that they are for."""

    nodes: dict[str, Node] = field(default_factory=dict)
    trainings: list[Training] = field(default_factory=list)

    def users(self) -> dict[str, list[str]]:
        """For each node the arms that need it."""
        found: dict[str, list[str]] = {key: [] for key in self.nodes}
        for training in self.trainings:
            for key in training.model.ancestry():
                if training.arm not in found[key]:
                    found[key].append(training.arm)
        return found


def plan_grid(experiment: ExperimentConfig) -> Grid:
    """Lay out every arm, seed, share and round.

    Raises:
        SbpError: a setting or an input file is wrong, or two arms come to the same.
    """
    planner = _Planner(experiment)
    for arm in experiment.arms:
        for seed in experiment.seeds:
            planner.add_arm(arm, seed)
    _refuse_equal_arms(planner.grid)
    return planner.grid


class _Planner:
    """Adds the nodes of one arm after the other; what is there already is not added again."""

    def __init__(self, experiment: ExperimentConfig) -> None:
        self._experiment, self.grid = experiment, Grid()

    def add_arm(self, arm: str, seed: int) -> None:
        """All trainings of one arm and seed."""
        built_in, config = self._experiment.built_in(arm), self._config(arm)
        after = [self._corpus_of_base()] if self._corpus_times(arm) is not None else []
        corpus = self._node("ingest", config, {}, after=after)
        if not built_in.has_synthetic:
            read = {"corpus": corpus, **self._graph(config, corpus)}
            model = self._node("pretrain-repetition", _with_seed(config, seed), read)
            self._add_training(arm, seed, None, 1, model)
            return
        chain_seed = seed if self._experiment.synthesizer_per_seed else self._experiment.seeds[0]
        seeded = _with_seed(config, chain_seed)
        own = self._for_base_lm(arm, seeded)
        base_lm = self._node("pretrain-repetition", own, {"corpus": corpus, **self._graph(own, corpus)})
        embeddings, pairs = self._mine(seeded, corpus, base_lm if built_in.base_lm_embeds else None)

        def write(lm: Node) -> Node:
            if built_in.outside_writes:
                return self._synthesize(seeded, {"corpus": corpus, "embeddings": embeddings, "pairs": pairs})
            if not built_in.base_lm_writes:
                lm = self._node("tune", seeded, {"corpus": corpus, "pairs": pairs, "base_lm": lm})
            return self._synthesize(seeded, {"corpus": corpus, "embeddings": embeddings, "synthesizer": lm})

        for share in self._experiment.arms[arm].shares or self._experiment.shares:
            joint = config.model_copy(update={"mixture": _with_share(config.mixture, share)})
            is_once = built_in.base_lm_writes or built_in.outside_writes
            writer, num_rounds = base_lm, 1 if is_once else self._experiment.rounds
            for number in range(1, num_rounds + 1):
                read = {"corpus": corpus, "synthetic": write(writer), **self._graph(joint, corpus, pairs)}
                lm = self._node("pretrain-sbp", _with_seed(joint, seed), read)
                self._add_training(arm, seed, share, number, lm)
                if number < num_rounds:  # the next round goes on from the LM of the chain's seed
                    writer = self._node("pretrain-sbp", _with_seed(joint, chain_seed), read)

    # Settings

    def _corpus_times(self, arm: str) -> float | None:
        """Of an arm with more or fewer documents than the base."""
        own = self._experiment.arms[arm]
        is_oracle = (own.like or arm) == ORACLE
        return own.corpus_times or (self._experiment.oracle_times if is_oracle else None)

    def _config(self, arm: str) -> Config:
        base = self._experiment.base_config()
        own = self._experiment.arms[arm]
        overrides = [*overrides_of(own.like or arm, base)]
        if (times := self._corpus_times(arm)) is not None:
            overrides += self._corpus_overrides(arm, base, times)
        config = self._experiment.base_config(*overrides, *own.overrides, where=f"arms.{arm}")
        _refuse_other_corpus(arm, config, base)
        _refuse_what_is_missing(arm, own.like or arm, own.overrides, config)
        return config

    def _corpus_overrides(self, arm: str, base: Config, times: float) -> list[str]:
        cap = base.ingest.max_train_documents
        if cap is None:
            raise SbpError(
                f"arms.{arm}: base has all documents there are: set ingest.max_train_documents in base, of which the "
                f"arm has {times:g} times as many"
            )
        corpus = self._corpus_of_base()
        return [
            f"ingest.max_train_documents={round(times * cap)}",
            f"ingest.tokenizer={corpus.config.run_dir}/tokenizer",
        ]

    def _for_base_lm(self, arm: str, config: Config) -> Config:
        """The base LM is the repetition arm's, but for what the arm says of its `writer`: an arm's own pretraining
        settings are those of its joint LM."""
        arms = self._experiment.arms
        own = arms[arm].writer
        if outside := [change for change in own if change.split(".")[0] not in ("model", "pretrain")]:
            raise SbpError(f"arms.{arm}.writer: {outside[0]}: it changes model or pretrain: put others in overrides")
        base = self._experiment.base_config(*arms[BASELINE].overrides, *own, where=f"arms.{arm}.writer")
        pretrain = base.pretrain.model_copy(update={"seed": config.pretrain.seed})
        return config.model_copy(update={"model": base.model, "pretrain": pretrain})

    def _corpus_of_base(self) -> Node:
        return self._node("ingest", self._config(BASELINE), {})

    # Nodes

    def _mine(self, config: Config, corpus: Node, own_embedder: Node | None) -> tuple[Node, Node]:
        """Embeddings and pairs."""
        if own_embedder is not None:
            embed = config.embed.model_copy(update={"model": f"{own_embedder.config.run_dir}/model"})
            config = config.model_copy(update={"embed": embed})
        after = [own_embedder] if own_embedder else []
        embeddings = self._node("embed", config, {"corpus": corpus}, after=after)
        neighbors = self._node("neighbors", config, {"embeddings": embeddings})
        return embeddings, self._node("pair", config, {"neighbors": neighbors})

    def _graph(self, config: Config, corpus: Node, pairs: Node | None = None) -> dict[str, Node]:
        """What a pretraining reads that packs related documents behind one another."""
        return {"pairs": pairs or self._mine(config, corpus, None)[1]} if config.pretrain.in_context else {}

    def _synthesize(self, config: Config, made: Mapping[str, Node]) -> Node:
        """The text; one of many samples is made after a small one that says whether it will be enough."""
        read = {noun: made[noun] for noun in reads_of(_STAGE["synthesize"], config)}
        pilot = _pilot_of(config, config.synthesize.num_documents or config.ingest.max_train_documents)
        after = [] if pilot is None else [self._node("synthesize", pilot, read)]
        return self._node("synthesize", config, read, after=after)

    def _add_training(self, arm: str, seed: int, share: float | None, number: int, model: Node) -> None:
        named = [arm, *([] if share is None else [f"{100 * share:g} %"]), *([f"round {number}"] if number > 1 else [])]
        training = Training(
            name=" ".join(named),
            arm=arm,
            like=self._experiment.arms[arm].like or arm,
            says=self._experiment.built_in(arm).says,
            seed=seed,
            share=share,
            round=number,
            tokens=model.config.pretrain.num_positions(),
            model=model,
        )
        self.grid.trainings.append(training)

    def _node(self, stage_name: str, config: Config, read: Mapping[str, Node], after: Iterable[Node] = ()) -> Node:
        planned = plan_node(_STAGE[stage_name], config, read, after=after)
        node = self.grid.nodes.setdefault(
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


def _with_share(mixture: MixtureConfig, share: float) -> MixtureConfig:
    """The arm's mixture with a share in the place of whatever amount of synthetic text it names."""
    amount = {"synthetic_share": share, "real_tokens": None, "synthetic_tokens": None}
    return mixture.model_copy(update=amount)


def _with_seed(config: Config, seed: int) -> Config:
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
    for key in sorted(IngestConfig.model_fields.keys() - _OWN_CORPUS):
        if getattr(config.ingest, key) != getattr(base.ingest, key):
            raise SbpError(
                f"arms.{arm}: ingest.{key} must be that of base: arms are compared on one split of one corpus"
            )


def _refuse_equal_arms(grid: Grid) -> None:
    first: dict[tuple[str, int], str] = {}
    for training in grid.trainings:
        other = first.setdefault((training.model.key, training.seed), training.name)
        if other != training.name:
            raise SbpError(f"arms: {training.name} comes to the same training as {other}: give it another setting")
