"""Facts recalled, closed book: each is asked for in words that the training text never uses for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sbp_ray.bios.statements import Span
from sbp_ray.bios.truth import Fact, Truth
from sbp_ray.evaluation.facts.known_text import MOST_TIMES, KnownText
from sbp_ray.evaluation.facts.token_classes import token_spans
from sbp_ray.text.hashing import hash64
from sbp_ray.text.pair_format import Example, join_tokens
from sbp_ray.text.tokenizer import SpecialIds, encode_texts

# G = supervised tokens of a prompt: the value's, and the full stop's

UNSEEN, HELD_OUT = "unseen_wording", "held_out_wording"
"""Wordings that documents use, but never for this fact; wordings that no document uses."""
VALUE, STOP = 0, 1
"""Classes of the supervised tokens: the value's, and what ends it."""


class Prompt(NamedTuple):
    """A sentence that states a fact; what stands before the value asks for it."""

    fact: Fact
    sentence: str
    value_at: Span


def choose_prompts(truth: Truth, known: KnownText, *, limit: int, seed: int) -> dict[str, list[Prompt]]:
    """Sentences for facts that are stated never, once, twice and more often, at most `limit` of each, drawn at random.

    Returns:
        By the kind of wording, one sentence for a fact. A fact that was stated in every wording has none of the kind
        `UNSEEN`.
    """
    ranked = sorted(truth.facts(), key=lambda fact: hash64("recall", seed, *fact))
    room = [limit] * (MOST_TIMES + 1)
    chosen: dict[str, list[Prompt]] = {UNSEEN: [], HELD_OUT: []}
    for fact in ranked:
        if not room[known.times(fact)]:
            continue
        room[known.times(fact)] -= 1
        for kind, prompts in chosen.items():
            if wordings := list(_wordings(truth, known, fact, kind)):
                wording = min(wordings, key=lambda wording: hash64("recall", seed, *fact, wording))
                prompts.append(_prompt(truth, fact, wording))
    return chosen


def _wordings(truth: Truth, known: KnownText, fact: Fact, kind: str) -> Iterator[str]:
    attribute = truth.kinds[truth.by_name[fact.entity].kind].attributes[fact.attribute]
    for wording in attribute.asking():
        is_held_out = attribute.is_held_out(wording)
        if is_held_out == (kind == HELD_OUT) and (fact, wording) not in known.wordings:
            yield wording


def _prompt(truth: Truth, fact: Fact, wording: str) -> Prompt:
    value = truth.value(fact)
    assert value is not None, fact
    sentence = wording.format(name=fact.entity, value=value)
    end = len(sentence) - len(".")
    return Prompt(fact, sentence, (end - len(value), end))


def prompt_example(prompt: Prompt, tokenizer: Any, special: SpecialIds) -> tuple[Example, NDArray[np.uint8]]:
    """The sentence as the beginning of a document, supervised from the value on; and the class of each such token, [G].

    Greedy decoding writes exactly the value, and ends it there, if and only if each supervised token is the likeliest
    after those before it: so one forward pass tells.
    """
    [ids] = encode_texts(tokenizer, [prompt.sentence])
    spans = token_spans(tokenizer, prompt.sentence)
    start, end = prompt.value_at
    first = next(token for token, (_, behind) in enumerate(spans) if behind > start)
    classes_G = np.array([VALUE if before < end else STOP for before, _ in spans[first:]], np.uint8)
    return Example(join_tokens([special.bos], ids), 1 + first), classes_G
