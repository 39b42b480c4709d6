"""What is measured: trained models, each with all that it was made from. A run is a study of one seed and two arms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config

BASELINE = "repetition"
"""The arm that the others are compared with."""
ORACLE = "oracle"
"""The arm that trains on more real text."""

Costs = Mapping[str, float]
"""`flops`, `hours`, `gpu_hours`, `dollars`."""


@dataclass(frozen=True)
class Made:
    """An artifact and the artifacts that it was made from."""

    key: str
    """Unique for what it was made from: what is measured of it is kept under this name."""
    stage: str
    artifact: Artifact
    config: Config
    inputs: Mapping[str, Made] = field(default_factory=dict)
    """By noun."""

    @property
    def stats(self) -> dict[str, Any]:
        """What its stage counted; empty until it is finished."""
        return (self.artifact.manifest() or {}).get("stats", {})  # type: ignore[no-any-return]

    def is_done(self) -> bool:
        return self.artifact.manifest() is not None

    def ancestry(self) -> dict[str, Made]:
        """The artifact and all that it was made from, by key, inputs first."""
        found: dict[str, Made] = {}
        for one in self.inputs.values():
            found |= one.ancestry()
        return found | {self.key: self}


@dataclass(frozen=True)
class Trained:
    """A finished training: one arm with its share and round, and one seed."""

    name: str
    """Of the arm with its share and round, the same for all seeds."""
    arm: str
    like: str
    """The built-in arm that it is or starts from."""
    says: str
    """How it trains, in words."""
    seed: int
    share: float | None
    """Of synthetic positions; None where all text is real."""
    round: int
    tokens: int
    """Training positions."""
    model: Made
    cost: Costs | None = None
    """Of everything that it was made from; None where nobody counted."""
    own_cost: Costs | None = None


@dataclass(frozen=True)
class Study:
    """Models to be compared on one split of one corpus."""

    settings: Config
    """`eval`, `benchmarks`, `decontaminate`, `pretrain.seq_len`: the same for all."""
    trained: Sequence[Trained]
    """The baseline's among them."""
    made: Sequence[Made] = ()
    """Every artifact to report, inputs first; unfinished ones among them."""

    @property
    def models(self) -> dict[str, Made]:
        """Each model once, by key."""
        return {one.model.key: one.model for one in self.trained}

    @property
    def corpus(self) -> Artifact:
        """That of the baseline: held-out documents are the same in all."""
        return next(one for one in self.trained if one.arm == BASELINE).model.inputs["corpus"].artifact

    def by_arm(self) -> dict[str, dict[int, Trained]]:
        """Trainings by name and seed."""
        found: dict[str, dict[int, Trained]] = {}
        for one in self.trained:
            found.setdefault(one.name, {})[one.seed] = one
        return found

    def users(self, noun: str, *, read_it: bool = False) -> list[tuple[Made, list[Trained]]]:
        """Each artifact of this noun that a model was made from, with the trainings that it is for, each name once.

        Args:
            read_it: only those that the models themselves were trained on.
        """
        made: dict[str, Made] = {}
        names: dict[str, dict[str, Trained]] = {}
        for one in self.trained:
            parts = one.model.inputs.values() if read_it else one.model.ancestry().values()
            for part in (part for part in parts if part.artifact.name == noun):
                made[part.key] = part
                names.setdefault(part.key, {}).setdefault(one.name, one)
        return [(made[key], list(found.values())) for key, found in names.items()]


def names_of(trained: Iterable[Trained]) -> list[str]:
    """For whom an artifact is, in the order of the trainings."""
    return [one.name for one in trained]
