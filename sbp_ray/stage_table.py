"""The flow as one table: the stages in order, the artifacts they meet on, and the folders of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Arm = Literal["repetition", "sbp"]


@dataclass(frozen=True)
class Stage:
    """One arrow of the flow: what it reads, what it writes, and which settings decide the result."""

    name: str
    job: str
    """The file under jobs/ that runs it."""
    reads: tuple[str, ...]
    writes: str
    sections: tuple[str, ...]
    """Config sections that go into the artifact's recipe, without what lies under `resources`."""
    arm: Arm | None = None
    """`pretrain.arm` of this stage, where one job makes two artifacts."""


STAGES = (
    Stage("ingest", "ingest", (), "corpus", ("ingest", "decontaminate")),
    Stage("embed", "embed", ("corpus",), "embeddings", ("embed",)),
    Stage("neighbors", "neighbors", ("embeddings",), "neighbors", ("neighbors",)),
    Stage("pair", "pair", ("corpus", "neighbors"), "pairs", ("pair",)),
    Stage("pretrain-repetition", "pretrain", ("corpus",), "base_lm", ("model", "pretrain"), "repetition"),
    Stage("tune", "tune", ("corpus", "pairs", "base_lm"), "synthesizer", ("tune",)),
    Stage(
        "synthesize",
        "synthesize",
        ("corpus", "embeddings", "synthesizer"),
        "synthetic",
        ("synthesize", "engine", "decontaminate"),
    ),
    Stage("pretrain-sbp", "pretrain", ("corpus", "synthetic"), "lm", ("model", "pretrain", "mixture"), "sbp"),
    Stage(
        "eval",
        "eval",
        ("corpus", "embeddings", "neighbors", "pairs", "base_lm", "synthesizer", "synthetic", "lm"),
        "report",
        ("eval", "benchmarks"),
    ),
)
NOUNS = tuple(stage.writes for stage in STAGES)
FOLDERS = {noun: f"{number}_{noun}" for number, noun in enumerate(NOUNS, start=1)}
