"""The export check: what passes, and what must not."""

import math
from collections.abc import Callable

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sbp_ray.agreement import EXPORT_CHECK, TOLERANCE, summarize
from sbp_ray.artifacts import Artifact
from sbp_ray.config import PretrainConfig
from sbp_ray.errors import SbpError
from sbp_ray.training.export_check import ask_transformers, check_export

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


def test_the_differences_of_all_tokens_count(export: Callable[..., Artifact]) -> None:
    out = export([UNIFORM + 0.25, UNIFORM - 0.75])
    assert ask_transformers(out, CONFIG.resources, "float32") == pytest.approx([0.25, 0.75], abs=1e-6)
    refused = r"tune: the export is refused: transformers gives .* 0\.5 nats from .* on average and up to 0\.75, more"
    with pytest.raises(SbpError, match=refused):
        check_export("tune", CONFIG, out)
    assert not out.exists("checked.json")


def test_a_good_export_in_bfloat16_passes_and_one_that_is_wrong_everywhere_does_not() -> None:
    """Between a trainer in bfloat16 and vLLM 0.04 nats RMS have been measured: its tails must pass."""
    draws = torch.randn(16_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (0.02 * draws.abs()).tolist()
    good = summarize([*noise, 0.6, 1.2])  # two tokens of 16,000 whose logits cancel
    limit = TOLERANCE["bfloat16"]
    assert good.mean == pytest.approx(0.02 * math.sqrt(2 / math.pi), rel=0.03)
    assert good.mean < limit.mean and good.high < limit.high < 1.2
    wrong = summarize([difference + 0.03 for difference in noise])  # no token stands out
    assert wrong.high < limit.high and wrong.mean > limit.mean


def test_one_of_a_thousand_tokens_may_stand_out_and_of_fewer_none() -> None:
    assert summarize([0.0] * 999 + [3.0]).high == 0
    assert summarize([0.0] * 998 + [3.0]).high == 3
    assert summarize([0.0] * 998 + [2.0, 3.0]).high == 2


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
    found = summarize(ask_transformers(export(nll_nats, output), CONFIG.resources, "float32"))
    assert found == (math.inf, math.inf)
    with pytest.raises(SbpError, match=r"refused: transformers gives .* inf nats"):
        check_export("tune", CONFIG, export(nll_nats, output))


def test_an_export_of_which_nothing_was_compared_is_refused(new_artifact: Callable[[str], Artifact]) -> None:
    out = new_artifact("base_lm")
    out.write_json(EXPORT_CHECK, [])
    with pytest.raises(SbpError, match="tune: the export is refused: no token to check it by"):
        check_export("tune", CONFIG, out)
    assert out.files() == [EXPORT_CHECK]
