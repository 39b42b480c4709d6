"""Measures of a document by its tokens."""

import numpy as np
import pytest

from sbp_ray.text.quality import repetition_share, type_token_ratio


def test_a_text_without_repeats_has_none() -> None:
    assert repetition_share([1, 2, 3, 4, 5, 6, 7, 8]) == 0


def test_repeats_are_counted_after_the_first() -> None:
    """1234 2341 3412 4123 1234 2341 3412 4123 1234: nine 4-grams, four different, five repeats."""
    assert repetition_share([1, 2, 3, 4] * 3) == pytest.approx(5 / 9)


def test_one_token_over_and_over_is_nearly_all_repeats() -> None:
    assert repetition_share([7] * 103) == pytest.approx(99 / 100)


def test_a_text_shorter_than_an_ngram_has_no_repeats() -> None:
    assert repetition_share([]) == 0
    assert repetition_share([5, 5, 5]) == 0


def test_the_length_of_an_ngram_can_be_chosen() -> None:
    assert repetition_share([1, 2, 1, 3], n=1) == pytest.approx(1 / 4)


def test_the_type_token_ratio_is_the_mean_over_windows() -> None:
    """1 1 2, 1 2 3 and 2 3 4: two, three and three types of three words."""
    assert type_token_ratio(np.array([1, 1, 2, 3, 4]), window=3) == pytest.approx((2 + 3 + 3) / 9)


def test_the_type_token_ratio_does_not_fall_with_length() -> None:
    few = np.tile(np.arange(60), 2)
    assert type_token_ratio(few) == type_token_ratio(np.tile(np.arange(60), 20)) == 1
    assert type_token_ratio(np.arange(49)) is None
