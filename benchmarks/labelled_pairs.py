"""Pairs of texts with the truth of whether one is the other edited, planted in three kinds of text.

The label follows from how a pair was made, not from how alike its texts came out. Positive: a text and its update, as
texts are updated: figures changed, paragraphs added, taken out or put elsewhere, sentences reworded, and two or three
of these together. Negative: two texts of one subject, of one form, or with a page's frame in common, and a text whose
names and figures were all exchanged.

`label_pairs` is given documents as lists of paragraphs, by subject.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Document = list[str]
"""Paragraphs, or sentences."""
Documents = Mapping[str, Sequence[Document]]
"""By subject."""
EDITS = ("figures", "added", "removed", "reordered", "reworded", "corrected", "updated", "updated")
"""Methods of `Editor`. Several edits together are what an update is, so there are twice as many of these."""
_FORM_SHARE = 0.25
"""Of the words, names and figures: a text with fewer, all of them exchanged, is still nearly the same text."""


class Labelled(NamedTuple):
    """Two texts, and whether one is the other edited."""

    is_same: bool
    edit: str
    first: str
    second: str


def label_pairs(documents: Documents, number: int, rng: random.Random) -> list[Labelled]:
    """Pairs of each kind, made of so many documents."""
    editor = Editor(documents, rng)
    everything = [(subject, one) for subject, some in documents.items() for one in some]
    found: list[Labelled] = []

    def add(is_same: bool, edit: str, first: Document, second: Document) -> None:
        if " ".join(first).split() != " ".join(second).split():
            found.append(Labelled(is_same, edit, "\n".join(first), "\n".join(second)))

    for subject, document in rng.sample(everything, number):
        for edit in EDITS:
            add(True, edit, document, getattr(editor, edit)(document))
        others = [other for other in documents[subject] if other is not document]
        if others:
            add(False, "same subject", document, rng.choice(others))
        other = rng.choice([one for _, one in everything if one is not document])
        add(False, "other", document, other)
        frame = editor.words(document, 3 / 7)
        add(False, "frame", [*frame[:1], *document, *frame[1:]], [*frame[:1], *other, *frame[1:]])
        half = " ".join(document).split()[: len(" ".join(document).split()) // 2]
        add(False, "half", document, [" ".join(half), *editor.words(document, 0.5)])
        if editor.share_to_fill(document) >= _FORM_SHARE:
            add(False, "refilled", document, editor.refilled(document))
    return found


def sentences(text: str) -> Document:
    """Roughly: cut after a full stop before a capital letter."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", text.strip())


class Editor:
    """Edits documents as the people do who keep them up to date; other words come from the whole corpus."""

    def __init__(self, documents: Documents, rng: random.Random) -> None:
        self._rng, self._all = rng, [one for each in documents.values() for one in each]
        self._words = [w for one in self._all for part in one for w in part.split()]
        self._names = [w for w in self._words if w[:1].isupper()]

    def words(self, document: Document, share: float) -> Document:
        """Two paragraphs of other documents, together as long as this share of the document."""
        words: list[str] = []
        wanted = round(share * len(" ".join(document).split()))
        while len(words) < wanted:
            words += " ".join(self._rng.choice(self._all)).split()
        return [" ".join(words[: wanted // 2]), " ".join(words[wanted // 2 : wanted])]

    def share_to_fill(self, document: Document) -> float:
        """Of the document's words, names and figures."""
        words = " ".join(document).split()
        return sum(word[:1].isupper() or any(c.isdigit() for c in word) for word in words) / len(words)

    def figures(self, document: Document) -> Document:
        """Half of the numbers become others of as many digits."""

        def other(match: re.Match[str]) -> str:
            return str(self._rng.randrange(10 ** len(match[0]))) if self._rng.random() < 0.5 else match[0]

        return [re.sub(r"\d+", other, part) for part in document]

    def added(self, document: Document) -> Document:
        """A fifth to three fifths as many paragraphs more, of another document."""
        number = max(1, round(self._rng.uniform(0.2, 0.6) * len(document)))
        extra: Document = []
        while len(extra) < number:
            extra += self._rng.choice(self._all)
        place = self._rng.choice([0, len(document), self._rng.randrange(len(document) + 1)])
        return [*document[:place], *extra[:number], *document[place:]]

    def removed(self, document: Document) -> Document:
        """A tenth to two fifths of the paragraphs are gone."""
        number = max(1, round(self._rng.uniform(0.1, 0.4) * len(document)))
        gone = set(self._rng.sample(range(len(document)), min(number, len(document) - 1)))
        return [part for place, part in enumerate(document) if place not in gone]

    def reordered(self, document: Document) -> Document:
        """Two halves change places, or all paragraphs lie in another order."""
        if self._rng.random() < 0.5:
            middle = self._rng.randrange(1, len(document)) if len(document) > 1 else 0
            return [*document[middle:], *document[:middle]]
        return self._rng.sample(document, len(document))

    def reworded(self, document: Document) -> Document:
        """In a fifth to a half of the paragraphs a third of the words are others, left out or new."""
        number = max(1, round(self._rng.uniform(0.2, 0.5) * len(document)))
        chosen = set(self._rng.sample(range(len(document)), number))
        return [self._reword(part) if place in chosen else part for place, part in enumerate(document)]

    def corrected(self, document: Document) -> Document:
        """A word in thirty is another, anywhere: spelling, OCR, a style guide."""
        return [
            " ".join(self._rng.choice(self._words) if self._rng.random() < 1 / 30 else w for w in part.split())
            for part in document
        ]

    def updated(self, document: Document) -> Document:
        """Two or three of the edits, one after the other."""
        edits = [self.figures, self.added, self.removed, self.reordered, self.reworded]
        for edit in self._rng.sample(edits, self._rng.choice((2, 3))):
            document = edit(document)
        return document

    def refilled(self, document: Document) -> Document:
        """All names and figures are others: the form of the text about something else."""
        found: dict[str, str] = {}

        def fill(word: str) -> str:
            if any(c.isdigit() for c in word):
                return re.sub(r"\d+", lambda match: str(self._rng.randrange(10 ** len(match[0]))), word)
            if word[:1].isupper():
                return found.setdefault(word, self._rng.choice(self._names))
            return word

        return [" ".join(map(fill, part.split())) for part in document]

    def _reword(self, part: str) -> str:
        words: list[str] = []
        for word in part.split():
            drawn = self._rng.random()
            words += [word] if drawn > 1 / 3 else [] if drawn < 1 / 9 else [self._rng.choice(self._words)]
            words += [self._rng.choice(self._words)] if 1 / 9 <= drawn < 2 / 9 else []
        return " ".join(words)
