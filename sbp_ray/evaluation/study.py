"""What is measured: trainings, and the nodes that they were made from. A run is a study of one seed and two arms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sbp_ray.artifacts import Artifact, fingerprint_of
from sbp_ray.config import Config
from sbp_ray.nodes import Node

BASELINE = "repetition"
"""The arm that the others are compared with."""
CONTROLS = (BASELINE, "regularised", "tuned", "in_context", "token_noise", "unconditional", "alone", "random_pairs")
"""Kinds of arms that one must beat, on the same corpus and with as many tokens, before its gain is the relation's."""
ORACLE = "oracle"
"""The arm that trains on more real text."""

Costs = Mapping[str, float]
"""`flops`, `hours`, `gpu_hours`, `dollars`, `outside_dollars`."""


@dataclass(frozen=True)
class Tuning:
    """A sweep that an arm's settings come from, by the loss on the development split."""

    trials: Sequence[Node]
    """All trainings of the sweep, which the arm is charged."""
    tried: Mapping[str, Sequence[Any]]
    """Values of each setting, the arm's own among them."""
    chosen: Mapping[str, Any]
    max_trainings: int


@dataclass(frozen=True)
class Training:
    """One arm with its share and round, one seed, and the model that comes of it."""

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
    model: Node
    """Of an ensemble its first member."""
    members: tuple[Node, ...] = ()
    """Of an ensemble: the models whose probabilities are averaged."""
    tuning: Tuning | None = None

    @property
    def models(self) -> tuple[Node, ...]:
        """What is scored together."""
        return self.members or (self.model,)

    @property
    def key(self) -> str:
        """Of what is scored: the model's, or one of all members together."""
        if not self.members:
            return self.model.key
        return f"ensemble-{fingerprint_of({node.key: node.fingerprint for node in self.members})[:8]}"

    def made_from(self) -> dict[str, Node]:
        """Everything that the arm is charged for, by key, inputs first."""
        found: dict[str, Node] = {}
        for node in (*(self.tuning.trials if self.tuning else ()), *self.models):
            found |= node.ancestry()
        return found


@dataclass(frozen=True)
class Study:
    """Models to be compared on one split of one corpus."""

    settings: Config
    """`eval`, `benchmarks`, `decontaminate`, `pretrain.seq_len`: the same for all."""
    trainings: Sequence[Training]
    """Finished ones, the baseline's among them."""
    nodes: Sequence[Node] = ()
    """Every artifact to report, inputs first; unfinished ones among them."""
    costs: Mapping[tuple[str, int], Costs] = field(default_factory=dict)
    """By name and seed of the training: everything that its models were made from. Empty where nobody counted."""
    own_costs: Mapping[tuple[str, int], Costs] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, tuple[Node, ...]]:
        """What is scored, each once, by key: a model, or the members of an ensemble."""
        return {training.key: training.models for training in self.trainings}

    @property
    def corpus(self) -> Artifact:
        """That of the baseline: held-out documents are the same in all."""
        return next(training for training in self.trainings if training.arm == BASELINE).model.inputs["corpus"].artifact

    def by_arm(self) -> dict[str, dict[int, Training]]:
        """Trainings by name and seed."""
        found: dict[str, dict[int, Training]] = {}
        for training in self.trainings:
            found.setdefault(training.name, {})[training.seed] = training
        return found

    def users(self, noun: str, *, read_it: bool = False) -> list[tuple[Node, list[Training]]]:
        """Each artifact of this noun that a model was made from, with the trainings that it is for, each name once.

        Args:
            read_it: only those that the models themselves were trained on.
        """
        found: dict[str, tuple[Node, dict[str, Training]]] = {}
        for training in self.trainings:
            parts: dict[str, Node] = {}
            for model in training.models:
                parts |= {node.key: node for node in model.inputs.values()} if read_it else model.ancestry()
            for node in (node for node in parts.values() if node.stage.writes == noun):
                found.setdefault(node.key, (node, {}))[1].setdefault(training.name, training)
        return [(node, list(trainings.values())) for node, trainings in found.values()]


def names_of(trainings: Iterable[Training]) -> list[str]:
    """For whom an artifact is, in the order of the trainings."""
    return [training.name for training in trainings]
