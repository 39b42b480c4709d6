"""Which round a text and a model belong to, followed through the artifacts of two rounds."""

from __future__ import annotations

from typing import Any

import pytest

from sbp_ray.artifacts import MANIFEST, Artifact
from sbp_ray.rounds import round_of, round_of_text


@pytest.fixture
def made(new_artifact: Any) -> Any:
    """A finished artifact whose stage recorded these counts."""

    def make(name: str, **stats: int) -> Artifact:
        artifact: Artifact = new_artifact(name)
        artifact.write_json(MANIFEST, {"stats": stats})
        return artifact

    return make


def test_a_synthesizer_writes_text_of_its_own_round(made: Any) -> None:
    assert round_of_text(made("synthesizer", round=2)) == 2


def test_text_of_a_base_lm_is_of_the_first_round(made: Any) -> None:
    """In the controls it stands in for the synthesizer."""
    assert round_of(made("base_lm", round=0)) == 0
    assert round_of_text(made("base_lm", round=0)) == 1


def test_an_artifact_that_does_not_say_is_of_real_text(made: Any, new_artifact: Any) -> None:
    assert round_of(made("base_lm")) == 0
    assert round_of(new_artifact("nothing yet")) == 0
