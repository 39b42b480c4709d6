"""What an engine is asked before it takes requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from sbp_ray.agreement import CHECKED, EXPORT_CHECK, TOLERANCE
from sbp_ray.artifacts import Artifact
from sbp_ray.engine import start_check
from sbp_ray.errors import SbpError

IDENTITY = {"synthesizer": "v1", "dtype": "float32", "max_model_len": 8}


@pytest.fixture
def synthesizer(new_artifact: Callable[[str], Artifact]) -> Artifact:
    """Of two held-out documents it knows what it gives three tokens: 1, 2 and 4 nats."""
    made = new_artifact("synthesizer")
    documents = [
        {"input_ids": [0, 7, 7, 7, 7], "positions": [3, 4], "nll_nats": [1.0, 2.0]},
        {"input_ids": [0, 7, 7], "positions": [2], "nll_nats": [4.0]},
    ]
    made.write_json(EXPORT_CHECK, documents)
    made.write_json(CHECKED, {"tolerance_nats": TOLERANCE["float32"].high})
    return made


def check(synthesizer: Artifact, off_by: float = 0.0, identity: dict[str, Any] = IDENTITY, window: int = 8) -> list:
    """Asks an engine that gives the same tokens those NLLs but for one, and returns what it was asked."""
    asked = []

    async def score(ids: list[int]) -> list[float]:
        asked.append(ids)
        return {5: [0.0, 9.0, 9.0, 1.0, 2.0 + off_by], 3: [0.0, 9.0, 4.0]}[len(ids)]

    asyncio.run(start_check.check_engine(synthesizer, identity, window, score))
    return asked


def test_an_engine_that_says_the_same_starts(synthesizer: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=start_check.__name__):
        assert check(synthesizer, off_by=5e-4) == [[0, 7, 7], [0, 7, 7, 7, 7]]
    assert "gives 3 held-out tokens what the trained model gave them, to within 5.0e-04 nats" in caplog.text


def test_an_engine_that_says_something_else_does_not(synthesizer: Artifact) -> None:
    told = (
        r"the engine gives held-out tokens log-probabilities 0\.05 nats from .* up to 0\.15, more than 0\.001 or 0\.001"
    )
    with pytest.raises(SbpError, match=told):
        check(synthesizer, off_by=0.15)


@pytest.mark.parametrize(("trained", "serves"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_type_that_rounds_more_says_how_far_they_may_be_apart(
    synthesizer: Artifact, trained: str, serves: str
) -> None:
    synthesizer.write_json(CHECKED, {"tolerance_nats": TOLERANCE[trained].high})
    check(synthesizer, off_by=0.05, identity=IDENTITY | {"dtype": serves})
    with pytest.raises(SbpError, match=r"more than 0\.02 or 0\.25 in bfloat16"):
        check(synthesizer, off_by=0.3, identity=IDENTITY | {"dtype": serves})


def test_other_weights_on_purpose_are_told_and_serve(synthesizer: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger=start_check.__name__):
        check(synthesizer, off_by=0.3, identity=IDENTITY | {"vllm": {"quantization": "fp8"}})
    assert "with {'quantization': 'fp8'} the engine gives held-out tokens" in caplog.text


def test_only_documents_that_the_window_holds_are_asked_for(
    synthesizer: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    assert check(synthesizer, window=5) == [[0, 7, 7]]
    assert check(synthesizer, window=3) == []
    assert "max_model_len is shorter than every held-out document" in caplog.text


def test_no_more_is_asked_for_than_takes_a_second(synthesizer: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_check, "_MAX_TOKENS", 7)
    assert check(synthesizer) == [[0, 7, 7]]
    monkeypatch.setattr(start_check, "_MAX_TOKENS", 2)  # the shortest is asked for in any case
    assert check(synthesizer) == [[0, 7, 7]]


def test_a_model_that_others_have_made_has_nothing_to_compare_with(new_artifact: Callable[[str], Artifact]) -> None:
    assert check(new_artifact("synthesizer")) == []
