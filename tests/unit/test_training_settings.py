"""Settings of the trainings that cannot be are refused in one line, and what they say is worked out."""

import sys
from pathlib import Path

import pytest

from sbp_ray.config import MixtureConfig, ModelConfig, TrainingConfig, shape_of_depth
from sbp_ray.config_file import load_config
from sbp_ray.errors import SbpError
from sbp_ray.mixing import Mixture, Source
from sbp_ray.model import num_parameters
from sbp_ray.training.build import load_torchao
from sbp_ray.training.packed import realised

SMALL = Path(__file__).parent / "small.yaml"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pretrain.peak_lr=0"], "pretrain.peak_lr=0: input should be greater than 0"),
        (["pretrain.final_lr=1"], "pretrain: final_lr (1.0) is more than peak_lr (0.003)"),
        (
            ["tune.schedule=wsd", "tune.warmup_share=0.5", "tune.decay_share=0.6"],
            "tune: warmup_share (0.5) and decay_share (0.6) are more than the whole run",
        ),
        (["pretrain.dtype=float32", "pretrain.float8=true"], "pretrain: float8 needs dtype bfloat16, which is float32"),
        (
            ["pretrain.resources.min_workers=3"],
            "pretrain.resources: min_workers (3) is more than num_workers (2)",
        ),
        (
            ["mixture.synthetic_tokens=1000"],
            "mixture: real_tokens and synthetic_tokens come together: give both, or synthetic_share",
        ),
        (
            ["mixture.synthetic_tokens=100_000", "mixture.real_tokens=800_000"],
            "mixture.real_tokens and mixture.synthetic_tokens add up to 900,000, and pretrain.total_tokens is "
            "1,000,000: make them equal",
        ),
        (
            ["mixture.synthetic_share=0.1", "mixture.synthetic_tokens=1", "mixture.real_tokens=1"],
            "mixture: synthetic_share and token budgets say the same thing: give one of them",
        ),
        (["model.depth=0"], "model.depth=0: input should be greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SbpError) as error:
        load_config(SMALL, overrides)
    assert str(error.value) == f"{SMALL}: {message}"


def test_token_budgets_are_met_within_a_thousandth_and_each_synthetic_row_comes_once() -> None:
    """The paper's 200 B run in small: 125 B real tokens, read 12.5 times, and 75 B synthetic ones."""
    mixture = MixtureConfig(real_tokens=125_000_000, synthetic_tokens=75_000_000)
    assert mixture.share() == 0.375
    seq_len, total_rows = 4096, 48_828  # 200 M tokens
    real, synthetic = Source("real", (1221, 1221)), Source("synthetic", (10_000, 10_000))
    order = Mixture(real, synthetic, total_rows, round(mixture.share() * total_rows), 0)
    packed = {name: {"rows": rows, "tokens": rows * 4080} for name, rows in (("real", 2442), ("synthetic", 20_000))}
    found = realised(order, packed, seq_len)
    assert found["real"]["positions"] == pytest.approx(125_000_000, rel=1e-3)
    assert found["synthetic"]["positions"] == pytest.approx(75_000_000, rel=1e-3)
    assert found["real"]["passes"] == pytest.approx(12.5, rel=1e-3)
    addresses = [order.address(row) for row in range(total_rows)]
    once = [address for address in addresses if address.source == "synthetic"]
    assert len(once) == len(set(once)) == found["synthetic"]["rows"]
    tenths = [sum(a.source == "real" for a in addresses[start : start + 4882]) for start in range(0, 48_820, 4882)]
    assert max(tenths) - min(tenths) <= 1  # spread evenly


def test_depth_gives_a_shape_whose_heads_and_width_agree() -> None:
    assert shape_of_depth(12) == {
        "num_layers": 12,
        "hidden_size": 768,
        "num_heads": 12,
        "num_kv_heads": 6,
        "head_dim": 64,
        "ffn_size": 2048,
    }
    sizes = [num_parameters(ModelConfig(depth=depth), 32_768) for depth in range(1, 41)]
    assert sizes == sorted(sizes)
    assert all(m.num_heads * m.head_dim == m.hidden_size for m in (ModelConfig(depth=d) for d in range(1, 41)))


def test_what_is_given_beside_depth_counts() -> None:
    model = ModelConfig(depth=12, num_kv_heads=12)
    assert (model.num_kv_heads, model.num_layers) == (12, 12)
    assert ModelConfig.model_validate(model.model_dump()) == model


def test_float8_without_torchao_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(SbpError, match=r"install the extra with pip install 'sbp-ray\[float8\]'"):
        load_torchao()


def test_how_fast_a_training_goes_is_no_part_of_what_it_makes() -> None:
    kept = {"min_workers", "recompute", "max_failures", "max_preemptions"}
    assert kept <= TrainingConfig.model_fields["resources"].annotation.model_fields.keys()
