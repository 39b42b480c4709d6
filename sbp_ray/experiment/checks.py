"""What can only be known once an artifact is there, and is refused before hours are spent on what follows."""

from __future__ import annotations

from sbp_ray.artifacts import MANIFEST
from sbp_ray.errors import SbpError
from sbp_ray.experiment.costs import wanted_tokens
from sbp_ray.experiment.grid import Grid
from sbp_ray.nodes import Node

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
        return _short_text(grid, node, node.stats["tokens"] + _MARKS * node.stats["documents"])
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


def _short_text(grid: Grid, node: Node, num_tokens: int) -> dict[str, str]:
    dead = {}
    for other in grid.nodes.values():
        if other.stage.name == "pretrain-sbp" and other.inputs["synthetic"] is node:
            wanted = wanted_tokens(other)
            if wanted > _PADDING * num_tokens:
                dead[other.key] = (
                    f"a share of {other.config.mixture.share():g} wants {wanted:,} synthetic tokens and {num_tokens:,} "
                    "were written, which are read once: raise synthesize.samples_per_document, or lower the share"
                )
    return dead
