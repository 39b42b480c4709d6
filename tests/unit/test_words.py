"""What a word is."""

import time
import unicodedata

import numpy as np

from sbp_ray.text.words import normalize_unicode, split_words, word_ids


def test_words_are_numbered_by_what_they_say() -> None:
    assert word_ids("The cat, the CAT.").tolist() == word_ids("the\u00a0cat the cat").tolist()
    the, cat, *rest = word_ids("The cat, the CAT.").tolist()
    assert the != cat
    assert rest == [the, cat]
    assert word_ids("x").dtype == np.uint64


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


def test_a_run_of_marks_takes_no_longer_than_a_text_of_its_length() -> None:
    def seconds(text: str) -> float:
        start = time.process_time()
        word_ids(text)
        return time.process_time() - start

    seconds("é")
    assert seconds("e" + "\u0301\u0323" * 100_000) < 20 * seconds("é, " * 70_000)


def test_up_to_thirty_marks_are_normalised_as_unicode_says() -> None:
    for text in ("Ệ, e\u0301\u0323", "x" + "\u0301\u0323" * 14 + "y", "हिन्दी", "각"):
        assert normalize_unicode("NFKC", text) == unicodedata.normalize("NFKC", text)
        assert normalize_unicode("NFC", text) == unicodedata.normalize("NFC", text)


def test_marks_belong_to_their_word_and_an_underscore_parts_two() -> None:
    assert word_ids("हिन्दी भाषा").size == 2  # vowel signs are marks
    assert word_ids("ein_wort").tolist() == word_ids("Ein Wort").tolist()


def test_texts_are_told_apart_and_do_not_change_each_other() -> None:
    hash_W, text_W, _ = split_words(["one two", "", "Two 二人"])
    assert text_W.tolist() == [0, 0, 2, 2, 2]
    assert hash_W[1] == hash_W[2]
    assert hash_W[2:].tolist() == word_ids("two 二人").tolist()
