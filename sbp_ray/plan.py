"""What each stage is going to make, worked out before anything runs, and what lies there already.

`plan_node` gives one stage its recipe and its fingerprint. `plan_run` calls it for the stages of a run, and the grid of
an experiment for all its arms. `state_of` judges a folder against the plan: before the first stage runs
(`refuse_stale`), and again right before each stage (`require_ready`). `remove_artifacts` deletes the last
one first.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from sbp_ray.artifacts import MANIFEST, STARTED, fingerprint_of
from sbp_ray.config import Config
from sbp_ray.errors import SbpError
from sbp_ray.nodes import Node, is_ours, locate, name_given
from sbp_ray.recipes import deciding_settings, describe_differences, input_files, reads_of
from sbp_ray.stage_table import NOUNS, STAGES, Stage

logger = logging.getLogger(__name__)

State = Literal["absent", "unfinished", "done", "stale"]
"""`stale`: begun or finished with another recipe than the planned one."""


# Planning


def plan_run(config: Config, wanted: Collection[str] = NOUNS, redone: Collection[str] = ()) -> dict[str, Node]:
    """A node for each artifact that is wanted, and for those it is made from, in the order of the flow.

    An artifact of another run (`artifacts` in the settings, or a link) is what its own start recorded.

    Args:
        redone: artifacts that are about to be deleted: their input files must be there again.

    Raises:
        SbpError: an input file is not there, and what was made from it is not finished.
    """
    needed = set(wanted)
    for stage in reversed(STAGES):
        if stage.writes in needed and is_ours(config, stage.writes):
            needed.update(reads_of(stage, config))
    nodes: dict[str, Node] = {}
    for stage in STAGES:
        if stage.writes in needed:
            inputs = {noun: nodes[noun] for noun in reads_of(stage, config) if noun in nodes}
            made = locate(config, stage.writes)
            started = made.read_json(STARTED) if made.exists(STARTED) else {}
            if is_ours(config, stage.writes):
                is_finished = stage.writes not in redone and made.exists(MANIFEST)
                recorded = started.get("recipe", {}).get("inputs", {}) if is_finished else {}
                nodes[stage.writes] = plan_node(stage, config, inputs, recorded=recorded)
            else:
                recipe, fingerprint = started.get("recipe", {}), started.get("fingerprint", "")
                nodes[stage.writes] = Node(stage, _with_arm(config, stage), recipe, fingerprint, inputs)
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
    config = _with_arm(config, stage)
    read = {noun: node.fingerprint for noun, node in inputs.items()} | input_files(stage, config, recorded or {})
    recipe = {"settings": deciding_settings(stage, config), "inputs": read}
    return Node(stage, config, recipe, fingerprint_of(recipe), inputs, tuple(after))


def _with_arm(config: Config, stage: Stage) -> Config:
    """The settings with the arm that the stage is of; one config serves both."""
    if not stage.arm:
        return config
    return config.model_copy(update={"pretrain": config.pretrain.model_copy(update={"arm": stage.arm})})


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
    """Raises SbpError where an artifact was made, or begun, from something else than the plan says."""
    for node in nodes:
        if not is_ours(node.config, node.stage.writes):
            continue
        if state_of(node) == "stale":
            changes = describe_differences(node.artifact.read_json(STARTED)["recipe"], node.recipe)
            how = "; ".join(changes) or "another recipe"
            remedy = f"use a new run_dir, or --redo {node.stage.name}"
            raise SbpError(f"{node.artifact.url} was made with {how}: {remedy}")


def refuse_unfit(nodes: Iterable[Node]) -> None:
    """Raises SbpError where another run's artifact is not finished, or does not go with the plan."""
    for node in nodes:
        if is_ours(node.config, node.stage.writes):
            continue
        where = name_given(node.config, node.stage.writes)
        if not is_done(node):
            raise SbpError(f"{where} is given, and not finished: finish it in its own run, or take it out")
        settings, old = deciding_settings(node.stage, node.config), node.recipe
        shared = old["inputs"].keys() & node.inputs.keys()
        before = {"inputs": {noun: old["inputs"][noun] for noun in shared}}
        now = {"inputs": {noun: node.inputs[noun].fingerprint for noun in shared}}
        # An artifact of another stage may stand in, a base LM for the synthesizer, say: then only its inputs count.
        if old["settings"].keys() == settings.keys():
            before, now = before | {"settings": old["settings"]}, now | {"settings": settings}
        if changes := list(describe_differences(before, now)):
            raise SbpError(f"{where} was made with {'; '.join(changes)}: make them equal, or take it out")


def require_ready(node: Node) -> None:
    """Raises SbpError where an input is not finished or not as planned, or another artifact was begun in the folder."""
    for noun, read in node.inputs.items():
        if is_ours(node.config, noun):
            refuse_stale([read])
        if not is_done(read):
            if not is_ours(node.config, noun):
                raise SbpError(f"{name_given(node.config, noun)}: no finished artifact lies there")
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
                f"{name_given(config, noun)} belongs to another run, and nothing is deleted there: use --redo "
                f"{stage_name} in its own run, or take it out"
            )
        if (stage.name == stage_name or {*found} & {*reads_of(stage, config)}) and is_ours(config, noun):
            found.append(noun)
    return found


def remove_artifacts(config: Config, nouns: Iterable[str]) -> None:
    """Delete the last artifact of the flow first: nothing is ever left without what it was made from."""
    nouns = list(nouns)
    for noun in reversed(nouns):
        made = locate(config, noun)
        made.remove()
        logger.info(f"{made.url} removed")
    if nouns:
        logger.info("from now on run this command without --redo, which would delete what it makes")
