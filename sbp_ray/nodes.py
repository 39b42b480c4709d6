"""A node of the plan: an artifact, the stage that makes it, the settings, and the nodes that it is made from.

`plan` says what a node is made from and whether it is there; `evaluation` measures the nodes of a run or an experiment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config
from sbp_ray.stage_table import FOLDERS, Stage


@dataclass(frozen=True, eq=False)
class Node:
    """An artifact to be made by one stage."""

    stage: Stage
    config: Config
    """Complete: where the artifact lies, and where its inputs lie."""
    recipe: dict[str, Any] = field(repr=False)
    fingerprint: str
    """Of the recipe: of settings, input files and the fingerprints of the inputs."""
    inputs: Mapping[str, Node] = field(repr=False)
    """By noun."""
    after: tuple[Node, ...] = field(default=(), repr=False)
    """Nodes that must be done before, for a path in the settings that leads into their folder."""

    @property
    def key(self) -> str:
        """Noun and the first half of the fingerprint."""
        return f"{self.stage.writes}-{self.fingerprint[:8]}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the nodes that must be done before."""
        return tuple(dict.fromkeys(node.key for node in (*self.inputs.values(), *self.after)))

    @property
    def artifact(self) -> Artifact:
        return locate(self.config, self.stage.writes)

    @property
    def stats(self) -> dict[str, Any]:
        """What the stage counted; empty until the artifact is finished."""
        stats: dict[str, Any] = (self.artifact.manifest() or {}).get("stats", {})
        return stats

    def ancestry(self) -> dict[str, Node]:
        """The node and all that must be done before it, by key, inputs first."""
        found: dict[str, Node] = {}
        for node in (*self.inputs.values(), *self.after):
            found |= node.ancestry()
        return found | {self.key: self}

    def placed_in(self, folder: str) -> Node:
        """The node with a folder that is its run directory."""
        where = {noun: node.artifact.url for noun, node in self.inputs.items()}
        placed = {"run_dir": folder, "artifacts": {**where, self.stage.writes: folder}}
        return replace(self, config=self.config.model_copy(update=placed))


def locate(config: Config, noun: str) -> Artifact:
    """The artifact of the run, complete or not: under `run_dir`, or where `artifacts` says."""
    return Artifact(noun, config.artifacts.get(noun, f"{config.run_dir.rstrip('/')}/{FOLDERS[noun]}").rstrip("/"))


def is_ours(config: Config, noun: str) -> bool:
    """Whether the run makes the artifact: then it may be written and deleted.

    One that `artifacts` names is another's, unless the run directory is its folder: a run that makes nothing else. One
    whose folder is a link out of the run directory is too: this run does not hold the lock of where that leads.
    """
    if noun in config.artifacts:
        return locate(config, noun).url == config.run_dir.rstrip("/")
    return "://" in config.run_dir or _real(config, noun).is_relative_to(os.path.realpath(config.run_dir))


def name_given(config: Config, noun: str) -> str:
    """Another run's artifact, as an error names it."""
    url = locate(config, noun).url
    return f"artifacts.{noun}={url}" if noun in config.artifacts else f"{url} (a link to {_real(config, noun)})"


def _real(config: Config, noun: str) -> Path:
    return Path(os.path.realpath(locate(config, noun).url))
