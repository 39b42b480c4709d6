"""How documents and pairs become token sequences: the one place that knows the layouts.

document        <bos> text <eos>
pair            <bos> d1 <related> d2 <eos>
prompt          <bos> d1 <related>              the synthesizer goes on with d2 <eos>
                <bos>                           a base LM goes on with any document (a control)
                <bos> first half of d1          a base LM goes on with it (a control)
unconditional   <bos> <related> d2 <eos>        d2 with nothing to condition on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sbp_ray.text.tokenizer import SpecialIds


class Example(NamedTuple):
    """One training document: what a row holds of it, and which of its tokens are graded."""

    input_ids: list[int]
    loss_mask: list[bool]
    """As long as `input_ids`; True: this token is a target. The first token never is, nothing precedes it."""


class ExampleArrays(NamedTuple):
    """An `Example` without a Python object for each token: 50 times as fast to make."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


PAIR_MARKS = 3
"""Tokens of a pair beside d1 and d2."""


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


def pair_example(d1_ids: Sequence[int], d2_ids: Sequence[int], special: SpecialIds, max_tokens: int) -> Example | None:
    """A tuning example, graded on d2 and its end only; None when it is longer than `max_tokens`, or d2 is empty."""
    prompt = prompt_ids(d1_ids, special)
    if not d2_ids or len(prompt) + len(d2_ids) + 1 > max_tokens:
        return None
    return Example([*prompt, *d2_ids, special.eos], [False] * len(prompt) + [True] * (len(d2_ids) + 1))


def pair_arrays(d1_ids: NDArray[np.int32], d2_ids: NDArray[np.int32], special: SpecialIds) -> ExampleArrays:
    """What `pair_example` makes of the same documents, of any length."""
    start = len(d1_ids) + 2
    input_ids = np.empty(len(d1_ids) + len(d2_ids) + PAIR_MARKS, np.int32)
    input_ids[0], input_ids[start - 1], input_ids[-1] = special.bos, special.related, special.eos
    input_ids[1 : start - 1], input_ids[start:-1] = d1_ids, d2_ids
    loss_mask = np.zeros(len(input_ids), bool)
    loss_mask[start:] = True
    return ExampleArrays(input_ids, loss_mask)


def document_example(input_ids: Sequence[int], special: SpecialIds) -> Example:
    """A pretraining example: every token but <bos> is graded."""
    return Example([special.bos, *input_ids, special.eos], [False] + [True] * (len(input_ids) + 1))


def unconditional_example(d2_ids: Sequence[int], special: SpecialIds) -> Example:
    """d2 as the synthesizer sees it without d1: what conditioning on d1 is compared with."""
    return Example([special.bos, special.related, *d2_ids, special.eos], [False, False] + [True] * (len(d2_ids) + 1))
