"""What is true in a known world: the file beside its corpus, by which texts and models are judged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from sbp_ray.bios.world_settings import Words, asks, check_sentence, check_wordings, refuse_entity_in_two_kinds
from sbp_ray.config_base import Section
from sbp_ray.config_file import settings_of
from sbp_ray.errors import SbpError, one_line
from sbp_ray.file_formats import open_bytes

_ENDS_A_SENTENCE = re.compile(r"[.!?](\s|$)")


class Fact(NamedTuple):
    """An attribute of an entity; its value is the truth's."""

    entity: str
    attribute: str


class AttributeTruth(Section):
    """What is asked about an attribute, and how it is stated."""

    question: str
    """With `{name}`."""
    wordings: Words
    """With `{name}` and `{value}`; those that documents use come first."""
    held_out: int
    """How many of them, the last ones, no document uses."""

    def asking(self) -> list[str]:
        """The wordings that end in the value: what stands before it asks for it."""
        return [wording for wording in self.wordings if asks(wording)]

    def is_held_out(self, wording: str) -> bool:
        """Whether no document uses it."""
        return self.wordings.index(wording) >= len(self.wordings) - self.held_out


class KindTruth(Section):
    """What is said of a kind of entities."""

    mentions: Words
    attributes: dict[str, AttributeTruth]


class EntityTruth(Section):
    """An entity and its values by attribute."""

    name: str
    kind: str
    values: dict[str, str]


class Truth(Section):
    """A whole world."""

    kinds: dict[str, KindTruth]
    entities: Annotated[tuple[EntityTruth, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _world_is_sound(self) -> Truth:
        refuse_entity_in_two_kinds((entity.kind, entity.name) for entity in self.entities)
        for entity in self.entities:
            for text in (entity.name, *entity.values.values()):
                if _ENDS_A_SENTENCE.search(text):
                    raise ValueError(
                        f"entity {entity.name!r}: {text!r} would end a sentence in its middle: spell it without"
                    )
        for kind, own in self.kinds.items():
            for place, mention in enumerate(own.mentions):
                check_sentence(f"kinds.{kind}.mentions.{place}", mention, ("name", "other"))
            for name, attribute in own.attributes.items():
                check_wordings(f"kinds.{kind}.attributes.{name}", attribute.wordings, held_out=0)
        for entity in self.entities:
            attributes = self.kinds[entity.kind].attributes if entity.kind in self.kinds else {}
            if other := sorted(entity.values.keys() ^ attributes.keys()):
                raise ValueError(
                    f"entity {entity.name!r}: a {entity.kind} with or without {other[0]!r}: mend its values"
                )
        return self

    @cached_property
    def by_name(self) -> dict[str, EntityTruth]:
        """Every entity."""
        return {entity.name: entity for entity in self.entities}

    def facts(self) -> Iterator[Fact]:
        """All that can be stated, entity by entity."""
        return (Fact(entity.name, attribute) for entity in self.entities for attribute in entity.values)

    def value(self, fact: Fact) -> str | None:
        """What is true of an entity; None for an entity, or an attribute of it, that is not there."""
        entity = self.by_name.get(fact.entity)
        return None if entity is None else entity.values.get(fact.attribute)


def read_truth(path: str) -> Truth:
    """Read the truth of a corpus.

    Raises:
        SbpError: the file is not there, or is none of `jobs/bios.py`; one line.
    """
    remedy = "give the truth.json that jobs/bios.py wrote beside the corpus"
    try:
        with open_bytes(path) as stream:
            tree = json.loads(stream.read())
    except (OSError, ValueError) as error:
        raise SbpError(f"{path}: cannot be read as the truth of a corpus ({one_line(error)}): {remedy}") from None
    if not isinstance(tree, dict) or not {"kinds", "entities"} <= tree.keys():
        raise SbpError(f"{path}: holds no kinds and entities: {remedy}")
    return settings_of(Truth, tree, [], where=path)
