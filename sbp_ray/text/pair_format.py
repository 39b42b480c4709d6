"""How documents and pairs become token sequences: the one place that knows the layouts.

document        <bos> text <eos>
pair            <bos> d1 <related> d2 <eos>
prompt          <bos> d1 <related>              the synthesizer goes on with d2 <eos>
                <bos>                           a base LM, or one tuned on d2 alone, writes any document (controls)
                <bos> first half of d1          a base LM goes on with it (a control)
unconditional   <bos> <related> d2 <eos>        d2 with nothing to condition on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sbp_ray.text.tokenizer import SpecialIds

Tokens = Sequence[int] | NDArray[np.int32]


class Example(NamedTuple):
    """One training document: its tokens, and from which of them on each is a target."""

    input_ids: NDArray[np.int32]
    first_supervised: int
    """At least 1, since nothing precedes the first token."""

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """As long as `input_ids`; True: this token is a target."""
        return np.arange(len(self.input_ids)) >= self.first_supervised

    @property
    def num_supervised(self) -> int:
        return len(self.input_ids) - self.first_supervised


DOCUMENT_MARKS = 2
"""Tokens of a document's example beside its text."""
PAIR_MARKS = 3
"""Tokens of a pair's example beside d1 and d2."""


def join_tokens(*parts: Tokens) -> NDArray[np.int32]:
    """One array of all parts."""
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


def prompt_ids(d1_ids: Sequence[int], special: SpecialIds) -> list[int]:
    """What the synthesizer is given before it writes d2."""
    return [special.bos, *d1_ids, special.related]


def control_prompt_ids(condition: str, d1_ids: Sequence[int], special: SpecialIds) -> list[int]:
    """What is given before d2 under `synthesize.condition`."""
    if condition == "none":
        return [special.bos]
    if condition == "continue":
        return [special.bos, *d1_ids[: -(-len(d1_ids) // 2)]]
    return prompt_ids(d1_ids, special)


def pair_example(d1_ids: Tokens, d2_ids: Tokens, special: SpecialIds) -> Example:
    """A tuning example, supervised on d2 and its end only."""
    ids = join_tokens([special.bos], d1_ids, [special.related], d2_ids, [special.eos])
    return Example(ids, len(d1_ids) + 2)


def document_example(input_ids: Tokens, special: SpecialIds) -> Example:
    """A pretraining example, supervised on every token but <bos>."""
    return Example(join_tokens([special.bos], input_ids, [special.eos]), 1)


def unconditional_example(d2_ids: Tokens, special: SpecialIds) -> Example:
    """d2 as the synthesizer sees it without d1: what conditioning on d1 is compared with."""
    return Example(join_tokens([special.bos, special.related], d2_ids, [special.eos]), 2)
