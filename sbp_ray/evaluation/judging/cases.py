"""What the judge is asked: the prompts, the labelled cases that it is tested on, and how its answer is read."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from sbp_ray.artifacts import fingerprint_of
from sbp_ray.report.wording import cut

QUESTIONS = ("non_factual", "irrelevant", "copied")
"""Each has a prompt in `prompts/`; the answer YES is what a rate counts."""
_VERDICT = re.compile(r"^\W*verdict\W+(yes|no)\b", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """A text, or a pair, about which one question is asked."""

    question: str
    d2: str
    d1: str | None = None
    verdict: bool | None = None
    """The right answer, of labelled cases."""

    def prompt(self, max_chars: int) -> str:
        """What the judge reads; documents are cut to `max_chars`."""
        given = {"d1": self.d1, "d2": self.d2}
        shown = {name: cut(text, max_chars) for name, text in given.items() if text is not None}
        # One pass: a document that happens to hold `{d2}` stays as it is.
        return re.sub(r"\{(d1|d2)\}", lambda found: shown[found[1]], prompt_of(self.question))


@cache
def prompt_of(question: str) -> str:
    """The published prompt, with places for d1 and d2."""
    return _read(f"prompts/{question}.txt")


@cache
def labelled_cases() -> tuple[Case, ...]:
    """Cases whose answer is beyond dispute, ten of each question, half of them YES."""
    return tuple(Case(**json.loads(line)) for line in _read("cases.jsonl").splitlines())


def _read(name: str) -> str:
    return files("sbp_ray.evaluation.judging").joinpath(name).read_text(encoding="utf-8")


def prompts_fingerprint() -> str:
    """Names the prompts and cases: rates of other ones do not compare."""
    texts: dict[str, Any] = {question: prompt_of(question) for question in QUESTIONS}
    return fingerprint_of(texts | {"cases": _read("cases.jsonl")})


def read_verdict(answer: str) -> bool | None:
    """True for YES; None where the answer holds no verdict, or two that differ."""
    found = {match.lower() for match in _VERDICT.findall(answer)}
    return found == {"yes"} if len(found) == 1 else None
