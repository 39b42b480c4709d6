"""Settings of a known world: its kinds of entities, what is said of them, and in which words.

`BiosConfig` is the file; it holds pools of words (`PoolConfig`) and kinds (`KindConfig`), which hold attributes. The
functions below are the checks that a sentence, its wordings and the names of entities must pass, and how entities are
shared out over kinds.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from sbp_ray.config_base import Fraction, Section, Seed

MIN_VALUES = 20
"""Fewer possible values would be guessed, and then nothing be known of facts that are recalled."""
_SENTENCE = re.compile(r"[^.!?]+\.")

Words = Annotated[tuple[str, ...], Field(min_length=1)]


class PoolConfig(Section):
    """Words that names and values are made of: listed, invented from syllables, or numbers."""

    words: Words | None = None
    """The words themselves."""
    syllables: tuple[Words, ...] | None = None
    """The beginnings, middles and ends of invented words; a word takes one of each."""
    size: PositiveInt | None = None
    """How many of the words that the syllables can make there are in a world; without it, all."""
    range: tuple[int, int] | None = None
    """Numbers from the first to the last."""
    step: PositiveInt = 1
    """From one number to the next."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> PoolConfig:
        if sum(given is not None for given in (self.words, self.syllables, self.range)) != 1:
            raise ValueError("a pool has words, syllables or a range: give exactly one of them")
        if self.range is not None and self.range[0] > self.range[1]:
            raise ValueError(f"range ({self.range[0]} to {self.range[1]}) is empty: give the smaller number first")
        if self.size is not None and self.syllables is None:
            raise ValueError("size chooses from syllables: give syllables, or leave it out")
        return self

    def num_words(self) -> int:
        """Different words of the pool."""
        if self.words is not None:
            return len(set(self.words))
        if self.range is not None:
            return len(range(self.range[0], self.range[1] + 1, self.step))
        assert self.syllables is not None
        most = math.prod(len(set(part)) for part in self.syllables)
        return most if self.size is None else min(most, self.size)


class AttributeConfig(Section):
    """What can be said of each entity of a kind."""

    value: str
    """What a value is made of: text with pools in braces, such as `{given} {surname}`."""
    question: str
    """Asks for the value, with `{name}` for the entity."""
    wordings: Words
    """Sentences that state it, each with one `{name}` and one `{value}`."""


class KindConfig(Section):
    """A kind of entities: people, towns, ships."""

    name: str
    """What a name is made of: text with pools in braces."""
    entities: tuple[str, ...] = ()
    """Names that are given instead of invented ones."""
    mentions: Words
    """Sentences in which an entity is named beside another one, with `{name}` and `{other}`; they state nothing."""
    attributes: Annotated[dict[str, AttributeConfig], Field(min_length=1)]
    """By name. Each entity of the kind has a value of each."""


class BiosConfig(Section):
    """A whole world, and the corpus that is written about it."""

    seed: Seed = 0
    """Everything is drawn from it: words, entities, values, documents, wordings that are held out."""
    out: str
    """The folder of `documents.jsonl.gz`, `questions.jsonl.gz` and `truth.json`."""
    num_entities: PositiveInt
    """Of all kinds together, of each the same number, and of the first ones one more where that does not come out even.
    """
    num_documents: PositiveInt
    """Each is about one entity, drawn uniformly: for training, for an oracle's training, and to be held out."""
    statements_per_document: PositiveInt
    """Attributes of its entity that a document states, drawn uniformly."""
    mention_share: Fraction = 0.2
    """Share of the documents that name another entity."""
    held_out_wordings: NonNegativeInt = 1
    """Wordings of each attribute that no document uses. They are among those that end in the value."""
    max_wordings: PositiveInt | None = None
    """Wordings of each attribute that documents use, drawn at random; without it, all that are not held out."""
    pools: dict[str, PoolConfig]
    """What names and values are made of, by name."""
    kinds: Annotated[dict[str, KindConfig], Field(min_length=1)]
    """By name."""

    @model_validator(mode="after")
    def _world_is_sound(self) -> BiosConfig:
        if self.num_entities < len(self.kinds):
            raise ValueError(f"num_entities ({self.num_entities}) is less than one for each of {len(self.kinds)} kinds")
        refuse_entity_in_two_kinds((kind, name) for kind, own in self.kinds.items() for name in own.entities)
        for name, kind in self.kinds.items():
            self._check_kind(f"kinds.{name}", kind)
        return self

    def _check_kind(self, where: str, kind: KindConfig) -> None:
        self._check_parts(f"{where}.name", kind.name)
        if len(kind.attributes) < self.statements_per_document:
            raise ValueError(
                f"statements_per_document ({self.statements_per_document}) is more than {where} has attributes "
                f"({len(kind.attributes)}): lower it, or add attributes"
            )
        for place, mention in enumerate(kind.mentions):
            check_sentence(f"{where}.mentions.{place}", mention, ("name", "other"))
        states: dict[str, str] = {}
        for name, attribute in kind.attributes.items():
            here = f"{where}.attributes.{name}"
            self._check_attribute(here, attribute)
            for wording in attribute.wordings:
                other = states.setdefault(wording, here)
                if other != here:
                    raise ValueError(f"{here} and {other} share the wording {wording!r}: nobody could tell them apart")

    def _check_attribute(self, where: str, attribute: AttributeConfig) -> None:
        num_values = self._check_parts(f"{where}.value", attribute.value)
        if num_values < MIN_VALUES:
            raise ValueError(
                f"{where}: {num_values} values are possible, which can be guessed: enlarge its pools to {MIN_VALUES}"
            )
        if _fields(attribute.question) != ["name"]:
            raise ValueError(f"{where}.question={attribute.question!r}: must hold {{name}} once, and no other braces")
        check_wordings(where, attribute.wordings, self.held_out_wordings)

    def _check_parts(self, where: str, template: str) -> int:
        """How many texts a template of pools can make."""
        names = _fields(template)
        if unknown := [name for name in names if name not in self.pools]:
            raise ValueError(f"{where}: there is no pool {unknown[0]!r}: there are {', '.join(self.pools)}")
        return math.prod(self.pools[name].num_words() for name in names)


def _fields(template: str) -> list[str]:
    """What stands in braces."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        return ["{"]


def refuse_entity_in_two_kinds(kind_and_name: Iterable[tuple[str, str]]) -> None:
    """Refuse a name that says not which entity is meant.

    Raises:
        ValueError: one line with the remedy.
    """
    kinds: dict[str, str] = {}
    for kind, name in kind_and_name:
        if name in kinds:
            other = kinds[name]
            where = f"twice in {kind}" if other == kind else f"in two kinds, {other} and {kind}"
            raise ValueError(f"the entity {name!r} is {where}: give one of them another name")
        kinds[name] = kind


def check_sentence(where: str, sentence: str, names: tuple[str, str]) -> None:
    """Refuse a template that is not one sentence, or has not each of the names once.

    Raises:
        ValueError: one line with the remedy.
    """
    if sorted(_fields(sentence)) != sorted(names):
        wanted = " and ".join(f"{{{name}}}" for name in names)
        raise ValueError(f"{where}={sentence!r}: must hold {wanted} once each, and no other braces")
    if not _SENTENCE.fullmatch(sentence):
        raise ValueError(f"{where}={sentence!r}: must be one sentence that ends with a full stop")


def check_wordings(where: str, wordings: tuple[str, ...], held_out: int) -> None:
    """Refuse wordings that do not state the attribute, and too few of them to hold some out and to ask with others.

    Raises:
        ValueError: one line with the remedy.
    """
    for place, wording in enumerate(wordings):
        check_sentence(f"{where}.wordings.{place}", wording, ("name", "value"))
    num_asking = sum(map(asks, set(wordings)))
    if num_asking <= held_out:
        raise ValueError(
            f"{where}: {num_asking} of its wordings end in the value, and {held_out} of them are held out: give more"
        )


def asks(wording: str) -> bool:
    """Whether the value can be asked for with what stands before it: it comes last, after the name."""
    return wording.endswith("{value}.")


def entities_by_kind(kinds: Mapping[str, KindConfig], num_entities: int) -> dict[str, int]:
    """How many entities of each kind there are."""
    each, more = divmod(num_entities, len(kinds))
    return {kind: each + (place < more) for place, kind in enumerate(kinds)}
