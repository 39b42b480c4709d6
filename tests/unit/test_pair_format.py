from sbp_ray.text.pair_format import (
    DOCUMENT_MARKS,
    PAIR_MARKS,
    control_prompt_ids,
    document_example,
    pair_example,
    prompt_ids,
    unconditional_example,
)
from sbp_ray.text.tokenizer import SpecialIds

SPECIAL = SpecialIds(bos=0, eos=1, related=2)


def test_a_pair_is_bos_d1_related_d2_eos_and_only_d2_and_its_end_are_supervised() -> None:
    pair = pair_example([5, 6], [7], SPECIAL)
    assert pair.input_ids.tolist() == [0, 5, 6, 2, 7, 1]
    assert pair.loss_mask.tolist() == [False, False, False, False, True, True]
    assert len(pair.input_ids) == 2 + 1 + PAIR_MARKS
    assert pair.num_supervised == 2


def test_the_controls_are_given_less_than_the_synthesizer() -> None:
    assert control_prompt_ids("d1", [5, 6, 7], SPECIAL) == [0, 5, 6, 7, 2]
    assert control_prompt_ids("none", [5, 6, 7], SPECIAL) == [0]
    assert control_prompt_ids("continue", [5, 6, 7], SPECIAL) == [0, 5, 6]  # the larger half


def test_a_pair_starts_with_the_prompt_that_the_synthesizer_is_given() -> None:
    pair = pair_example([5, 6], [7, 8], SPECIAL)
    prompt = prompt_ids([5, 6], SPECIAL)
    assert pair.input_ids[: len(prompt)].tolist() == prompt
    assert pair.first_supervised == len(prompt)


def test_a_document_is_supervised_but_for_bos() -> None:
    document = document_example([5, 6], SPECIAL)
    assert (document.input_ids.tolist(), document.loss_mask.tolist()) == ([0, 5, 6, 1], [False, True, True, True])
    assert len(document.input_ids) == 2 + DOCUMENT_MARKS


def test_alone_d2_is_supervised_on_the_same_tokens_as_in_a_pair() -> None:
    alone = unconditional_example([7, 8], SPECIAL)
    assert (alone.input_ids.tolist(), alone.first_supervised) == ([0, 2, 7, 8, 1], 2)
