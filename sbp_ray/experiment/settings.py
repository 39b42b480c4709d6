"""What an experiment is: its arms, seeds and shares, and the run that they all start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from sbp_ray.cli import with_absolute_folders
from sbp_ray.config import Config, Place, PretrainConfig, Section, Seed
from sbp_ray.config_file import read_yaml, settings_of
from sbp_ray.errors import SbpError, did_you_mean
from sbp_ray.experiment.arms import BASELINE, BUILT_IN, BuiltIn

_NOT_SWEPT = {"arm", "seed", "base", "seq_len", "batch_rows", "resources", "teachers", "in_context"}
"""They change the text, or, as rows of another length or number do, the part of the development split that a training
measures: losses of other documents do not compare."""
Share = Annotated[float, Field(gt=0, lt=1)]


class SweepConfig(Section):
    """What every tuned arm is swept over: equal settings, equal budgets."""

    settings: dict[str, Annotated[tuple[int | float | str | bool | None, ...], Field(min_length=1)]]
    """Of `pretrain`, each with the values to try beside the arm's own: `pretrain.weight_decay: [0.3, 1.0, 3.0]`. One
    after the other is set to its best value (coordinate descent), in this order, until none moves any more."""
    max_trainings: Annotated[int, Field(ge=2)] = 16
    """Of each arm's sweep, with the experiment's first seed."""

    @model_validator(mode="after")
    def _settings_decide_the_training(self) -> SweepConfig:
        if not self.settings:
            raise ValueError("settings: there is none: say what is swept, such as pretrain.weight_decay: [0.3, 1.0]")
        for name, values in self.settings.items():
            section, _, setting = name.partition(".")
            if section != "pretrain" or setting in _NOT_SWEPT or setting not in PretrainConfig.model_fields:
                hint = did_you_mean(setting, PretrainConfig.model_fields.keys() - _NOT_SWEPT)
                raise ValueError(f"settings.{name}: it is no setting of pretrain that can be swept; {hint}")
            if len(set(values)) < len(values):
                raise ValueError(f"settings.{name}: a value is there twice: take one out")
        return self


class ArmConfig(Section):
    """An arm: a built-in one, or one like it with other settings."""

    like: str | None = None
    """The built-in arm that this one starts from; without it, the one of its own name."""
    overrides: tuple[str, ...] = ()
    """What it changes in `base`, written as on a command line: `pretrain.weight_decay=1.0`."""
    shares: tuple[Share, ...] | None = None
    """Synthetic shares of this arm, instead of the experiment's."""
    corpus_times: Annotated[float, Field(gt=0)] | None = None
    """How many times as many train documents as `ingest.max_train_documents` of `base` this arm has, with the tokenizer
    of the others; without it as many, and the oracle `oracle_times` as many."""
    writer: tuple[str, ...] = ()
    """What the LM that is tuned, or writes untuned, has otherwise than the base LM, of `model` and `pretrain`: a larger
    one writes with `[model.num_layers=4]`."""
    tuned: bool = False
    """Whether its settings of `pretrain` come from the experiment's `sweep`; those of `tuned` always do."""
    of: str | None = None
    """Of an ensemble or a distilled arm: the arm whose models it averages or learns from; without it, `repetition`."""
    members: Annotated[int, Field(ge=2)] | None = None
    """Of an ensemble or a distilled arm: so many models of each seed, the arm's own and others; without it, 4."""


class ExperimentConfig(Section):
    """The whole file of an experiment."""

    run_dir: Place
    """Where everything lies: `artifacts/`, `logs/`, `experiment.json`, `experiment.html`."""
    base: Place | dict[str, Any]
    """The run that all arms start from: the settings of a run, or a file that holds them, of a run or of another
    experiment, whose `base` it then is."""
    arms: dict[str, ArmConfig]
    """By name; `repetition`, which the others are compared with, is one of them."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Of initial weights, order of the rows, and samples; `base` keeps its seeds of the split and of the draws."""
    shares: tuple[Share, ...] = (0.125, 0.25, 0.375, 0.5)
    """Share of synthetic positions; each arm with synthetic text is trained once for each."""
    sweep: SweepConfig | None = None
    """Of the tuned arms."""
    rounds: PositiveInt = 1
    """With 2, each joint LM is tuned to the next synthesizer, which writes the text of another joint LM; and so on."""
    oracle_times: Annotated[float, Field(gt=1)] = 8
    """How many times as many train documents as `ingest.max_train_documents` of `base` the oracle arm has."""
    synthesizer_per_seed: bool = True
    """Whether each seed has a synthesizer and synthetic text of its own; else all have those of the first seed, and the
    intervals leave out how far another synthesizer would have moved the result."""
    dollars_per_hour: NonNegativeFloat = 0.0
    """Price of the whole cluster; an artifact costs the share of it that its workers held, for as long as they did."""

    @model_validator(mode="after")
    def _grid_is_sound(self) -> ExperimentConfig:
        for name, values in (("seeds", self.seeds), ("shares", self.shares)):
            if not values:
                raise ValueError(f"{name}: there is none: give one at least")
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"{name}: {twice[0]} is there twice: take one out")
        if BASELINE not in self.arms:
            raise ValueError(f"arms: {BASELINE} is missing, which the others are compared with: add it")
        for name, arm in self.arms.items():
            if (arm.like or name) not in BUILT_IN:
                hint = did_you_mean(arm.like or name, BUILT_IN)
                where = f"arms.{name}.like={arm.like}" if arm.like else f"arms.{name}"
                raise ValueError(f"{where}: no such arm; {hint}; an arm of your own says which it is `like`")
        for name, arm in self.arms.items():
            self._refuse_unfit(name, arm)
        if self.sweep and not any(map(self.is_tuned, self.arms)):
            raise ValueError("sweep: no arm is tuned: add the arm tuned, or say `tuned: true` of others")
        return self

    def _refuse_unfit(self, name: str, arm: ArmConfig) -> None:
        of_many = self.built_in(name).of_many
        if name == BASELINE and arm.tuned:
            raise ValueError(f"arms.{name}.tuned: it is what the others are compared with: add the arm tuned")
        for key in ("shares", "writer"):
            if getattr(arm, key) and not self.built_in(name).has_synthetic:
                raise ValueError(f"arms.{name}.{key}: it reads no synthetic text: take it out")
        if self.is_tuned(name) and self.sweep is None:
            raise ValueError(f"arms.{name} is tuned, and sweep does not say over what: add sweep.settings")
        if of_many and arm.tuned:
            raise ValueError(f"arms.{name}.tuned: tune the arm that it is made `of`, whose settings it has")
        if not of_many and (arm.of or arm.members):
            raise ValueError(f"arms.{name}: of and members are for ensemble and distilled, and arms like them")
        if of_many and (arm.of or BASELINE) not in self.arms:
            raise ValueError(f"arms.{name}.of={arm.of}: there is no such arm; {did_you_mean(arm.of or '', self.arms)}")
        if of_many and self.built_in(arm.of or BASELINE).of_many:
            raise ValueError(f"arms.{name}.of={arm.of}: that arm is made of several models itself: name a plain one")
        own = {"overrides": arm.overrides if of_many == "averaged" else (), "writer": arm.writer, "shares": arm.shares}
        for key, value in (own | {"corpus_times": arm.corpus_times}).items():
            if of_many and value:
                raise ValueError(f"arms.{name}.{key}: it is as the arm that it is made `of`: set it there")

    def is_tuned(self, arm: str) -> bool:
        """Whether the sweep decides its settings."""
        return self.arms[arm].tuned or self.built_in(arm).is_tuned

    def built_in(self, arm: str) -> BuiltIn:
        """What the arm starts from."""
        return BUILT_IN[self.arms[arm].like or arm]

    def base_config(self, *overrides: str, where: str = "base") -> Config:
        """The settings of `base` with changes."""
        tree = self.base if isinstance(self.base, dict) else _read_base(self.base)
        where = where if isinstance(self.base, dict) else f"{where} ({self.base})"
        config = with_absolute_folders(settings_of(Config, {**tree, "run_dir": self.run_dir}, overrides, where=where))
        if config.artifacts:
            raise SbpError(f"{where}.artifacts: an experiment makes its own, which arms and seeds share: take it out")
        return config


def load_experiment(path: str, overrides: list[str]) -> ExperimentConfig:
    """Read an experiment's file, apply overrides such as `seeds=[0]`, and check everything but the inputs.

    Raises:
        SbpError: the file or a setting is wrong; one line with the key and the remedy.
    """
    tree = read_yaml(path)
    if isinstance(tree.get("base"), str) and any(override.startswith("base.") for override in overrides):
        tree = {**tree, "base": _read_base(tree["base"])}
    experiment = settings_of(ExperimentConfig, tree, overrides, where=path)
    if "://" in experiment.run_dir:
        raise SbpError(
            f"{path}: run_dir={experiment.run_dir}: an experiment's folder is a local or a shared one, in which its "
            "jobs' settings and logs lie too: give a path"
        )
    return experiment.model_copy(update={"run_dir": str(Path(experiment.run_dir).resolve())})


def _read_base(path: str) -> dict[str, Any]:
    """The settings of the run in a file; of an experiment's file those of its own base."""
    tree = read_yaml(str(Path(path).expanduser()))
    return tree["base"] if isinstance(tree.get("base"), dict) else tree
