"""What the training text says of a known world: how often it states a fact, in which words, and beside which others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.bios.statements import Reading, StatementReader
from sbp_ray.bios.truth import Fact, Truth
from sbp_ray.errors import SbpError
from sbp_ray.shards import list_shards
from sbp_ray.steps import call_each

MOST_TIMES = 3
"""Facts that are stated so often or more are counted together."""


@dataclass
class KnownText:
    """True statements of some documents."""

    counts: Counter[Fact] = field(default_factory=Counter)
    """How often each fact is stated."""
    wordings: set[tuple[Fact, str]] = field(default_factory=set)
    """In which words it is."""
    documents_by_fact: dict[Fact, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Numbers of the documents that state it."""
    documents_by_sentence: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    num_documents: int = 0

    def add(self, reading: Reading, reader: StatementReader) -> None:
        """Take in one more document."""
        for statement in reading.statements:
            if reader.judge(statement) == "true":
                self.counts[statement.fact] += 1
                self.wordings.add((statement.fact, statement.wording))
                self.documents_by_fact[statement.fact].add(self.num_documents)
        for sentence in reading.sentences:
            self.documents_by_sentence[sentence].add(self.num_documents)
        self.num_documents += 1

    def times(self, fact: Fact) -> int:
        """How often the fact is stated: 0, 1, 2, or `MOST_TIMES` for more."""
        return min(self.counts[fact], MOST_TIMES)


def stand_together(wanted: Collection[Any], documents_by: Mapping[Any, set[int]]) -> bool:
    """Whether one document has all of these facts, or sentences."""
    return bool(set.intersection(*(documents_by.get(one, set()) for one in wanted)))


def read_known_text(corpus: Artifact, truth: Truth) -> KnownText:
    """Read the train split.

    Raises:
        SbpError: it states nothing of this world.
    """
    reader, known = StatementReader(truth), KnownText()
    for _, readings in call_each(read_shard, list_shards(corpus, "train"), corpus, truth):
        for reading in readings:
            known.add(reading, reader)
    if not known.counts:
        raise SbpError(
            f"eval.truth: no document of {corpus.url} states a fact of this world: give the truth.json that was "
            "written beside the corpus, or leave it out where the truth of a corpus is not known"
        )
    return known


def read_shard(name: str, corpus: Artifact, truth: Truth) -> list[Reading]:
    """What each document of a shard says."""
    return read_texts(corpus.read_table(name, columns=["text"])["text"].to_pylist(), truth)


def read_texts(texts: Iterable[str], truth: Truth) -> list[Reading]:
    """What each text says."""
    reader = StatementReader(truth)
    return [reader.read(text) for text in texts]
