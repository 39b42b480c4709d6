"""The export check: what passes, and what must not."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PretrainConfig
from sbp_ray.errors import SbpError
from sbp_ray.training import export_check
from sbp_ray.training.export import EXPORT_CHECK

CONFIG = PretrainConfig(batch_rows=1, total_tokens=1, peak_lr=1.0, dtype="float32")


def test_the_largest_difference_of_all_tokens_counts(
    new_artifact: Callable[[str], Artifact], said: list[float]
) -> None:
    out = _exported(new_artifact, [0.5, 0.25])
    said[:] = [0.0, 0.5, 1.0]
    assert export_check.largest_difference(out, "transformers", "float32") == 0.75


@pytest.mark.parametrize("ours", [[math.nan, 0.5], [0.5, math.nan]])
def test_a_token_that_is_not_a_number_does_not_pass(
    new_artifact: Callable[[str], Artifact], said: list[float], ours: list[float]
) -> None:
    out = _exported(new_artifact, ours)
    said[:] = [0.0, 0.5, 0.5]
    assert export_check.largest_difference(out, "transformers", "float32") == math.inf
    said[:] = [0.0, *ours]  # both
    assert export_check.largest_difference(out, "transformers", "float32") == math.inf


def test_an_export_of_which_nothing_was_compared_is_refused(new_artifact: Callable[[str], Artifact]) -> None:
    out = new_artifact("base_lm")
    out.write_json(EXPORT_CHECK, [])
    with pytest.raises(SbpError, match="tune: the export is refused: no token to check it by"):
        export_check.check_export("tune", CONFIG, out)
    assert out.files() == [EXPORT_CHECK]


def _exported(new_artifact: Callable[[str], Artifact], nll_nats: list[float]) -> Artifact:
    out = new_artifact("base_lm")
    out.write_json(EXPORT_CHECK, [{"input_ids": [0, 5, 1], "positions": [1, 2], "nll_nats": nll_nats}])
    return out


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What transformers says of the document's tokens."""
    nll: list[float] = []

    def say(folder: Path, documents: list[list[int]], dtype: str) -> list[list[float]]:
        return [nll]

    monkeypatch.setattr(export_check, "_transformers_nll", say)
    return nll
