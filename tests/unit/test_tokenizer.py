from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sbp_ray.errors import SbpError
from sbp_ray.text.tokenizer import (
    BOS,
    EOS,
    RELATED,
    _without_long_runs,
    encode_texts,
    load_tokenizer,
    special_ids,
    train_tokenizer,
    warn_of_lost_case,
)

TEXTS = ["the cat sat on the mat"] * 3 + ["a dog saw the cat"]


def test_every_text_comes_back_unchanged() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    texts = ["the cat", "  two spaces\t\n", "Żółć 😀 \u200b", "<|eos|>", ""]
    assert [tokenizer.decode(ids) for ids in encode_texts(tokenizer, texts)] == texts


def test_a_mark_spelt_out_in_a_text_is_no_mark() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    [ids] = encode_texts(tokenizer, [f"a{BOS}b{RELATED}c{EOS}"])
    assert not set(ids) & set(special_ids(tokenizer))


def test_marks_come_first_and_frequent_words_become_one_token() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    assert special_ids(tokenizer) == (0, 1, 2)
    assert len(encode_texts(tokenizer, [" the"])[0]) == 1
    assert len(encode_texts(tokenizer, ["xyz"])[0]) == 3  # bytes


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    assert len(train_tokenizer(TEXTS, 259)) == 259
    with pytest.raises(SbpError, match=r"ingest.vocab_size \(258\).*at least 259"):
        train_tokenizer(TEXTS, 258)


def test_a_loaded_tokenizer_is_the_saved_one(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert special_ids(loaded) == special_ids(tokenizer)
    assert len(loaded) == len(tokenizer)
    assert encode_texts(loaded, TEXTS) == encode_texts(tokenizer, TEXTS)


def test_a_given_tokenizer_keeps_its_own_marks_and_gets_the_missing_ones(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert special_ids(loaded) == (3, 2, 4)  # <|bos|> and <|related|> are new
    assert encode_texts(loaded, ["a b"]) == [[0, 1]]


@pytest.mark.parametrize("lowers", [False, True])
def test_a_tokenizer_without_capital_letters_is_told(caplog: pytest.LogCaptureFixture, lowers: bool) -> None:
    backend = Tokenizer(models.WordLevel({"the": 0, "river": 1, "The": 2, "River": 3, "?": 4}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if lowers:
        backend.normalizer = normalizers.Lowercase()
    warn_of_lost_case(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?"), "some")
    assert ("tokenizer some: knows no capital letters" in caplog.text) is lowers


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match=r"tokenizer .*/none: cannot be loaded .*folder"):
        load_tokenizer(tmp_path / "none")


@pytest.mark.parametrize("text", ["-", "a", " ", "ab-", "".join(map(chr, range(97, 123)))])
def test_the_time_to_train_grows_with_a_words_length_and_not_its_square(text: str) -> None:
    def seconds(texts: list[str]) -> float:
        start = time.process_time()
        train_tokenizer(texts, 1000)
        return time.process_time() - start

    num_chars = 300_000
    words = "".join(f"{number**3:x} " for number in range(num_chars // 8))[:num_chars]
    assert seconds([text * (num_chars // len(text))]) < 10 * seconds([words])


def test_ordinary_texts_are_learned_from_whole() -> None:
    long = "x" * 255 + " " + "y" * 600
    assert [*_without_long_runs(["a b", long, "  " * 400])] == [
        "a b",
        "x" * 255 + " " + "y" * 256,
        "y" * 256,
        "y" * 88,
        *[" " * 256] * 3,
        " " * 32,
    ]


def test_training_gives_the_same_vocabulary_in_another_process() -> None:
    code = (
        "import sys, json; from sbp_ray.text.tokenizer import train_tokenizer; "
        "print(train_tokenizer(json.loads(sys.argv[1]), 300).backend_tokenizer.to_str())"
    )
    other = subprocess.run([sys.executable, "-c", code, json.dumps(TEXTS)], capture_output=True, check=True, text=True)
    assert other.stdout.strip() == train_tokenizer(TEXTS, 300).backend_tokenizer.to_str()
