"""The judge against an endpoint that fails in every way an endpoint can."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_endpoint import Answer, ChatEndpoint, completion

from sbp_ray.artifacts import Artifact
from sbp_ray.config import JudgeConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.judging.cases import QUESTIONS, Case, labelled_cases, read_verdict
from sbp_ray.evaluation.judging.judge import Judge
from sbp_ray.evaluation.judging.rates import judge_texts, require_judge, share_interval

PAIR = [("a document about bridges", "another text")]


class Endpoint(ChatEndpoint):
    """Where the judge answers, NO unless a test says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.says = lambda prompt: completion("VERDICT: NO")

    def config(self, **settings: Any) -> JudgeConfig:
        return JudgeConfig.model_validate(
            {"base_url": self.base_url, "model": "judge", "resources": {"timeout_s": 30, "attempts": 2} | settings}
        )


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.stop()


def right(prompt: str) -> Answer:
    """What a judge that knows every labelled case says."""
    found = [case for case in labelled_cases() if case.prompt(10_000) == prompt]
    return completion(f"Since.\nVERDICT: {'YES' if found and found[0].verdict else 'NO'}")


def test_the_labelled_cases_are_balanced() -> None:
    for question in QUESTIONS:
        cases = [case for case in labelled_cases() if case.question == question]
        assert (len(cases), sum(bool(case.verdict) for case in cases)) == (10, 5)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("It is wrong.\nVERDICT: YES", True),
        ("**Verdict: no**", False),
        ("Verdict — YES (there is a false claim)", True),
        ("YES", None),
        ("", None),
        ("The verdict: yes or no, who knows", None),
        ("VERDICT: YES\nVERDICT: NO", None),
        ("VERDICT: MAYBE", None),
    ],
)
def test_only_a_verdict_is_read_as_one(answer: str, verdict: bool | None) -> None:
    assert read_verdict(answer) is verdict


def test_a_document_cannot_fill_the_places_of_the_prompt() -> None:
    shown = Case("copied", "second {d1}", "first {d2}").prompt(1000)
    assert "first {d2}" in shown
    assert "second {d1}" in shown


def test_rates_count_verdicts_with_their_interval_and_cost(endpoint: Endpoint, tmp_path: Path) -> None:
    def says(prompt: str) -> Answer:
        return completion("VERDICT: YES") if "false thing" in prompt else right(prompt)

    endpoint.says = says
    texts = [("d1", "a false thing"), ("d1", "a true thing"), ("d1", "another"), ("d1", "one more")]
    cfg = endpoint.config(dollars_per_million_input_tokens=10, dollars_per_million_output_tokens=100)
    found = judge_texts(cfg, {"synthetic": texts}, Artifact("judge", str(tmp_path)))
    assert found["self_check"]["copied"] == {"cases": 10, "right": 10, "believed": True}
    rate = found["rates"]["synthetic"]["non_factual"]
    assert (rate["asked"], rate["judged"], rate["rate"]["value"]) == (4, 4, 0.25)
    num_asked = 30 + 3 * 4
    assert found["input_tokens"] == 100 * num_asked
    assert found["dollars"] == pytest.approx(num_asked * (100 * 10 + 10 * 100) / 1e6)
    assert found["failures"] == {}


def test_what_was_judged_is_not_paid_for_twice(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.says = right
    store = Artifact("judge", str(tmp_path))
    first = judge_texts(endpoint.config(), {"synthetic": PAIR}, store)
    endpoint.prompts.clear()
    assert judge_texts(endpoint.config(timeout_s=9), {"synthetic": PAIR}, store) == first
    assert endpoint.prompts == []


@pytest.mark.parametrize(
    ("said", "reason", "num_asked"),
    [
        (completion("I would rather talk about the weather."), "nonsense", 1),
        (completion(None), "nonsense", 1),
        ({"object": "list", "data": []}, "nonsense", 1),
        (completion("Let me think", finish="length"), "cut off", 1),
        (completion(None, refusal="I cannot judge this."), "refused", 1),
        (completion("", finish="content_filter"), "refused", 1),
        (503, "status 503", 3),
        (429, "status 429", 3),
    ],
)
def test_a_failure_is_counted_and_no_verdict(endpoint: Endpoint, said: Any, reason: str, num_asked: int) -> None:
    """Where the endpoint is at fault it is asked again; the same judge says the same again."""
    endpoint.says = lambda prompt: said
    judge = Judge(endpoint.config(attempts=3))
    assert judge.verdict(Case("non_factual", "a text")) is None
    assert judge.failures == {reason: 1}
    assert len(endpoint.prompts) == num_asked


def test_a_judge_that_does_not_answer_in_time_has_failed(endpoint: Endpoint) -> None:
    endpoint.says = lambda prompt: 60.0
    start = time.monotonic()
    judge = Judge(endpoint.config(timeout_s=0.2, attempts=2))
    assert judge.verdict(Case("non_factual", "a text")) is None
    assert judge.failures == {"timed out": 1}
    assert time.monotonic() - start < 50


def test_a_second_try_counts_as_the_verdict(endpoint: Endpoint) -> None:
    answers = iter([503, completion("VERDICT: YES")])
    endpoint.says = lambda prompt: next(answers)
    judge = Judge(endpoint.config())
    assert judge.verdict(Case("non_factual", "a text")) is True
    assert judge.failures == {}


def test_no_more_is_asked_once_too_many_have_failed(endpoint: Endpoint, tmp_path: Path) -> None:
    def says(prompt: str) -> Answer | int:
        known = any(case.prompt(10_000) == prompt for case in labelled_cases())
        return right(prompt) if known else 500

    endpoint.says = says
    store = Artifact("judge", str(tmp_path))
    cfg = endpoint.config(attempts=1, max_failures=2, at_once=1)
    found = judge_texts(cfg, {"synthetic": [("d1", f"text {i}") for i in range(10)]}, store)
    assert (found["failures"], found["skipped"]) == ({"status 500": 3}, 27)
    assert len(endpoint.prompts) == 30 + 3
    assert found["rates"]["synthetic"]["non_factual"] == {"asked": 10, "judged": 0, "rate": None}
    assert store.files() == []  # the next run asks again


def test_a_judge_that_is_wrong_on_known_cases_is_not_believed(endpoint: Endpoint, tmp_path: Path) -> None:
    from sbp_ray.report import wording
    from sbp_ray.report.page import environment

    endpoint.says = lambda prompt: completion("VERDICT: NO")
    found = judge_texts(endpoint.config(), {"synthetic": PAIR}, Artifact("judge", str(tmp_path)))
    assert found["self_check"]["irrelevant"] == {"cases": 10, "right": 5, "believed": False}
    shown = environment().get_template("benchmarks.html.j2").render(wording=wording, rows=None, judge=found)
    assert shown.count("the judge failed its test") == 3


def test_a_judge_that_is_not_there_is_told_before_any_work(endpoint: Endpoint) -> None:
    endpoint.says = lambda prompt: completion("Hello!")
    with pytest.raises(SbpError, match=r"benchmarks.judge: judge at .* gave no verdict on a simple case \(nonsense\)"):
        require_judge(endpoint.config())
    endpoint.says = lambda prompt: 401
    with pytest.raises(SbpError, match=r"refuses judge with 401 .*set JUDGE_API_KEY"):
        require_judge(endpoint.config())
    nowhere = endpoint.config().model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    with pytest.raises(SbpError, match=r"could not be reached"):
        require_judge(nowhere)
    require_judge(None)


def test_an_interval_has_a_width_where_all_verdicts_agree() -> None:
    """Wilson: the upper end for 0 of 20 is z^2 / (20 + z^2)."""
    found = share_interval(0, 20)
    assert found is not None
    assert found["high"] == pytest.approx(1.959964**2 / (20 + 1.959964**2), rel=1e-5)
    assert share_interval(0, 0) is None
