from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sbp_ray.config import EvalConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.likelihood.closed_book import (
    Question,
    check_questions,
    draw_questions,
    iter_questions,
    question_example,
)
from sbp_ray.text.tokenizer import special_ids, train_tokenizer

GOOD = {"question": "Where?", "answers": ["Here", "There"], "title": "Places"}


def written(path: Path, *lines: object) -> EvalConfig:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return EvalConfig(questions=str(path))


def test_the_first_answer_is_asked_for(tmp_path: Path) -> None:
    cfg = written(tmp_path / "questions.jsonl", GOOD)
    assert check_questions(cfg) == {"Places"}
    assert list(iter_questions(cfg)) == [Question("Where?", "Here", "Places")]


def test_compressed_questions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    assert check_questions(EvalConfig(questions=str(path))) == {"Places"}


def test_no_question_file_is_no_error() -> None:
    assert check_questions(EvalConfig()) is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"question": ', "questions.jsonl:2: is not JSON"),
        ([1, 2], "questions.jsonl:2: is not an object"),
        ({"prompt": "Where?", "answer": "Here"}, "questions.jsonl:2: has prompt, answer: each line must be"),
        ({**GOOD, "answers": []}, "questions.jsonl:2: has question, answers, title"),
        ({**GOOD, "question": " "}, "questions.jsonl:2: has"),
    ],
)
def test_a_malformed_line_is_named_with_its_columns(tmp_path: Path, line: object, complaint: str) -> None:
    with pytest.raises(SbpError) as raised:
        check_questions(written(tmp_path / "questions.jsonl", GOOD, line))
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match=r"nowhere\.jsonl: there is no such file"):
        check_questions(EvalConfig(questions=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(SbpError, match="is empty"):
        check_questions(written(tmp_path / "empty.jsonl"))


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl.gz"
    path.write_bytes(b"not gzip at all")
    with pytest.raises(SbpError, match=r"questions\.jsonl\.gz: cannot be read"):
        check_questions(EvalConfig(questions=str(path)))


def test_each_split_has_its_own_limit_and_unknown_articles_are_counted() -> None:
    questions = [Question(f"{group} {i}?", "yes", group) for group in ("read", "held", "gone") for i in range(10)]
    drawn, unknown = draw_questions(questions, {"read": "train", "held": "validation"}, limit=4, seed=0)
    assert unknown == 10
    assert {split: len(asked) for split, asked in drawn.items()} == {"train": 4, "validation": 4}
    assert drawn["train"] != questions[:4]  # drawn, not the first
    again, _ = draw_questions(reversed(questions), {"read": "train", "held": "validation"}, limit=4, seed=0)
    assert again == drawn  # whatever the order of the file


def test_only_the_answer_is_supervised() -> None:
    tokenizer = train_tokenizer(["nothing to learn"], 300)
    example = question_example(Question("Who?", "Me", "People"), tokenizer, special_ids(tokenizer))
    supervised = [
        token for token, is_supervised in zip(example.input_ids, example.loss_mask, strict=True) if is_supervised
    ]
    assert tokenizer.decode(supervised) == " Me"
    assert tokenizer.decode(example.input_ids[1:]) == "Question: Who?\nAnswer: Me"
