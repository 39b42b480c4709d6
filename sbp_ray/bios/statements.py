"""What a text says about a known world: every sentence is looked up among the wordings in which facts are stated.

`StatementReader.read` finds statements about entities that exist and about others; `judge` says which are true. A
sentence in no known wording states nothing that could be judged, and is counted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal, NamedTuple

from sbp_ray.bios.truth import Fact, Truth

Verdict = Literal["true", "false", "nobody"]
Span = tuple[int, int]
"""First character in the text, and the one behind the last."""
_SENTENCE = re.compile(r"\S.*?[.!?](?=\s|$)|\S.*\S|\S", re.DOTALL)
_NO_WORD = ""


class Statement(NamedTuple):
    """A sentence in a wording of an attribute."""

    fact: Fact
    """Of whom what is said; there may be no such entity."""
    value: str
    """As the text has it."""
    wording: str
    name_at: Span
    value_at: Span


class Reading(NamedTuple):
    """What a text says."""

    statements: list[Statement]
    other_names: list[Span]
    """Where sentences that state nothing name somebody."""
    sentences: list[str]
    num_unknown: int
    """Sentences in no known wording."""

    @property
    def entity(self) -> str | None:
        """Whom the text is about: who is named by most of its statements, of several the first; None without any."""
        names = [statement.fact.entity for statement in self.statements]
        return max(dict.fromkeys(names), key=names.count) if names else None


class _Template(NamedTuple):
    """A sentence with two gaps, cut at them."""

    kind: str
    attribute: str | None
    """None: it only names."""
    wording: str
    literals: tuple[str, str, str]
    first: str
    """What stands in the first gap: `name`, `value` or `other`."""

    def match(self, sentence: str) -> tuple[Span, Span] | None:
        """Where the name and the other gap's text are in the sentence."""
        before, between, after = self.literals
        if not (sentence.startswith(before) and sentence.endswith(after)):
            return None
        start, end = len(before), len(sentence) - len(after)
        cut = sentence.find(between, start + 1, end - 1)
        if cut < 0:
            return None
        gaps = (start, cut), (cut + len(between), end)
        return gaps if self.first == "name" else (gaps[1], gaps[0])


class StatementReader:
    """Reads texts about one world."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._by_word: dict[str, list[_Template]] = defaultdict(list)
        for kind, own in truth.kinds.items():
            for mention in own.mentions:
                self._add(kind, None, mention, "other")
            for name, attribute in own.attributes.items():
                for wording in attribute.wordings:
                    self._add(kind, name, wording, "value")

    def _add(self, kind: str, attribute: str | None, wording: str, other: str) -> None:
        before, first, between, _, after = re.split(r"\{(\w+)\}", wording)
        # A whole word of the sentence, the longest, finds the template; one that touches a gap may be only a part.
        words = re.sub(r"\S*\{\w+\}\S*", " ", wording).split()
        word = max((word.strip(".,;:") for word in words), key=len, default=_NO_WORD)
        self._by_word[word].append(_Template(kind, attribute, wording, (before, between, after), first))

    def read(self, text: str) -> Reading:
        """Everything that the text says."""
        found = Reading([], [], [], 0)
        num_unknown = 0
        for sentence in _SENTENCE.finditer(text):
            found.sentences.append(sentence.group())
            best = max(self._matches(sentence.group()), key=lambda match: match[0], default=None)
            if best is None:
                num_unknown += 1
                continue
            _, template, spans = best
            name_at, other_at = ((start + sentence.start(), end + sentence.start()) for start, end in spans)
            if template.attribute is None:
                found.other_names.extend((name_at, other_at))
            else:
                fact = Fact(text[slice(*name_at)], template.attribute)
                statement = Statement(fact, text[slice(*other_at)], template.wording, name_at, other_at)
                found.statements.append(statement)
        return found._replace(num_unknown=num_unknown)

    def _matches(self, sentence: str) -> Iterator[tuple[tuple[bool, int], _Template, tuple[Span, Span]]]:
        """Templates that the sentence can be of; that is meant which knows the name, then the longest one."""
        words = {word.strip(".,;:") for word in sentence.split()} | {_NO_WORD}
        for template in (template for word in words for template in self._by_word.get(word, ())):
            if spans := template.match(sentence):
                entity = self._truth.by_name.get(sentence[slice(*spans[0])])
                is_known = entity is not None and entity.kind == template.kind
                yield (is_known, sum(map(len, template.literals))), template, spans

    def judge(self, statement: Statement) -> Verdict:
        """Whether a statement is true. What nobody has, such as the captain of a town, is false."""
        if statement.fact.entity not in self._truth.by_name:
            return "nobody"
        return "true" if self._truth.value(statement.fact) == statement.value else "false"
