import numpy as np
import pytest

from sbp_ray.text.pair_format import (
    PAIR_MARKS,
    Example,
    control_prompt_ids,
    document_example,
    pair_arrays,
    pair_example,
    prompt_ids,
    unconditional_example,
)
from sbp_ray.text.tokenizer import SpecialIds

SPECIAL = SpecialIds(bos=0, eos=1, related=2)


def test_a_pair_is_bos_d1_related_d2_eos_and_only_d2_and_its_end_are_graded() -> None:
    assert pair_example([5, 6], [7], SPECIAL, max_tokens=6) == Example(
        [0, 5, 6, 2, 7, 1], [False, False, False, False, True, True]
    )


def test_the_controls_are_given_less_than_the_synthesizer() -> None:
    assert control_prompt_ids("d1", [5, 6, 7], SPECIAL) == [0, 5, 6, 7, 2]
    assert control_prompt_ids("none", [5, 6, 7], SPECIAL) == [0]
    assert control_prompt_ids("continue", [5, 6, 7], SPECIAL) == [0, 5, 6]  # the larger half


def test_a_pair_one_token_too_long_is_refused() -> None:
    assert pair_example([5, 6], [7], SPECIAL, max_tokens=5) is None


def test_a_pair_without_d2_teaches_nothing() -> None:
    assert pair_example([5, 6], [], SPECIAL, max_tokens=100) is None


def test_a_pair_starts_with_the_prompt_that_the_synthesizer_is_given() -> None:
    pair = pair_example([5, 6], [7, 8], SPECIAL, max_tokens=100)
    assert pair is not None
    prompt = prompt_ids([5, 6], SPECIAL)
    assert pair.input_ids[: len(prompt)] == prompt
    assert not any(pair.loss_mask[: len(prompt)])


def test_a_document_is_graded_but_for_bos() -> None:
    assert document_example([5, 6], SPECIAL) == Example([0, 5, 6, 1], [False, True, True, True])


def test_alone_d2_is_graded_on_the_same_tokens_as_in_a_pair() -> None:
    alone = unconditional_example([7, 8], SPECIAL)
    assert alone == Example([0, 2, 7, 8, 1], [False, False, True, True, True])


@pytest.mark.parametrize(("d1", "d2"), [([5, 6], [7]), ([], [7, 8, 9]), ([5], [6, 7])])
def test_as_arrays_a_pair_is_the_same(d1: list[int], d2: list[int]) -> None:
    made = pair_arrays(np.array(d1, np.int32), np.array(d2, np.int32), SPECIAL)
    whole = pair_example(d1, d2, SPECIAL, max_tokens=100)
    assert whole is not None
    assert (made.input_ids.tolist(), made.loss_mask.tolist()) == whole
    assert len(made.input_ids) == len(d1) + len(d2) + PAIR_MARKS
