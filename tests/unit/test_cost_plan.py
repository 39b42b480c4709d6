"""What a run will take, beside the numbers that docs/scaling.md has of the paper's scales, and of a run of the demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sbp_ray.config import Config
from sbp_ray.config_file import load_config, read_yaml, settings_of
from sbp_ray.cost_plan import (
    COLUMNS,
    Corpus,
    PairTrial,
    Rates,
    Trial,
    corpus_of_size,
    expect_pairs,
    finished_corpus,
    most_pairs,
    plan_costs,
)
from sbp_ray.errors import SbpError
from sbp_ray.logs import duration

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "benchmarks"))

from rates import fit, fit_pairs  # noqa: E402

PAPER = 12_100_000, 10_000_000_000
"""Documents and tokens of the input."""


@pytest.fixture
def rates() -> Rates:
    return settings_of(Rates, read_yaml(REPO / "benchmarks/rates.yaml"), [], where="rates.yaml")


def _paper(*overrides: str) -> Config:
    return load_config(REPO / "configs/paper-3b-200b.yaml", list(overrides))


def _table(config: Config, rates: Rates, corpus: Corpus | None = None) -> dict[str, dict[str, str]]:
    rows = plan_costs(config, corpus or corpus_of_size(config, *PAPER, rates), rates)
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows}


def test_the_papers_first_scale_takes_what_the_docs_say(rates: Rates) -> None:
    table = _table(_paper(), rates)
    # 2 x 440,467,456 x 10 B tokens, of held-out documents too, at 0.4 x 989e12 a second.
    assert (table["embed"]["FLOPs"], table["embed"]["GPU-hours"]) == ("8.8e+18", "6.2")
    assert table["embed"]["dollars"] == "$15.46"  # 2.50 a GPU-hour
    assert table["pair"]["core-hours"] == "1.2"
    for arm in ("pretrain-repetition", "pretrain-sbp"):
        assert (table[arm]["tokens"], table[arm]["FLOPs"]) == ("200 B", "3.7e+21")
        assert table[arm]["GPU-hours"] == "2,582.4"
        assert table[arm]["wall time"] == "40h20m"  # on 64 of them
    elastic = _table(_paper("pretrain.resources.min_workers=8"), rates)
    assert elastic["pretrain-sbp"] == table["pretrain-sbp"]  # which are there most of the time
    # 79.92 B tokens, 8 samples for each document but a thousandth, which is held out, at 12,500 a second.
    assert (table["synthesize"]["tokens"], table["synthesize"]["GPU-hours"]) == ("79.9 B", "1,776.0")
    # 50 pairs of each of 12,087,900 documents at most, of 2 x 826.4 tokens and three marks.
    assert (table["tune"]["documents"], table["tune"]["tokens"]) == ("≤604 M", "≤1.0 T")


def test_what_was_not_measured_is_not_priced(rates: Rates) -> None:
    table = _table(_paper(), rates)
    assert table["ingest"]["dollars"] == table["eval"]["dollars"] == "not measured"
    assert table["ingest"]["wall time"] == ""


def test_what_trials_took_goes_before_arithmetic(rates: Rates) -> None:
    """8.8e18 operations at 2e-15 s each on 64 GPUs, which are paid for as well while they start, for 100 s."""
    measured = {"embed": Trial(start_s=100, device_s=2e-15), "eval": Trial(start_s=50, device_s=0)}
    table = _table(_paper(), rates.model_copy(update={"trials": measured}))
    flops = 2.0 * 440_467_456 * 1e10
    assert table["embed"]["wall time"] == duration(100 + flops * 2e-15 / 64)
    assert table["embed"]["GPU-hours"] == f"{(flops * 2e-15 + 6400) / 3600:.1f}"
    assert table["eval"]["wall time"] == "50s"
    assert table["pair"] == _table(_paper(), rates)["pair"]


@pytest.mark.parametrize(
    ("points", "start_s", "device_s"),
    [
        ([(10.0, 25.0), (30.0, 65.0)], 5.0, 2.0),
        ([(10.0, 20.0), (10.0, 40.0)], 0.0, 3.0),  # of one size: all counts as work
        ([(10.0, 15.0), (20.0, 40.0)], 0.0, 1.9),  # a line through zero: (10 * 15 + 20 * 40) / (100 + 400)
        ([(10.0, 30.0), (20.0, 20.0)], 25.0, 0.0),  # noise: more work took less
    ],
)
def test_trials_tell_the_start_from_the_work(
    points: list[tuple[float, float]], start_s: float, device_s: float
) -> None:
    assert fit(points) == {"start_s": start_s, "device_s": device_s}


def test_prices_come_from_the_settings(rates: Rates) -> None:
    table = _table(_paper("cluster.dollars_per_gpu_hour=5"), rates)
    assert table["embed"]["dollars"] == "$30.93"


def test_what_cannot_fit_is_refused(rates: Rates) -> None:
    with pytest.raises(SbpError, match=r"^embed.resources wants 64 GPUs, and cluster.most has 32: lower"):
        _table(_paper("cluster.most={GPU: 32}"), rates)


def test_an_embedder_of_unknown_size_is_one_line(rates: Rates) -> None:
    with pytest.raises(SbpError, match=r"embed.model=a/b: its size is not in the rates: add it"):
        _table(_paper("embed.model=a/b"), rates)


# Beside a run of the demo: what its manifests say

CORPUS = {"documents": 1773, "tokens": 127_135, "train": {"documents": 800, "tokens": 56_857}}
LISTED = {"0.55": 1266, "0.60": 748, "0.65": 762, "0.70": 774, "0.75": 570, "0.80": 302, "0.85": 64, "0.90": 12}
NEIGHBORS = {"train": {"histogram_all": LISTED}}


def _demo(*overrides: str) -> Config:
    return load_config(REPO / "configs/demo.yaml", list(overrides))


def _planned(rates: Rates, *overrides: str, **finished: Any) -> dict[str, dict[str, str]]:
    config = _demo(*overrides)
    return _table(config, rates, finished_corpus(config, finished, rates))


def test_beside_its_run_the_plan_of_the_demo_is_right_to_a_tenth(rates: Rates) -> None:
    table = _planned(rates, corpus=CORPUS, neighbors=NEIGHBORS, pairs={"train": {"pairs": 2484}, "pairs": 4444})
    # Of 2,484 train pairs 0.6 are read: 1,490, of 2 x 71.07 tokens and three marks. The run packed 1,457, with 207,970
    # tokens.
    assert (table["tune"]["documents"], table["tune"]["tokens"]) == ("1.5 k", "216 k")
    # 8 samples of 800 documents, as the run wrote, of 71.07 tokens; they had 442,913 together.
    assert (table["synthesize"]["documents"], table["synthesize"]["tokens"]) == ("6.4 k", "455 k")
    # 2 x 10,795,392 x 127,135; the run counted 2.5e12, of its embedder's own tokens.
    assert (table["embed"]["documents"], table["embed"]["FLOPs"]) == ("1.8 k", "2.7e+12")
    assert table["pretrain-repetition"]["documents"] == table["pretrain-sbp"]["documents"] == "800"
    assert not any(cell.startswith("≤") for row in table.values() for cell in row.values())


def test_as_long_as_the_pairs_are_not_known_the_plan_has_limits(rates: Rates) -> None:
    listed = _planned(rates, corpus=CORPUS, neighbors=NEIGHBORS)
    # 2,484 entries of the lists are at 0.65 or above: 4,968 pairs at most, and 0.6 of these are read.
    assert (listed["tune"]["documents"], listed["tune"]["tokens"]) == ("≤3.0 k", "≤433 k")
    unknown = _planned(rates, corpus=CORPUS)
    # 800 documents, each in 20 entries of its own, which count both ways: 32,000.
    assert (unknown["tune"]["documents"], unknown["tune"]["tokens"]) == ("≤19.2 k", "≤2.8 M")
    assert unknown["tune"]["FLOPs"].startswith("≤") and unknown["tune"]["wall time"].startswith("≤")
    assert unknown["all, one after another"]["wall time"].startswith("≤")
    assert unknown["synthesize"] == listed["synthesize"]
    assert not unknown["pretrain-sbp"]["wall time"].startswith("≤")


def test_bins_that_the_band_cuts_count_whole(rates: Rates) -> None:
    band = ("pair.min_cosine=0.71", "pair.max_cosine=0.82", "tune.num_epochs=1")
    table = _planned(rates, *band, corpus=CORPUS, neighbors=NEIGHBORS)
    assert table["tune"]["documents"] == "≤3.3 k"  # 2 x (774 + 570 + 302) = 3,292


@pytest.mark.parametrize(
    ("settings", "documents", "pairs"),
    [
        (("neighbors.num_neighbors=20",), 800, 32_000),  # 40 of each
        (("neighbors.num_neighbors=200",), 800, 40_000),  # 50 as d1, and as d2
        (("neighbors.num_neighbors=200", "pair.max_as_d2=7"), 800, 5_600),
        (("neighbors.num_neighbors=20",), 3, 12),  # two others, both ways
        ((), 1, 0),
    ],
)
def test_there_are_no_more_pairs_than_lists_and_caps_allow(
    settings: tuple[str, ...], documents: int, pairs: int
) -> None:
    assert most_pairs(_demo(*settings), documents) == pairs


@pytest.mark.parametrize(
    ("found", "documents", "pairs"),
    [
        ([(200, 150), (400, 600)], 800, 2400),  # four times as many of twice the documents
        ([(400, 600), (200, 150)], 800, 2400),
        ([(200, 150), (200, 170)], 800, 640),  # of one size: in proportion to their mean
        ([(200, 150), (400, 600)], 80_000, 3_200_000),  # 40 of each, which lists of 20 allow, and not six million
        ([(200, 0), (400, 0)], 800, 0),
    ],
)
def test_trials_tell_how_many_pairs_to_expect(
    rates: Rates, found: list[tuple[float, float]], documents: int, pairs: int
) -> None:
    expected = PairTrial(**fit_pairs(found))
    tried = rates.model_copy(update={"pairs": expected})
    assert expect_pairs(_demo(), documents, tried) == (pytest.approx(pairs, rel=1e-3), False)
    assert not corpus_of_size(_demo(), documents, 70 * documents, tried).has_fewer_pairs


def test_of_an_input_the_settings_say_what_is_held_out_and_how_much_is_kept(rates: Rates) -> None:
    """7,500 documents of 70 tokens: 7 and 5 % are held out, 900, and of the rest 800 are kept."""
    corpus = corpus_of_size(_demo(), 7500, 525_000, rates)
    assert corpus == pytest.approx((1700, 119_000, 800, 56_000, 32_000, True))
    assert corpus_of_size(_demo("ingest.max_train_documents=9000"), 7500, 525_000, rates)[:4] == pytest.approx(
        (7500, 525_000, 6600, 462_000)
    )


def test_more_passes_read_more_tokens_of_the_same_pairs_and_long_pairs_are_cut_off(rates: Rates) -> None:
    pairs = {"train": {"pairs": 1000}}
    twice = _planned(rates, "tune.num_epochs=2", corpus=CORPUS, pairs=pairs)["tune"]
    assert (twice["documents"], twice["tokens"]) == ("1 k", "290 k")  # 2 x 1,000 x 145.14
    short = _planned(rates, "tune.num_epochs=1", "tune.max_pair_len=100", corpus=CORPUS, pairs=pairs)["tune"]
    assert short["tokens"] == "100 k"


def test_no_more_documents_are_d1_than_there_are(rates: Rates) -> None:
    assert _planned(rates, "synthesize.num_documents=9000", corpus=CORPUS)["synthesize"]["documents"] == "6.4 k"
    assert _planned(rates, "synthesize.num_documents=100", corpus=CORPUS)["synthesize"]["documents"] == "800"
