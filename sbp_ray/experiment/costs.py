"""What an artifact costs: planned from the settings, then counted from what its stage recorded.

FLOPs are those of the models: 6 x parameters x positions to train (base LM, synthesizer, joint LM), 2 x parameters x
tokens to read or write (generation: prompts, what was written, dropped samples too, and what was scored to choose
samples; embedding: padding too). Searching neighbours, judging texts and scoring arms are no such products: they count
in hours and dollars only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from sbp_ray.cost_plan import tuning_tokens
from sbp_ray.experiment.grid import Grid
from sbp_ray.model import num_parameters, padded_vocab_size
from sbp_ray.nodes import Node
from sbp_ray.text_supply import most_texts, refuse_too_little_text

_TRAIN_FLOPS, _READ_FLOPS = 6, 2  # for each parameter and token


@dataclass(frozen=True)
class Cost:
    """Of one artifact, or of several together."""

    flops: float = 0.0
    hours: float = 0.0
    """Wall time of the stages, with runs that did not finish; what ran side by side counts twice."""
    gpu_hours: float = 0.0
    """As many times the GPUs that the stage's workers held."""
    dollars: float = 0.0
    """Of the cluster."""
    outside_dollars: float = 0.0
    """What an outside model asked for its tokens; its FLOPs nobody here knows."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> Cost:
        """A part of it."""
        return Cost(*(factor * part for part in astuple(self)))


# Before


def planned_tokens(node: Node) -> int | None:
    """Positions to train on, about so many tokens to tune on where the pairs are known, or the most tokens that can be
    written; None where it depends on what is found first."""
    config = node.config
    if node.stage.job == "pretrain":
        return config.pretrain.num_positions()
    if node.stage.job == "synthesize":
        number = most_texts(node, config.synthesize.samples_per_document)
        return None if number is None else number * config.synthesize.max_tokens
    if node.stage.job == "tune":
        return _tuning_tokens(node)
    return None


def _tuning_tokens(node: Node) -> int | None:
    pairs, corpus = (node.inputs[noun].stats.get("train") for noun in ("pairs", "corpus"))
    if not pairs or not corpus:
        return None
    return round(tuning_tokens(node.config, pairs["pairs"], corpus["tokens"] / corpus["documents"]))


def planned_parameters(node: Node) -> int:
    """Of what is trained, tuned or run, by the settings: a trained vocabulary may come out smaller."""
    node = _pretrained(node)
    return num_parameters(node.config.model, padded_vocab_size(node.config.model, node.config.ingest.vocab_size))


def planned_flops(node: Node) -> float | None:
    """None where the tokens are not known yet, or an outside model writes them."""
    tokens = planned_tokens(node)
    if tokens is None or (node.stage.job == "synthesize" and node.config.synthesize.rephrase is not None):
        return None
    each = _READ_FLOPS
    if node.stage.job == "pretrain":
        each = _TRAIN_FLOPS + _READ_FLOPS * len(node.config.pretrain.teachers)
    if node.stage.job == "tune":
        each = _TRAIN_FLOPS
    if node.stage.job == "synthesize" and node.config.synthesize.needs_scores:
        each += (1 + node.config.synthesize.needs_gain) * _READ_FLOPS  # what was written is scored, without d1 too
    return float(each * planned_parameters(node) * tokens)


def refuse_too_little_texts(grid: Grid) -> None:
    """Raises SbpError where an arm has a share that no outcome of its synthesis can fill."""
    for key, arms in grid.users().items():
        if grid.nodes[key].stage.name == "pretrain-sbp":
            refuse_too_little_text(grid.nodes[key], f"arms.{arms[0]}: ")


# After


def costs_of(
    nodes: Iterable[Node], *, room: Mapping[str, float], dollars_per_hour: float, lost_hours: Mapping[str, float]
) -> dict[str, Cost]:
    """Each finished artifact's own cost, without what it was made from.

    Args:
        room: CPUs and GPUs of the cluster, of which dollars are the share that was held.
        lost_hours: of runs that did not finish an artifact, by its key.
    """
    from sbp_ray.cluster_limits import demand

    found = {}
    for node in nodes:
        if (manifest := node.artifact.manifest()) is not None:
            held = demand(node.stage.job, node.config)
            name = "GPU" if held.get("GPU") else "CPU"
            share = min(1.0, held[name] / room[name]) if room.get(name) else 1.0
            hours = manifest["wall_s"] / 3600 + lost_hours.get(node.key, 0.0)
            dollars = hours * dollars_per_hour * share
            stats = manifest["stats"]
            gpu_hours, outside = hours * held.get("GPU", 0.0), _outside_dollars(node, stats)
            found[node.key] = Cost(_flops(node, stats), hours, gpu_hours, dollars, outside)
    return found


def cost_of(made_from: Mapping[str, Node], costs: Mapping[str, Cost]) -> Cost:
    """Of everything that a model, or an ensemble, was made from.

    Of a synthetic text it pays for the part that is read: to make the model alone, no more would have been written.

    Args:
        made_from: by key.
    """
    total, read = Cost(), dict[str, float]()
    for node in (node for node in made_from.values() if "synthetic" in node.inputs):
        text = node.inputs["synthetic"].key
        read[text] = max(read.get(text, 0.0), node.stats["mixture"]["synthetic"]["passes"])
    for key in made_from:
        total += costs[key].times(min(1.0, read.get(key, 1.0)))
    return total


def _flops(node: Node, stats: Mapping[str, Any]) -> float:
    if node.stage.job == "embed":
        return float(stats["flops"])
    if node.stage.job not in ("pretrain", "tune", "synthesize") or "outside" in stats:
        return 0.0
    parameters = _pretrained(node).stats["parameters"]  # as the pretraining counted them
    if node.stage.job == "synthesize":
        scored = stats.get("scores", {}).get("tokens_scored", 0)
        return float(_READ_FLOPS * parameters * (stats["prompt_tokens"] + stats["tokens_generated"] + scored))
    read_too = _READ_FLOPS * stats.get("teacher_parameters", 0)
    return float((_TRAIN_FLOPS * parameters + read_too) * stats["positions"])


def _outside_dollars(node: Node, stats: Mapping[str, Any]) -> float:
    """At the settings' prices, for the tokens that answers came with; what was asked for again cost more than that."""
    rephrase = node.config.synthesize.rephrase
    if node.stage.job != "synthesize" or rephrase is None:
        return 0.0
    prices, tokens = rephrase.resources, stats["outside"]
    read = tokens["input_tokens"] * prices.dollars_per_million_input_tokens
    return float(read + tokens["output_tokens"] * prices.dollars_per_million_output_tokens) / 1e6


def _pretrained(node: Node) -> Node:
    """The pretraining that made the shape of what a node trains or runs."""
    while node.stage.job in ("tune", "synthesize"):
        node = node.inputs["synthesizer" if node.stage.job == "synthesize" else "base_lm"]
    return node
