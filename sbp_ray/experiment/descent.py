"""A sweep by coordinate descent: which settings are tried next follows from the losses of those that were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sbp_ray.errors import SbpError
from sbp_ray.nodes import Node
from sbp_ray.plan import is_done

Point = Mapping[str, Any]
"""A value for each setting that is swept."""


def development_loss(model: Node) -> float | None:
    """Of a trial, in nats a token of the development split, at the checkpoint that it exported; None until it is done.

    Raises:
        SbpError: it was not measured.
    """
    if not is_done(model):
        return None
    loss = model.stats["exported"].get("development_nats")
    if loss is None:
        raise SbpError(
            f"{model.artifact.url} is finished, and has no loss on the development split, by which a sweep chooses: "
            "the split has no documents (raise ingest.development_share), or it is too old (delete the folder)"
        )
    return float(loss)


class Descent(NamedTuple):
    """How far a sweep has come."""

    tried: list[Point]
    """In order; the first is where it began. Those without a loss are next."""
    chosen: Point | None
    """Where it ends; None while losses are missing."""


def descend(
    lines: Mapping[str, Sequence[Any]], start: Point, most: int, loss_of: Callable[[Point], float | None]
) -> Descent:
    """One setting after the other: all its values are tried, the others as they are, and the best is kept.

    It ends when no setting has moved in a whole round, or `most` points have been tried. Of equal losses the earlier
    point stays.

    Args:
        lines: the values of each setting, beside that of `start`.
        loss_of: None where it is not known yet.
    """
    at, tried = start, list[Point]()
    while True:
        before = at
        for setting, values in lines.items():
            line: list[Point] = [at, *({**at, setting: value} for value in (start[setting], *values))]
            for point in line:
                if point not in tried and len(tried) < most:
                    tried.append(point)
            there = [point for point in line if point in tried]
            losses = [loss for point in there if (loss := loss_of(point)) is not None]
            if len(losses) < len(there):
                return Descent(tried, None)
            at = there[losses.index(min(losses))]
        if at == before:
            return Descent(tried, at)


@dataclass(frozen=True)
class Sweep:
    """Trainings that an arm's settings are chosen by."""

    name: str
    """Of the arm with its share and round."""
    arm: str
    trials: list[Node]
    """Known so far."""
    most: int
    """Trainings of it, however far it goes."""
    chosen: Point | None
    """None while losses are missing."""

    @property
    def is_open(self) -> bool:
        """Whether more of it is to come."""
        return self.chosen is None

    def progress(self) -> str:
        """In words."""
        if self.chosen is None:
            return f"its sweep goes on: {len(self.trials)} trainings so far, {self.most} at most"
        found = ", ".join(f"{setting}={value}" for setting, value in self.chosen.items())
        return f"its sweep ended after {len(self.trials)} trainings: {found}"
