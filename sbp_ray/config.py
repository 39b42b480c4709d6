"""Every setting of every stage, its type, range, default and meaning: one frozen tree."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from sbp_ray.config_base import Dtype, ForwardResources, Place, Resources, Section, Seed
from sbp_ray.config_data import DecontaminateConfig, EmbedConfig, IngestConfig, NeighborsConfig, PairConfig
from sbp_ray.config_engine import (
    SPEED_ONLY,
    EngineConfig,
    EngineResources,
    RephraseConfig,
    RephraseResources,
    ServiceConfig,
    SynthesizeConfig,
    SynthesizeResources,
)
from sbp_ray.config_evaluation import BenchmarkConfig, BenchmarksConfig, EvalConfig, JudgeConfig, JudgeResources
from sbp_ray.config_training import (
    MixtureConfig,
    ModelConfig,
    PretrainConfig,
    TrainingConfig,
    TrainingResources,
    TuneConfig,
    shape_of_depth,
)
from sbp_ray.errors import did_you_mean
from sbp_ray.stage_table import NOUNS

__all__ = (
    "SPEED_ONLY",
    "BenchmarkConfig", "BenchmarksConfig", "ClusterConfig", "Config", "DecontaminateConfig", "Dtype", "EmbedConfig",
    "EngineConfig", "EngineResources", "EvalConfig", "ForwardResources", "IngestConfig", "JudgeConfig",
    "JudgeResources", "MixtureConfig", "ModelConfig", "NeighborsConfig", "PairConfig", "Place", "PretrainConfig",
    "RephraseConfig", "RephraseResources", "Resources", "Section", "Seed", "ServiceConfig", "SynthesizeConfig",
    "SynthesizeResources", "TrackingConfig", "TrainingConfig", "TrainingResources", "TuneConfig",
    "shape_of_depth",
)  # fmt: skip
_TOTAL_TOLERANCE = 1e-3  # token budgets must add up to the run's tokens this well


class TrackingConfig(Section):
    """Who gets a copy of the trainings' curves, beside `metrics.jsonl`, which has them in any case. Free to change."""

    tensorboard: Place | None = None
    """A folder for TensorBoard's event files, below which each training has its own; needs the extra `tensorboard`."""
    wandb: str | None = None
    """A project of Weights & Biases, whose own environment variables hold, such as WANDB_API_KEY, WANDB_ENTITY, and
    WANDB_MODE=offline; needs the extra `wandb`."""


class ClusterConfig(Section):
    """What a job's own Ray has; what a cluster can have, and costs. On a cluster (RAY_ADDRESS) its own sizes hold."""

    most: dict[Literal["CPU", "GPU", "memory"], NonNegativeFloat] = Field(default={})
    """The most that the cluster can ever have, such as `{CPU: 512, GPU: 64}`, memory in bytes: what wants more is
    refused at once. What is not named here is found out where it is published, see docs/operations.md."""

    dollars_per_gpu_hour: NonNegativeFloat = 2.5
    """For `jobs/pipeline.py --plan`: a GPU with its share of the machine around it. The default is assumed."""
    dollars_per_core_hour: NonNegativeFloat = 0.05
    """For the same: a CPU core of stages without GPUs. The default is assumed."""
    num_cpus: PositiveInt = 4
    """Logical CPUs of the local Ray: a limit on what runs side by side, not a count of cores."""
    object_store_gib: PositiveFloat = 1.0
    """Memory of the local object store."""
    dashboard_port: PositiveInt = 8265
    """Port of the local dashboard; the next free one is taken when it is in use."""


class Config(Section):
    """The whole file."""

    run_dir: Place
    """Where all artifacts lie: a local folder, or s3:// or gs://."""
    artifacts: dict[str, Place] = Field(default={})
    """Where an artifact lies that is not under `run_dir`, by its noun, such as `{corpus: runs/demo/1_corpus}`: so that
    runs share what is expensive. It is read, and never begun, changed or deleted."""
    ingest: IngestConfig
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    embed: EmbedConfig = EmbedConfig()
    neighbors: NeighborsConfig = NeighborsConfig()
    pair: PairConfig = PairConfig()
    model: ModelConfig
    pretrain: PretrainConfig
    mixture: MixtureConfig = MixtureConfig()
    tune: TuneConfig
    engine: EngineConfig = EngineConfig()
    synthesize: SynthesizeConfig = SynthesizeConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("artifacts", mode="before")
    @classmethod
    def _nouns_are_known(cls, given: Any) -> Any:
        for noun in given if isinstance(given, dict) else ():
            if noun not in NOUNS:
                raise ValueError(f"{noun}: no such artifact; {did_you_mean(str(noun), NOUNS)}")
        return given

    @model_validator(mode="after")
    def _budgets_add_up(self) -> Config:
        if self.mixture.real_tokens is not None and self.mixture.synthetic_tokens is not None:
            budget, total = self.mixture.real_tokens + self.mixture.synthetic_tokens, self.pretrain.total_tokens
            if abs(budget - total) > _TOTAL_TOLERANCE * total:
                raise ValueError(
                    f"mixture.real_tokens and mixture.synthetic_tokens add up to {budget:,}, and "
                    f"pretrain.total_tokens is {total:,}: make them equal"
                )
        return self

    @model_validator(mode="after")
    def _the_best_can_be_told(self) -> Config:
        for section in ("pretrain", "tune"):
            if getattr(self, section).checkpoint == "best" and not self.ingest.development_share:
                raise ValueError(
                    f"{section}.checkpoint=best chooses by the development split, and ingest.development_share is 0: "
                    f"raise it, or set {section}.checkpoint=last"
                )
        return self

    @model_validator(mode="after")
    def _conditions_agree(self) -> Config:
        if self.tune.condition == "none" and self.synthesize.condition != "none":
            raise ValueError(
                f"synthesize.condition={self.synthesize.condition} gives d1 to an LM that tune.condition=none has "
                "tuned without: make both none"
            )
        if self.synthesize.condition == "none" and self.mixture.megadocs:
            raise ValueError(
                "mixture.megadocs puts d1 behind what was written from it, and synthesize.condition=none writes from "
                "nothing: take one of them out"
            )
        return self

    @model_validator(mode="after")
    def _a_pair_fits(self) -> Config:
        longest = self.model.max_positions
        for section, (key, value) in [
            ("pretrain", self.pretrain.longest_document()),
            ("tune", self.tune.longest_document()),
            ("engine", ("max_model_len", self.engine.max_model_len)),
        ]:
            if value > longest:
                raise ValueError(f"{section}.{key} ({value}) is more than model.max_positions ({longest})")
        if self.synthesize.max_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"synthesize.max_tokens ({self.synthesize.max_tokens}) leaves no room for d1 "
                f"in engine.max_model_len ({self.engine.max_model_len})"
            )
        return self
