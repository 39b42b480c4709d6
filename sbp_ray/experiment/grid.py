"""The grid as a graph: each artifact that some arm needs stands there once, named by what it is made from.

`plan_grid` walks arms, shares, rounds and seeds. For each training `_Planner` has the chain of artifacts behind it
planned (`artifact_chain.py`). Then arms that come to the same are refused.

What a sweep tries next depends on losses. The plan holds the trials that are known to be needed; when they are done it
is made anew, from the losses that their artifacts hold, and holds the next ones, or the trainings of the arm
(`descent.descend`). So a plan is always a function of the settings and of what is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from sbp_ray.config import MixtureConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.study import Training, Tuning
from sbp_ray.experiment.arms import BASELINE
from sbp_ray.experiment.artifact_chain import Chains, with_seed
from sbp_ray.experiment.descent import Point, Sweep, descend, development_loss
from sbp_ray.experiment.settings import ExperimentConfig
from sbp_ray.nodes import Node

__all__ = ("Grid", "Node", "Training", "plan_grid")

_MEMBERS = 4
"""Of an ensemble that does not say."""
_BETWEEN_MEMBERS = 10_000
"""Seeds of an ensemble's members are so far apart: no seed of the experiment is another one's member."""


@dataclass
class Grid:
    """Nodes in an order in which each comes after those it needs, and the trainings that they are for."""

    nodes: dict[str, Node]
    trainings: list[Training] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    waiting: dict[str, Sweep] = field(default_factory=dict)
    """Trainings, by name and seed in words, that cannot be planned before a sweep has ended."""

    def users(self) -> dict[str, list[str]]:
        """For each node the arms that need it."""
        found: dict[str, list[str]] = {key: [] for key in self.nodes}
        needed = [(training.arm, training.made_from()) for training in self.trainings]
        needed += [(sweep.arm, node.ancestry()) for sweep in self.sweeps for node in sweep.trials]
        for arm, keys in needed:
            for key in keys:
                if arm not in found[key]:
                    found[key].append(arm)
        return found


def plan_grid(experiment: ExperimentConfig) -> Grid:
    """Lay out every arm, seed, share and round.

    Raises:
        SbpError: a setting or an input file is wrong, or two arms come to the same.
    """
    _refuse_sweep_without_split(experiment)
    planner = _Planner(experiment)
    for arm in experiment.arms:
        for seed in experiment.seeds:
            planner.add_arm(arm, seed)
    _refuse_equal_arms(planner.grid)
    return planner.grid


class _Made(NamedTuple):
    """What comes of an arm and seed at one share and round."""

    share: float | None
    round: int
    models: tuple[Node, ...]
    """One, or the members of an ensemble; none while the sweep goes on."""
    tuning: Tuning | None = None
    sweep: Sweep | None = None


class _Planner:
    """Adds the nodes of one arm after the other; what is there already is not added again."""

    def __init__(self, experiment: ExperimentConfig) -> None:
        self._experiment, self._chains = experiment, Chains(experiment)
        self.grid = Grid(self._chains.nodes)
        self._descents: dict[tuple[str, float | None, int], tuple[Sweep, Tuning | None]] = {}
        """By arm, share and round; no tuning while the sweep goes on."""

    def add_arm(self, arm: str, seed: int) -> None:
        """All trainings of one arm and seed."""
        for made in self._made(arm, seed, self._chain_seed(seed)):
            self._add_training(arm, seed, made)

    def _chain_seed(self, seed: int) -> int:
        """Of the synthesizer and its text."""
        return seed if self._experiment.synthesizer_per_seed else self._experiment.seeds[0]

    def _made(self, arm: str, seed: int, chain_seed: int) -> Iterator[_Made]:
        """What comes of one arm and seed: for each share and round a model, or several."""
        built_in, first = self._experiment.built_in(arm), self._experiment.seeds[0]
        if built_in.of_many:
            yield from self._made_of_many(arm, seed, chain_seed)
            return
        if self._experiment.is_tuned(arm) and seed != first and all(arm != swept for swept, *_ in self._descents):
            list(self._made(arm, first, self._chain_seed(first)))  # the sweep, which is the first seed's
        config = self._chains.config_of(arm)
        after = [self._chains.corpus_of_base()] if self._chains.corpus_times(arm) is not None else []
        corpus = self._chains.node("ingest", config, {}, after=after)
        if not built_in.has_synthetic:
            read = {"corpus": corpus, **self._chains.graph(config, corpus)}
            yield self._settle(arm, None, 1, seed, "pretrain-repetition", config.mixture, read)
            return
        seeded = with_seed(config, chain_seed)
        own = self._chains.for_base_lm(arm, seeded)
        base_lm = self._chains.node("pretrain-repetition", own, {"corpus": corpus, **self._chains.graph(own, corpus)})
        embeddings, pairs = self._chains.mine(seeded, corpus, base_lm if built_in.base_lm_embeds else None)

        def write(lm: Node) -> Node:
            made = {"corpus": corpus, "embeddings": embeddings, "pairs": pairs}
            if built_in.outside_writes:
                return self._chains.synthesize(seeded, made)
            if not built_in.base_lm_writes:
                lm = self._chains.node("tune", seeded, {"corpus": corpus, "pairs": pairs, "base_lm": lm})
            return self._chains.synthesize(seeded, made | {"synthesizer": lm})

        for share in self._experiment.arms[arm].shares or self._experiment.shares:
            mixture = _with_share(config.mixture, share)
            is_once = built_in.base_lm_writes or built_in.outside_writes
            writer, num_rounds = base_lm, 1 if is_once else self._experiment.rounds
            for number in range(1, num_rounds + 1):
                read = {"corpus": corpus, "synthetic": write(writer), **self._chains.graph(config, corpus, pairs)}
                made = self._settle(arm, share, number, seed, "pretrain-sbp", mixture, read)
                yield made
                if number == num_rounds or not made.models:
                    break
                # The next round goes on from the LM of the chain's seed.
                [writer] = self._settle(arm, share, number, chain_seed, "pretrain-sbp", mixture, read).models

    def _settle(
        self,
        arm: str,
        share: float | None,
        number: int,
        seed: int,
        stage: str,
        mixture: MixtureConfig,
        read: Mapping[str, Node],
    ) -> _Made:
        """The arm's model, with the settings that its sweep has found; none while the sweep goes on."""

        def model(point: Point, seed: int) -> Node:
            config = self._chains.config_of(arm, point).model_copy(update={"mixture": mixture})
            return self._chains.node(stage, with_seed(config, seed), read)

        if not self._experiment.is_tuned(arm):
            return _Made(share, number, (model({}, seed),))
        place = arm, share, number
        if place not in self._descents:
            self._descents[place] = self._sweep(arm, _name(arm, share, number), partial(model, seed=seed))
        sweep, tuning = self._descents[place]
        models = () if tuning is None else (model(tuning.chosen, seed),)
        return _Made(share, number, models, tuning, sweep)

    def _sweep(self, arm: str, name: str, model: Callable[[Point], Node]) -> tuple[Sweep, Tuning | None]:
        """As far as it has come."""
        cfg = self._experiment.sweep
        assert cfg is not None, "refused with the settings"
        own = self._chains.config_of(arm).pretrain
        start = {setting: getattr(own, setting.partition(".")[2]) for setting in cfg.settings}
        for setting, values in cfg.settings.items():
            for value in values:
                self._chains.config_of(arm, {setting: value})  # all are in range, also those that come last
        descent = descend(cfg.settings, start, cfg.max_trainings, lambda point: development_loss(model(point)))
        trials = [model(point) for point in descent.tried]
        sweep = Sweep(name, arm, trials, cfg.max_trainings, descent.chosen)
        self.grid.sweeps.append(sweep)
        if descent.chosen is None:
            return sweep, None
        tried = {key: [start[key], *(v for v in values if v != start[key])] for key, values in cfg.settings.items()}
        return sweep, Tuning(trials, tried, descent.chosen, cfg.max_trainings)

    def _made_of_many(self, arm: str, seed: int, chain_seed: int) -> Iterator[_Made]:
        """Several models of another arm, its own of this seed first; or one that is taught by them."""
        own = self._experiment.arms[arm]
        of = own.of or BASELINE
        seeds = [seed + place * _BETWEEN_MEMBERS for place in range(own.members or _MEMBERS)]
        for alike in zip(*(self._made(of, member, chain_seed) for member in seeds), strict=True):
            first = alike[0]
            members = tuple(model for made in alike for model in made.models)
            if members and self._experiment.built_in(arm).of_many == "taught by":
                members = (self._taught(arm, of, seed, first, members),)
            yield _Made(first.share, first.round, members, first.tuning, first.sweep)

    def _taught(self, arm: str, of: str, seed: int, alike: _Made, teachers: tuple[Node, ...]) -> Node:
        """A model as its teachers are, but for what the arm says."""
        overrides = self._experiment.arms[arm].overrides
        config = self._chains.config_of(of, alike.tuning.chosen if alike.tuning else {}, overrides, where=arm)
        pretrain = config.pretrain.model_copy(
            update={"teachers": tuple(f"{node.config.run_dir}/model" for node in teachers)}
        )
        config = config.model_copy(update={"pretrain": pretrain, "mixture": teachers[0].config.mixture})
        return self._chains.node(teachers[0].stage.name, with_seed(config, seed), teachers[0].inputs, after=teachers)

    def _add_training(self, arm: str, seed: int, made: _Made) -> None:
        name = _name(arm, made.share, made.round)
        if not made.models:
            assert made.sweep is not None, "what is not known waits for a sweep"
            self.grid.waiting[f"{name} seed {seed}"] = made.sweep
            return
        model = made.models[0]
        training = Training(
            name=name,
            arm=arm,
            like=self._experiment.arms[arm].like or arm,
            says=self._experiment.built_in(arm).says,
            seed=seed,
            share=made.share,
            round=made.round,
            tokens=model.config.pretrain.num_positions(),
            model=model,
            members=made.models if self._experiment.built_in(arm).of_many == "averaged" else (),
            tuning=made.tuning,
        )
        self.grid.trainings.append(training)


def _name(arm: str, share: float | None, number: int) -> str:
    """Of an arm with its share and round."""
    shown = ([] if share is None else [f"{100 * share:g} %"]) + ([f"round {number}"] if number > 1 else [])
    return " ".join([arm, *shown])


def _with_share(mixture: MixtureConfig, share: float) -> MixtureConfig:
    """The arm's mixture with a share in the place of whatever amount of synthetic text it names."""
    amount = {"synthetic_share": share, "real_tokens": None, "synthetic_tokens": None}
    return mixture.model_copy(update=amount)


def _refuse_sweep_without_split(experiment: ExperimentConfig) -> None:
    if experiment.sweep and not experiment.base_config().ingest.development_share:
        raise SbpError(
            "sweep: it chooses by the development split, and base has none: raise ingest.development_share (held-out "
            "documents that are reported are never chosen by)"
        )


def _refuse_equal_arms(grid: Grid) -> None:
    first: dict[tuple[str, int], str] = {}
    for training in (training for training in grid.trainings if not training.tuning):  # a sweep may end anywhere
        other = first.setdefault((training.key, training.seed), training.name)
        if other != training.name:
            raise SbpError(f"arms: {training.name} comes to the same training as {other}: give it another setting")
