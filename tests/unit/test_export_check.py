"""The export check: what passes, and what must not."""

import math
from collections.abc import Callable

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PretrainConfig
from sbp_ray.errors import SbpError
from sbp_ray.training.export import EXPORT_CHECK
from sbp_ray.training.export_check import check_export, find_largest_difference

CONFIG = PretrainConfig(
    batch_rows=1,
    total_tokens=1,
    peak_lr=1.0,
    dtype="float32",
    resources={"in_process": True},  # type: ignore[arg-type]
)
VOCAB = 8
UNIFORM = math.log(VOCAB)


@pytest.fixture
def export(new_artifact: Callable[[str], Artifact]) -> Callable[..., Artifact]:
    """An export that gives every token log 8 nats, and what the trained model is said to have given."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Qwen3Config(vocab_size=VOCAB, num_key_value_heads=1, head_dim=8, **shape)
    config.tie_word_embeddings = False

    def make(nll_nats: list[float], output: float = 0.0) -> Artifact:
        out = new_artifact("base_lm")
        lm = Qwen3ForCausalLM(config)
        torch.nn.init.constant_(lm.lm_head.weight, output)
        lm.save_pretrained(out.path("model"))
        out.write_json(EXPORT_CHECK, [{"input_ids": [0, 5, 1], "positions": [1, 2], "nll_nats": nll_nats}])
        return out

    return make


def test_the_largest_difference_of_all_tokens_counts(export: Callable[..., Artifact]) -> None:
    out = export([UNIFORM + 0.25, UNIFORM - 0.75])
    assert find_largest_difference(out, CONFIG.resources, "float32") == pytest.approx(0.75, abs=1e-6)
    with pytest.raises(SbpError, match=r"tune: the export is refused: transformers gives .* up to 0\.75 nats from"):
        check_export("tune", CONFIG, out)
    assert not out.exists("checked.json")


def test_an_export_within_the_tolerance_passes_once(export: Callable[..., Artifact]) -> None:
    out = export([UNIFORM, UNIFORM + 5e-4])
    checked = check_export("tune", CONFIG, out)
    assert (checked["tokens"], checked["tolerance_nats"]) == (2, 1e-3)
    assert checked["max_difference_nats"] == pytest.approx(5e-4, abs=1e-6)
    out.write_json(EXPORT_CHECK, [])  # it is not compared again
    assert check_export("tune", CONFIG, out) == checked


@pytest.mark.parametrize(
    ("nll_nats", "output"),
    [([math.nan, UNIFORM], 0.0), ([UNIFORM, math.nan], 0.0), ([UNIFORM] * 2, math.nan), ([math.nan] * 2, math.nan)],
)
def test_a_token_that_is_not_a_number_does_not_pass(
    export: Callable[..., Artifact], nll_nats: list[float], output: float
) -> None:
    assert find_largest_difference(export(nll_nats, output), CONFIG.resources, "float32") == math.inf


def test_an_export_of_which_nothing_was_compared_is_refused(new_artifact: Callable[[str], Artifact]) -> None:
    out = new_artifact("base_lm")
    out.write_json(EXPORT_CHECK, [])
    with pytest.raises(SbpError, match="tune: the export is refused: no token to check it by"):
        check_export("tune", CONFIG, out)
    assert out.files() == [EXPORT_CHECK]
