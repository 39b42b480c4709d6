"""The benchmarks that a local file can be given for.

The prompts, choices and metrics of all but `text` are those of lm-eval's own task files. A line of a file has the
columns that the task reads from its data set. Or it has the plain form, which is the same for many benchmarks: it is
rewritten as those columns here.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sbp_ray.text.lines import is_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """A plain form of a line."""

    columns: tuple[str, ...]
    """By which it is known."""
    shown: str


CHOICES = Form(
    ("query", "choices", "gold"),
    '{"id": …, "query": text, "choices": [text, text, …], "gold": index of the right one}',
)
ANSWERS = Form(("question", "answers"), '{"id": …, "question": text, "answers": [text, …]}')
TARGET = Form(("context", "target"), '{"id": …, "context": text, "target": the last word}')
TEXT = Form(("text",), '{"id": …, "text": text}')


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that is known by name."""

    folder: str
    """The folder of lm-eval's tasks that holds its task; empty for `text`, which is no task of lm-eval."""
    task: str
    """The task's name there; `{subject}` where each subject is a task of its own, with its own answered questions."""
    form: Form
    rewrite: Callable[[Row], Row]
    """A row of the plain form -> the columns that the task reads. Raises for a row that is not of the form."""
    num_fewshot: int = 0

    @property
    def has_subjects(self) -> bool:
        return "{subject}" in self.task

    def columns_of(self, row: Row) -> Row:
        """The columns that the task reads, of a row in either form.

        Raises:
            ValueError, TypeError, KeyError, IndexError: it has the columns of the plain form, and other values.
        """
        if not all(column in row for column in self.form.columns):
            return {name: value for name, value in row.items() if name != "id"}
        for column in self.form.columns:
            if not _is_of_form(row, column):
                raise ValueError(f"its {column} is of another form")
        return self.rewrite(row)


def _is_of_form(row: Row, column: str) -> bool:
    value = row[column]
    if column == "gold":
        return type(value) is int and 0 <= value < len(row["choices"])
    if column in ("choices", "answers"):
        return isinstance(value, list) and len(value) > (column == "choices") and all(map(is_text, value))
    return is_text(value)


def _lettered(row: Row) -> Row:
    labels = list(string.ascii_uppercase[: len(row["choices"])])
    return {"choices": {"text": row["choices"], "label": labels}, "answerKey": labels[row["gold"]]}


def _only(num: int, row: Row) -> list[str]:
    """The choices, which the task wants as many of."""
    choices: list[str] = row["choices"]
    if len(choices) != num:
        raise ValueError(f"has {len(choices)} choices and not {num}")
    return choices


def _sciq(row: Row) -> Row:
    wrong = [choice for number, choice in enumerate(_only(4, row)) if number != row["gold"]]
    distractors = {f"distractor{number}": choice for number, choice in enumerate(wrong, start=1)}
    right = row["choices"][row["gold"]]
    return {"question": row["query"], "support": row.get("context", ""), "correct_answer": right, **distractors}


def _hellaswag(row: Row) -> Row:
    context = {name: row[name] for name in ("ctx_a", "ctx_b")}
    return {"activity_label": row["activity"], **context, "endings": row["choices"], "label": str(row["gold"])}


def _mmlu(row: Row) -> Row:
    return {"question": row["query"], "subject": row["subject"], "choices": _only(4, row), "answer": row["gold"]}


def _piqa(row: Row) -> Row:
    return {"goal": row["query"], **dict(zip(("sol1", "sol2"), _only(2, row), strict=True)), "label": row["gold"]}


def _winogrande(row: Row) -> Row:
    options = dict(zip(("option1", "option2"), _only(2, row), strict=True))
    return {"sentence": row["query"], **options, "answer": str(row["gold"] + 1)}


def _lambada(row: Row) -> Row:
    if " " in row["target"].strip():
        raise ValueError("its target is more than one word")
    return {"text": f"{row['context']} {row['target'].strip()}"}


KNOWN = {
    **{
        name: Benchmark("arc", name, CHOICES, lambda row: {"question": row["query"], **_lettered(row)})
        for name in ("arc_easy", "arc_challenge")
    },
    "sciq": Benchmark("sciq", "sciq", CHOICES, _sciq),
    "piqa": Benchmark("piqa", "piqa", CHOICES, _piqa),
    "winogrande": Benchmark("winogrande", "winogrande", CHOICES, _winogrande),
    "hellaswag": Benchmark("hellaswag", "hellaswag", CHOICES, _hellaswag),
    "openbookqa": Benchmark(
        "openbookqa", "openbookqa", CHOICES, lambda row: {"question_stem": row["query"], **_lettered(row)}
    ),
    "triviaqa": Benchmark(
        "triviaqa",
        "triviaqa",
        ANSWERS,
        lambda row: {"question": row["question"], "answer": {"aliases": row["answers"]}},
        num_fewshot=1,
    ),
    "webqs": Benchmark(
        "webqs",
        "webqs",
        ANSWERS,
        # The data set's columns are those of the plain form; lm-eval sorts the answers, so the first is kept.
        lambda row: {"question": row["question"], "answers": row["answers"], "scored": row["answers"][0]},
        num_fewshot=1,
    ),
    "mmlu": Benchmark("mmlu/default", "mmlu_{subject}", CHOICES, _mmlu, num_fewshot=5),
    "lambada": Benchmark("lambada", "lambada_openai", TARGET, _lambada),
    "text": Benchmark("", "text", TEXT, lambda row: {"text": row["text"]}),
}
"""By name; docs/benchmarks.md says what each asks."""
