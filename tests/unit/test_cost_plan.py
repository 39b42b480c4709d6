"""What a run will take, beside the numbers that docs/scaling.md has of the paper's scales."""

from __future__ import annotations

from pathlib import Path

import pytest

from sbp_ray.config import Config
from sbp_ray.config_file import load_config, read_yaml, settings_of
from sbp_ray.cost_plan import COLUMNS, Corpus, Rates, plan_costs
from sbp_ray.errors import SbpError

REPO = Path(__file__).parents[2]
PAPER = Corpus(12_100_000, 10_000_000_000)


@pytest.fixture
def rates() -> Rates:
    return settings_of(Rates, read_yaml(REPO / "benchmarks/rates.yaml"), [], where="rates.yaml")


def _paper(*overrides: str) -> Config:
    return load_config(REPO / "configs/paper-3b-200b.yaml", list(overrides))


def _table(config: Config, rates: Rates) -> dict[str, dict[str, str]]:
    rows = plan_costs(config, PAPER, rates)
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows}


def test_the_papers_first_scale_takes_what_the_docs_say(rates: Rates) -> None:
    table = _table(_paper(), rates)
    assert (table["embed"]["FLOPs"], table["embed"]["GPU-hours"]) == ("1.2e+19", "8.4")
    assert table["embed"]["dollars"] == "$21.07"  # 2.50 a GPU-hour
    assert table["pair"]["core-hours"] == "1.2"
    for arm in ("pretrain-repetition", "pretrain-sbp"):
        assert (table[arm]["tokens"], table[arm]["FLOPs"]) == ("200 B", "3.7e+21")
        assert table[arm]["GPU-hours"] == "2,582.4"
        assert table[arm]["wall time"] == "40h20m"  # on 64 of them
    # 80 B tokens, 8 samples of 828 for each document, at 12,500 a second.
    assert (table["synthesize"]["tokens"], table["synthesize"]["GPU-hours"]) == ("80 B", "1,777.8")


def test_what_was_not_measured_is_not_priced(rates: Rates) -> None:
    table = _table(_paper(), rates)
    assert table["ingest"]["dollars"] == table["eval"]["dollars"] == "not measured"
    assert table["ingest"]["wall time"] == ""


def test_prices_come_from_the_settings(rates: Rates) -> None:
    table = _table(_paper("cluster.dollars_per_gpu_hour=5"), rates)
    assert table["embed"]["dollars"] == "$42.13"


def test_what_cannot_fit_is_refused(rates: Rates) -> None:
    with pytest.raises(SbpError, match=r"^embed.resources wants 64 GPUs, and cluster.most has 32: lower"):
        plan_costs(_paper("cluster.most={GPU: 32}"), PAPER, rates)


def test_an_embedder_of_unknown_size_is_one_line(rates: Rates) -> None:
    with pytest.raises(SbpError, match=r"embed.model=a/b: its size is not in the rates: add it"):
        plan_costs(_paper("embed.model=a/b"), PAPER, rates)
