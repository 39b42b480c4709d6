from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from sbp_ray.text.spelling import count_spelt, single_letters

FILLER = {f"filler{number}": number for number in range(5000)}


def tokenizer_of(pieces: list[str], decoder: object) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(FILLER | {piece: 5000 + n for n, piece in enumerate(pieces)}, "filler0"))
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(
    ("decoder", "letters", "others"),
    [
        (decoders.WordPiece(), ["a", "##b", "ن", "##ن", "क"], ["ab", "##ab", "1", "##1", ".", "#", "##", "河", "の"]),
        (decoders.ByteLevel(), ["a", "Ġa", "Ø§", "Ø"], ["Ġ", "Ġab", "æ²³", "1", "Ġ."]),  # ا, half of it; 河
        (decoders.Metaspace(), ["a", "▁a", "ن"], ["▁", "▁ab", "河", "▁1"]),
    ],
)
def test_a_letter_is_told_from_words_signs_and_digits(decoder: object, letters: list[str], others: list[str]) -> None:
    found = single_letters(tokenizer_of([*letters, *others], decoder))
    assert found[:5000].sum() == 0
    assert found[5000:].tolist() == [True] * len(letters) + [False] * len(others)


def test_a_vocabulary_that_is_made_to_spell_has_no_letters() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a"))
    assert not single_letters(PreTrainedTokenizerFast(tokenizer_object=backend)).any()


def test_letters_count_in_runs_of_four_within_a_text() -> None:
    is_letter_V = np.array([False, True])
    texts = [np.array(row, np.int32) for row in ([1, 1, 1, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [])]
    assert count_spelt(texts, is_letter_V) == 4 + 5
    assert count_spelt([], is_letter_V) == 0
