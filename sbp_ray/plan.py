"""What each stage is going to make, worked out before anything runs, and what lies there already.

`plan_node` gives one stage its recipe and its fingerprint. `plan_run` calls it for the stages of a run, and the grid of
an experiment for all its arms. `state_of` judges a folder against the plan: before the first stage runs
(`refuse_stale`), and again right before each stage (`require_ready`). `remove_artifacts` deletes the last
one first.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact, fingerprint_of
from sbp_ray.config import Config
from sbp_ray.errors import SbpError
from sbp_ray.recipes import deciding_settings, describe_differences, input_files
from sbp_ray.stage_table import FOLDERS, NOUNS, STAGES, Stage

logger = logging.getLogger(__name__)

State = Literal["absent", "unfinished", "done", "stale"]
"""`stale`: begun or finished with another recipe than the planned one."""


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

    One that `artifacts` names is another's, unless the run directory is its folder: a run that makes nothing else.
    """
    return noun not in config.artifacts or locate(config, noun).url == config.run_dir.rstrip("/")


# Planning


def plan_run(config: Config, wanted: Collection[str] = NOUNS, redone: Collection[str] = ()) -> dict[str, Node]:
    """A node for each artifact that is wanted, and for those it is made from, in the order of the flow.

    An artifact of another run (`artifacts` in the settings) is what its own start recorded.

    Args:
        redone: artifacts that are about to be deleted: their input files must be there again.

    Raises:
        SbpError: an input file is not there, and what was made from it is not finished.
    """
    needed = set(wanted)
    for stage in reversed(STAGES):
        if stage.writes in needed and is_ours(config, stage.writes):
            needed.update(stage.reads)
    nodes: dict[str, Node] = {}
    for stage in STAGES:
        if stage.writes in needed:
            inputs = {noun: nodes[noun] for noun in stage.reads if noun in nodes}
            made = locate(config, stage.writes)
            started = made.read_json(STARTED) if made.exists(STARTED) else {}
            if is_ours(config, stage.writes):
                is_finished = stage.writes not in redone and made.exists(MANIFEST)
                recorded = started.get("recipe", {}).get("inputs", {}) if is_finished else {}
                nodes[stage.writes] = plan_node(stage, config, inputs, recorded=recorded)
            else:
                recipe, fingerprint = started.get("recipe", {}), started.get("fingerprint", "")
                nodes[stage.writes] = Node(stage, config, recipe, fingerprint, inputs)
    return nodes


def plan_node(
    stage: Stage,
    config: Config,
    inputs: Mapping[str, Node],
    *,
    after: Iterable[Node] = (),
    recorded: Mapping[str, str] | None = None,
) -> Node:
    """The artifact that the stage makes with these settings from these inputs.

    Args:
        recorded: inputs in the recipe of a finished artifact, which stand for files that have gone.
    """
    if stage.arm:
        config = config.model_copy(update={"pretrain": config.pretrain.model_copy(update={"arm": stage.arm})})
    read = {noun: node.fingerprint for noun, node in inputs.items()} | input_files(stage, config, recorded or {})
    recipe = {"settings": deciding_settings(stage, config), "inputs": read}
    return Node(stage, config, recipe, fingerprint_of(recipe), inputs, tuple(after))


# Judging


def state_of(node: Node) -> State:
    """What lies in the node's folder. The rest of a deletion that was cut off counts for nothing."""
    made = node.artifact
    if not made.exists(STARTED) or made.is_being_removed():
        return "absent"
    if made.fingerprint() != node.fingerprint:
        return "stale"
    return "done" if made.exists(MANIFEST) else "unfinished"


def is_done(node: Node) -> bool:
    """Whether the artifact is complete, and made from what the plan says."""
    return state_of(node) == "done"


def refuse_stale(nodes: Iterable[Node]) -> None:
    """
    Raises:
        SbpError: an artifact was made, or begun, from something else than the plan says.
    """
    for node in nodes:
        if not is_ours(node.config, node.stage.writes):
            continue
        if state_of(node) == "stale":
            changes = describe_differences(node.artifact.read_json(STARTED)["recipe"], node.recipe)
            how = "; ".join(changes) or "another recipe"
            remedy = f"use a new run_dir, or --redo {node.stage.name}"
            raise SbpError(f"{node.artifact.url} was made with {how}: {remedy}")


def refuse_unfit(nodes: Iterable[Node]) -> None:
    """
    Raises:
        SbpError: another run's artifact is not finished, or does not go with the plan.
    """
    for node in nodes:
        if not is_ours(node.config, node.stage.writes):
            _refuse_unfit(node)


def _refuse_unfit(node: Node) -> None:
    """An artifact of another stage may stand in (a base LM for the synthesizer, say): then only its inputs count."""
    where = f"artifacts.{node.stage.writes}={node.artifact.url}"
    if not is_done(node):
        raise SbpError(f"{where} is given, and not finished: finish it in its own run, or take it out")
    settings, old = deciding_settings(node.stage, node.config), node.recipe
    shared = old["inputs"].keys() & node.inputs.keys()
    before = {"inputs": {noun: old["inputs"][noun] for noun in shared}}
    now = {"inputs": {noun: node.inputs[noun].fingerprint for noun in shared}}
    if old["settings"].keys() == settings.keys():
        before, now = before | {"settings": old["settings"]}, now | {"settings": settings}
    if changes := list(describe_differences(before, now)):
        raise SbpError(f"{where} was made with {'; '.join(changes)}: make them equal, or take it out")


def require_ready(node: Node) -> None:
    """
    Raises:
        SbpError: an input is not finished, or not what was planned; or another artifact has been begun in the folder.
    """
    for noun, read in node.inputs.items():
        if is_ours(node.config, noun):
            refuse_stale([read])
        if not is_done(read):
            if not is_ours(node.config, noun):
                raise SbpError(f"artifacts.{noun}={read.artifact.url}: no finished artifact lies there")
            arm = f" with pretrain.arm={read.stage.arm}" if read.stage.arm else ""
            raise SbpError(f"{read.artifact.url} is not there yet: run jobs/{read.stage.job}.py first{arm}")
    refuse_stale([node])


# Deleting


def follow(config: Config, stage_name: str) -> list[str]:
    """Artifacts of this run that a stage makes or that are made from it, in the order of the flow.

    Raises:
        SbpError: the stage's artifact is another run's.
    """
    found: list[str] = []
    for stage in STAGES:
        noun = stage.writes
        if stage.name == stage_name and not is_ours(config, noun):
            raise SbpError(
                f"artifacts.{noun}={locate(config, noun).url} belongs to another run, and nothing is deleted there: "
                f"use --redo {stage_name} in its own run"
            )
        if (stage.name == stage_name or {*found} & {*stage.reads}) and is_ours(config, noun):
            found.append(noun)
    return found


def remove_artifacts(config: Config, nouns: Iterable[str]) -> None:
    """Delete the last artifact of the flow first: nothing is ever left without what it was made from."""
    for noun in reversed(list(nouns)):
        made = locate(config, noun)
        made.remove()
        logger.info(f"{made.url} removed")
