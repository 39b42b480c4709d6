"""Questions on the corpus, asked closed book: their file, checked before any heavy work, and their draw."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

from sbp_ray.config import EvalConfig
from sbp_ray.errors import SbpError
from sbp_ray.input_files import find_input_files
from sbp_ray.schema import Split
from sbp_ray.text.hashing import hash64
from sbp_ray.text.lines import is_text, iter_json
from sbp_ray.text.pair_format import Example, join_tokens
from sbp_ray.text.tokenizer import SpecialIds, encode_texts


@dataclass(frozen=True)
class Question:
    """A question, the first of its accepted answers, and the article that holds the answer."""

    question: str
    answer: str
    group: str

    @property
    def prompt(self) -> str:
        return f"Question: {self.question}\nAnswer:"

    @property
    def continuation(self) -> str:
        """What is supervised: the answer, with the space that parts it from the prompt."""
        return f" {self.answer}"


def check_questions(cfg: EvalConfig) -> set[str] | None:
    """Read the whole question file once, keeping only the groups that it names; None when none is configured.

    Raises:
        SbpError: the file is missing, empty or has rows of another form; names the line, and the columns found.
    """
    if cfg.questions is None:
        return None
    groups = {question.group for question in iter_questions(cfg)}
    if not groups:
        raise SbpError(f"eval.questions={cfg.questions}: holds no question: give another file, or leave it out")
    return groups


def iter_questions(cfg: EvalConfig) -> Iterator[Question]:
    """Every question of the configured file, in its order."""
    assert cfg.questions is not None
    column = cfg.question_group_column
    form = f'each line must be {{"question": text, "answers": [text, …], "{column}": text}}'
    for path, _ in find_input_files([cfg.questions]).files:
        for where, row in iter_json(path, f"eval.questions: {path}", form):
            if not isinstance(row, dict):
                raise SbpError(f"{where}: is not an object: {form}")
            question, group, answers = row.get("question"), row.get(column), row.get("answers")
            if not (is_text(question) and is_text(group) and _holds_text(answers)):
                raise SbpError(f"{where}: has {', '.join(row) or 'no columns'}: {form}")
            yield Question(question, answers[0], group)


def _holds_text(answers: Any) -> TypeGuard[list[str]]:
    return isinstance(answers, list) and bool(answers) and is_text(answers[0])


def draw_questions(
    questions: Iterable[Question], split_of: dict[str, Split], *, limit: int, seed: int
) -> tuple[dict[Split, list[Question]], int]:
    """Up to `limit` questions for each split, drawn at random.

    Args:
        split_of: the split of each group that the corpus has.

    Returns:
        The questions of each split, and how many were left out because the corpus lacks their group.
    """
    asked: dict[Split, list[Question]] = {"train": [], "validation": []}
    unknown = 0
    for question in questions:
        split = split_of.get(question.group)
        if split is None:
            unknown += 1
        else:
            asked[split].append(question)
    return {split: heapq.nsmallest(limit, found, partial(_rank, seed)) for split, found in asked.items()}, unknown


def _rank(seed: int, question: Question) -> int:
    return hash64("questions", seed, question.group, question.question)


def question_example(question: Question, tokenizer: Any, special: SpecialIds) -> Example:
    """`<bos> Question: …\\nAnswer: answer`, supervised on the answer's tokens only.

    Prompt and answer are encoded apart, so that the first supervised token is the answer's for every tokenizer.
    """
    prompt, answer = encode_texts(tokenizer, [question.prompt, question.continuation])
    return Example(join_tokens([special.bos], prompt, answer), 1 + len(prompt))
