"""What can only be known once an artifact is there, and is refused before hours are spent on what follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sbp_ray.artifacts import MANIFEST
from sbp_ray.errors import SbpError
from sbp_ray.experiment.grid import Grid
from sbp_ray.nodes import Node
from sbp_ray.text_supply import wanted_tokens

_SHORT = 0.99  # of the documents asked for: the cap keeps a little less
_MARKS = 2  # <bos> and <eos> of each document
_PADDING = 1.1  # rows hold so much more positions than text at most, as experience goes: packing decides the rest


def refuse_missing_models(grid: Grid) -> None:
    """Refuse to go on from a finished training whose checkpoint has gone.

    Raises:
        SbpError: names its folder.
    """
    for node in grid.nodes.values():
        made = node.artifact
        if node.stage.job in ("pretrain", "tune") and made.exists(MANIFEST) and not made.exists("model/config.json"):
            raise SbpError(
                f"{made.url} is finished, and its checkpoint model/ is not there: bring it back, or delete the whole "
                "folder, and the same command trains it again"
            )


def refuse_made(grid: Grid, key: str) -> dict[str, str]:
    """Nodes that a finished artifact makes impossible, each with the reason."""
    node = grid.nodes[key]
    if node.stage.job == "ingest":
        return _short_corpus(grid, node, node.stats["train"]["documents"])
    if node.stage.job == "synthesize":
        dead = _short_text(grid, node, node.stats["samples"], node)
        for text in grid.nodes.values():
            if text.stage is node.stage and node in text.after and not text.stats:
                dead |= _short_text(grid, text, _planned_samples(text), node)
                if all(reader.key in dead for reader in _readers(grid, text)):
                    dead[text.key] = dead[_readers(grid, text)[0].key]
        return dead
    return {}


def _short_corpus(grid: Grid, node: Node, num_documents: int) -> dict[str, str]:
    wanted = node.config.ingest.max_train_documents
    if wanted is None or num_documents >= _SHORT * wanted:
        return {}
    why = (
        f"ingest.max_train_documents={wanted:,} and the input has {num_documents:,} train documents: lower it or "
        "oracle_times, or use a larger input"
    )
    return {other.key: why for other in grid.nodes.values() if other.inputs.get("corpus") is node}


def _short_text(grid: Grid, text: Node, num_samples: int, written: Node) -> dict[str, str]:
    """Joint LMs that want more of a text than its samples give, each with the reason; none that reads megadocs, whose
    d1, which are not counted here, fill the share too: `pretrain` refuses what is too little.

    Args:
        written: the text, or a small part of it.
    """
    stats, dead = written.stats, {}
    kept = stats["tokens"] + _MARKS * stats["documents"]
    num_tokens = kept * num_samples // stats["samples"]
    for reader in _readers(grid, text):
        wanted = wanted_tokens(reader)
        if wanted > _PADDING * num_tokens and not reader.config.mixture.megadocs:
            so_far = f"{num_tokens:,} were written"
            if written is not text:
                so_far = f"a first sample of {stats['samples']:,} says that {num_tokens:,} will be written"
            dead[reader.key] = (
                f"a share of {reader.config.mixture.share():g} wants {wanted:,} synthetic tokens and {so_far}, which "
                f"are read once ({_drops(stats)}): {_enough(text, wanted, num_tokens)}, or lower the share"
            )
    return dead


def _drops(stats: Mapping[str, Any]) -> str:
    reason, number = max(stats["drops"].items(), key=lambda drop: drop[1], default=("dropped", 0))
    return f"{number:,} of {stats['samples']:,} samples were dropped as {reason.replace('_', ' ')}"


def _enough(text: Node, wanted: int, num_tokens: int) -> str:
    each = text.config.synthesize.samples_per_document
    return f"raise synthesize.samples_per_document to {math.ceil(each * wanted / max(1, num_tokens)):,} or more"


def _planned_samples(text: Node) -> int:
    own = text.config.synthesize
    return (own.num_documents or text.inputs["corpus"].stats["train"]["documents"]) * own.samples_per_document


def _readers(grid: Grid, text: Node) -> list[Node]:
    return [n for n in grid.nodes.values() if n.stage.name == "pretrain-sbp" and n.inputs["synthetic"] is text]
