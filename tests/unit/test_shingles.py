from __future__ import annotations

import numpy as np
import pytest

from sbp_ray.text.shingles import containment, jaccard, shingle_hashes, word_ids


def test_a_document_of_t_tokens_has_t_minus_12_shingles() -> None:
    assert shingle_hashes(range(20), 13).size == 8
    assert shingle_hashes(range(13), 13).size == 1


def test_a_repeated_run_is_one_shingle() -> None:
    assert shingle_hashes([7] * 30, 13).size == 1
    assert shingle_hashes([1, 2, 1, 2, 1], 2).size == 2  # (1, 2) and (2, 1)


def test_a_short_document_is_one_shingle() -> None:
    assert shingle_hashes([1, 2, 3], 13).size == 1
    assert shingle_hashes([], 13).size == 0
    assert shingle_hashes([1, 2, 3], 13) != shingle_hashes([1, 2], 13)


def test_order_counts() -> None:
    assert shingle_hashes([1, 2], 2) != shingle_hashes([2, 1], 2)
    assert shingle_hashes([0, 0, 1], 3) != shingle_hashes([0, 1, 0], 3)


def test_shifted_by_one_of_20() -> None:
    a, b = shingle_hashes(range(20), 13), shingle_hashes(range(1, 21), 13)  # 8 each, 7 in common
    assert jaccard(a, b) == pytest.approx(7 / 9)
    assert containment(a, b) == pytest.approx(7 / 8)


def test_containment_has_a_direction() -> None:
    short, long = shingle_hashes(range(20), 13), shingle_hashes(range(32), 13)  # 8 of 20
    assert containment(short, long) == 1
    assert containment(long, short) == pytest.approx(8 / 20)
    assert jaccard(short, long) == pytest.approx(8 / 20)


def test_nothing_is_like_nothing() -> None:
    none = shingle_hashes([])
    assert jaccard(none, none) == 0
    assert containment(none, none) == 0


def test_hashes_do_not_collide_by_the_thousand() -> None:
    rng = np.random.default_rng(0)
    assert shingle_hashes(rng.integers(0, 50_000, 100_000), 3).size == 100_000 - 2


def test_no_tokens_make_no_shingle() -> None:
    with pytest.raises(ValueError, match="num_tokens"):
        shingle_hashes([1], 0)


def test_words_are_numbered_by_what_they_say() -> None:
    assert word_ids("The cat, the CAT.").tolist() == word_ids("the\u00a0cat the cat").tolist()
    the, cat, *rest = word_ids("The cat, the CAT.").tolist()
    assert the != cat
    assert rest == [the, cat]
    assert word_ids("x").dtype == np.uint32


def test_unicode_forms_of_a_word_are_one() -> None:
    assert word_ids("Stra\u00dfe caf\u00e9 \ufb01n \uff21").tolist() == word_ids("STRASSE cafe\u0301 fin a").tolist()


def test_scripts_without_spaces_have_a_word_for_each_character() -> None:
    assert word_ids("\u8bfa\u66fc\u4eba\u662f").size == 4
    assert word_ids("\u8bfa\u66fc 911 Normans\u4eba").size == 5
    assert word_ids("\u0e20\u0e32\u0e29\u0e32").size == 4
    assert word_ids("\ud55c\uad6d\uc5b4 \ubb38\uc11c").size == 2  # Korean has spaces


def test_a_text_of_symbols_alone_still_has_something_to_compare() -> None:
    assert word_ids("\u2192 \u2190").size == 2
    assert word_ids("\u2192 \u2190").tolist() != word_ids("\u2190 \u2192").tolist()
    assert word_ids("").size == word_ids(" \n").size == 0
