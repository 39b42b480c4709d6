"""The built-in benchmarks: the form of their rows, and prompts and metrics equal to those of lm-eval's own tasks.

A row of the user's file becomes a row with the columns that the task's templates name; lm-eval does the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Row = dict[str, Any]
Form = Literal["choices", "answers", "target", "text"]

FORMS: dict[Form, str] = {
    "choices": '{"id": …, "query": text, "choices": [text, text, …], "gold": index of the right one}',
    "answers": '{"id": …, "question": text, "answers": [text, …]}',
    "target": '{"id": …, "context": text, "target": the last word}',
    "text": '{"id": …, "text": text}',
}
"""Of a line of each form of file."""


@dataclass(frozen=True)
class BuiltIn:
    """A benchmark that is known by name."""

    form: Form
    task: Mapping[str, Any]
    """lm-eval's task configuration, without its data."""
    prepare: Callable[[Row], Row]
    """A checked row of the form -> the columns that the task names."""
    measures: tuple[str, ...]
    """Names of `measures.MEASURES`."""
    num_fewshot: int = 0
    likelihood_task: Mapping[str, Any] | None = None
    """Where the task generates: a second one, which scores the answer that is expected."""
    by_subject: bool = False
    """Each `subject` is a task of its own, with its own answered questions."""


def _task(output_type: str, metrics: tuple[str, ...], **config: Any) -> Mapping[str, Any]:
    means = [
        {"metric": name, "aggregation": "perplexity" if name == "perplexity" else "mean", "higher_is_better": True}
        for name in metrics
    ]
    return MappingProxyType({"output_type": output_type, "metric_list": means, **config})


def _choices(*metrics: str, **config: Any) -> Mapping[str, Any]:
    columns = {"doc_to_text": "prompt", "doc_to_choice": "choices", "doc_to_target": "gold"}
    return _task("multiple_choice", metrics, **(columns | config))


def _question(row: Row) -> Row:
    return {"prompt": f"Question: {row['query']}\nAnswer:", "choices": row["choices"], "gold": row["gold"]}


def _question_after_context(row: Row) -> Row:
    return _question(row) | {"prompt": f"{row.get('context', '').lstrip()}\nQuestion: {row['query']}\nAnswer:"}


def _continuation(row: Row) -> Row:
    return _question(row) | {"prompt": row["query"]}


def _hellaswag(row: Row) -> Row:
    """lm-eval puts the activity before the context, whose second part it capitalises."""
    query = row["query"]
    if all(isinstance(row.get(key), str) for key in ("activity", "ctx_a", "ctx_b")):
        query = f"{row['activity']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {"prompt": _wikihow(query), "choices": [_wikihow(choice) for choice in row["choices"]], "gold": row["gold"]}


def _wikihow(text: str) -> str:
    """Without the marks that HellaSwag's WikiHow part left in brackets."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _winogrande(row: Row) -> Row:
    """Each choice fills the blank; what is scored is the rest of the sentence, the same for both."""
    before, _, after = row["query"].partition("_")
    return {"contexts": [before + choice for choice in row["choices"]], "rest": after.strip(), "gold": row["gold"]}


def _mmlu(row: Row) -> Row:
    lettered = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    subject = f" about {row['subject'].replace('_', ' ')}" if "subject" in row else ""
    return {
        "prompt": f"{row['query'].strip()}\n{lettered}\nAnswer:",
        "choices": list("ABCD"),
        "gold": row["gold"],
        "description": f"The following are multiple choice questions (with answers){subject}.\n\n",
    }


def _trivia(row: Row) -> Row:
    return {
        "prompt": f"Question: {row['question']}?\nAnswer:",
        "answers": row["answers"],
        "expected": row["answers"][:1],
        "gold": 0,
    }


def _webqs(row: Row) -> Row:
    """All accepted answers are choices, without those that go on from another: each is looked for greedily."""
    accepted: list[str] = []
    for answer in sorted(row["answers"]):
        if not (accepted and answer.startswith(accepted[-1])):
            accepted.append(answer)
    graded = next(i for i, answer in enumerate(accepted) if row["answers"][0].startswith(answer))
    return {
        "prompt": f"Question: {row['question']}\nAnswer:",
        "choices": accepted,
        "gold": list(range(len(accepted))),
        "graded": graded,
        "shown": accepted[0],
    }


def _lambada(row: Row) -> Row:
    return {"prompt": row["context"], "target": f" {row['target'].strip()}"}


def _text(row: Row) -> Row:
    return {"text": row["text"], "num_bytes": len(row["text"].encode()), "num_words": len(row["text"].split())}


_RIGHT = ("accuracy", "accuracy_by_length", "answer_nats_per_byte")
_QUESTION = BuiltIn("choices", _choices("acc", "acc_norm"), _question, _RIGHT)
_TEXT = BuiltIn(
    "text",
    _task("loglikelihood_rolling", (), doc_to_text="", doc_to_target="text"),
    _text,
    ("nats_per_byte", "word_perplexity"),
)
_GENERATED = {"until": ["\n", ".", ","], "do_sample": False, "temperature": 0.0, "max_gen_toks": 64}

BUILT_IN = {
    "arc_easy": _QUESTION,
    "arc_challenge": _QUESTION,
    "sciq": BuiltIn("choices", _choices("acc", "acc_norm"), _question_after_context, _RIGHT),
    "piqa": _QUESTION,
    "winogrande": BuiltIn(
        "choices",
        _choices("acc", doc_to_text="gold", doc_to_choice="contexts", doc_to_target="rest"),
        _winogrande,
        ("accuracy", "answer_nats_per_byte"),
    ),
    "hellaswag": BuiltIn("choices", _choices("acc", "acc_norm"), _hellaswag, _RIGHT),
    "openbookqa": BuiltIn("choices", _choices("acc", "acc_norm"), _continuation, _RIGHT),
    "triviaqa": BuiltIn(
        "answers",
        _task(
            "generate_until",
            (),
            doc_to_text="prompt",
            doc_to_target="answers",
            generation_kwargs=_GENERATED,
            filter_list=[{"name": "strip", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
            metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
                         | {"ignore_case": True, "ignore_punctuation": True}],
        ),
        _trivia,
        ("exact_match", "answer_nats_per_byte"),
        num_fewshot=1,
        likelihood_task=_choices("acc", doc_to_choice="expected"),
    ),
    "webqs": BuiltIn(
        "answers",
        # lm-eval 0.4.13 takes a list of right choices for a shown answer, and stops: the answer is named.
        _choices("exact_match", fewshot_config={"doc_to_target": "shown"}),
        _webqs,
        ("exact_match", "answer_nats_per_byte"),
        num_fewshot=1,
    ),
    "mmlu": BuiltIn(
        "choices",
        _choices("acc", description="description", fewshot_config={"sampler": "first_n"}),
        _mmlu,
        ("accuracy", "answer_perplexity"),
        num_fewshot=5,
        by_subject=True,
    ),
    "lambada": BuiltIn(
        "target",
        _task("loglikelihood", ("perplexity", "acc"), doc_to_text="prompt", doc_to_target="target"),
        _lambada,
        ("accuracy", "answer_perplexity", "answer_nats_per_byte"),
    ),
    "text": _TEXT,
}  # fmt: skip
"""By name; docs/benchmarks.md says what each asks."""
