"""The page and the table, from a report of invented numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from invented_panel import beside_d1, interval, panel, synthetic_column, text_column

from sbp_ray.report.page import render_page
from sbp_ray.report.summary import render_summary
from sbp_ray.report.words import answer, scale_sentence, scale_warning, scaled, signed


def comparison(difference: float) -> dict[str, Any]:
    arm = {"nats_per_token": 6.0, "nats_per_byte": 1.5, "perplexity": 403.4, "bits_per_byte": 2.16}
    return {
        "units": 10,
        "tokens": 100,
        "bytes": 400,
        "arms": {"repetition": arm, "sbp": arm},
        "difference": {"nats_per_token": interval(difference), "nats_per_byte": interval(difference / 4)},
    }


def mining() -> dict[str, Any]:
    band = {"band": "0.60", "listed": 50, "near_duplicate_jaccard": 3, "near_duplicate_containment": 1, "pairs": 90}
    row = {
        "min_cosine": 0.6,
        "listed": 50,
        "duplicate_share": 0.08,
        "documents_share": 0.7,
        "pairs": 92,
        "full_share": 0.1,
    }
    degree = {"mean": 2.5, "p50": 2, "p90": 6, "p99": 20, "max": 1234, "histogram": {"0": 5, "1": 9, "1024": 1}}
    pair = {
        "verdict": "near-duplicate: jaccard", "d1_id": "0", "d2_id": "1", "cosine": 0.61, "jaccard": 0.71,
        "containment": 0.92, "d1": "<b>bold & bad</b>", "d2": "other",
    }  # fmt: skip
    return {
        "documents": 1_000_000,
        "what_if_documents": 20_000,
        "bands": [band],
        "thresholds": [row, row | {"min_cosine": 0.65, "documents_share": 0.43}],
        "degrees": dict.fromkeys(("listed_by", "as_d2", "as_d1"), degree),
        "limits": {"min_cosine": 0.6, "max_cosine": 0.95, "max_jaccard": 0.6, "max_containment": 0.8},
        "recall": {"k": 20, "queries": 1000, "recall": 0.973, "low": 0.968, "high": 0.978, "min_recall": 0.95},
        "samples": [{"band": "0.60", "pairs": [pair]}],
    }


def report() -> dict[str, Any]:
    curve = [{"step": 1, "tokens": 100, "loss_nats": 8.0}, {"step": 2, "tokens": 200, "loss_nats": 7.0}]
    curve[1]["validation_nats"] = 7.1
    return {
        "scale": {
            "parameters": 1_312_128,
            "documents": 1882,
            "tokens": 393_867,
            "synthetic_documents": 443,
            "trained_tokens": {"repetition": 1_000_000, "sbp": 1_000_000, "synthesizer": 300_000},
            "mixture": {
                "repetition": {"real": {"passes": 2.5}},
                "sbp": {"real": {"passes": 2.2}, "synthetic": {"passes": 1.0, "share": 0.125}},
            },
        },
        "held_out": comparison(0.02),
        "questions": {"not_in_corpus": 0, "splits": {"train": comparison(-0.05), "validation": comparison(0.0)}},
        "pairs": {
            "pairs": 5462,
            "same_group_share": 0.977,
            "conditional_gain": {"pairs": 9, "nll_given_d1": 5.0, "nll_given_random": 5.2, "nll_alone": 5.1},
        },
        "mining": mining(),
        "quality": panel(
            synthetic=synthetic_column(),
            real_train=text_column(),
            real_held_out=text_column(duplicates=None),
            mined={"documents": 3, "d1": beside_d1()},
        ),
        "curves": {"repetition": curve, "sbp": curve, "synthesizer": curve},
        "flow": [
            {
                "artifact": "1_corpus", "stage": "ingest", "wall_s": 30.7, "peak_mem_gib": 2.0, "stats": {},
                "counts": {"documents": 1882}, "drops": {"exact_duplicate": 3},
                "made_by": {"command": "python jobs/ingest.py", "commit": "4567def", "version": "0.1", "hardware": "1"},
            }
        ],
        "made_by": {"command": "python jobs/eval.py", "commit": "0123abc", "version": "0.1", "hardware": "2 cores"},
        "settings": {"run_dir": "runs/demo"},
    }  # fmt: skip


def empty_report() -> dict[str, Any]:
    """A run with no question file, nothing held out, no synthetic documents and no manifests."""
    found = report()
    found |= {"held_out": None, "questions": None, "mining": None}
    found["pairs"] = {"pairs": None, "same_group_share": None, "conditional_gain": None}
    found["quality"] = panel(synthetic=None, real_train=text_column(), real_held_out=None, mined=None)
    found["quality"]["relevance"] = {"threshold": None, "random_quantile": 0.95, "random": None}
    found["curves"] = {"repetition": [], "sbp": [], "synthesizer": []}
    found["scale"]["trained_tokens"] = {"repetition": None, "sbp": None, "synthesizer": None}
    found["scale"]["mixture"] = {"repetition": None, "sbp": None}
    found["flow"][0] |= {"wall_s": None, "peak_mem_gib": None, "counts": {}, "drops": {}, "made_by": None}
    return found


@cache
def full_page() -> str:
    return render_page(report())


@cache
def empty_page() -> str:
    return render_page(empty_report())


@pytest.mark.parametrize("make_page", [full_page, empty_page])
def test_the_page_needs_nothing_but_itself(make_page: Callable[[], str]) -> None:
    page = make_page()
    assert not re.search(r"https?://|<script|<link|<iframe|@import|<[^>]*\ssrc=", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_no_two_parts_of_the_page_share_an_id() -> None:
    ids = re.findall(r'\bid="([^"]*)"', full_page())
    assert len(ids) == len(set(ids))


def test_documents_are_text_and_never_markup() -> None:
    page = full_page()
    assert "&lt;img src=x onerror=alert(1)&gt;" in page and "<img" not in page
    assert "{{ 7 * 7 }}" in page
    assert "A &amp; B" in page


def test_the_thresholds_are_shown_with_what_each_gives() -> None:
    page = full_page()
    assert "hold 97.3 % [96.8, 97.8] of the true 20 nearest" in page
    assert "The run asks for 95.0 % or more" in page
    assert re.search(r'class="chosen"><th>0.60</th><td>70.0 %</td><td>92</td><td>8.0 %</td><td>10.0 %</td>', page)
    assert page.count('class="chosen"') == 1
    assert "estimated from 20,000 documents" in page
    assert "min_cosine 0.6<" in page and "max_cosine 0.95<" in page  # lines of the plots
    assert "<td>1,234</td>" in page
    assert "Near-duplicate: jaccard" in page and "&lt;b&gt;bold &amp; bad&lt;/b&gt;" in page


def test_an_unmeasured_recall_says_so() -> None:
    found = report()
    found["mining"]["recall"] = None
    assert "Recall of the lists of neighbours: not measured." in render_page(found)


def test_a_run_without_neighbours_has_no_plots_of_them() -> None:
    found = report()
    found["mining"] |= {"bands": [], "thresholds": [], "samples": []}
    assert render_page(found).count("<svg") == 8


def test_what_was_not_measured_says_so() -> None:
    page, table = empty_page(), render_summary(empty_report())
    assert "Closed-book answers:</strong> not measured" in page
    assert "Held-out perplexity:</strong> not measured" in page
    assert "Neighbours and thresholds:</strong> not measured" in page
    assert table.count("not measured") == 3  # held-out text, answers, conditional gain
    assert "not measured" not in full_page() + render_summary(report())


def test_the_panel_stands_beside_the_papers_figures_which_are_marked() -> None:
    page = full_page()
    assert re.search(r"<th>Repetition inside a document</th>(<td>2.0 %.*?</td>){3}<td>–</td>", page)
    assert '<td class="theirs">2.6–4.3 %<span class="ci">(real 1.8 %)</span></td>' in page
    assert re.search(r"<th>Near</th><td>10.0 %</td><td>10.0 %</td><td>–</td>", page)  # held-out text has no such sample
    assert "<td>1,234</td>" in page
    assert 'Copies of any document</th><td>5.0 %<span class="ci">[4.0, 6.0]</span>' in page


def test_a_sample_stands_beside_its_d1_and_the_nearest_real_document() -> None:
    page = full_page()
    assert "near &amp; dear" in page
    assert "cosine to d1 0.43, taken from d1 12.5 %" in page
    assert "It is d1." not in page
    found = report()
    found["quality"]["texts"]["synthetic"]["shown"][0]["nearest_id"] = "0"
    assert "It is d1." in render_page(found)


def test_how_it_was_made_is_said() -> None:
    page = full_page()
    for text in ("python jobs/eval.py", "0123abc", "4567def", "2 cores"):
        assert text in page


def test_the_page_is_plotted_in_the_colours_of_its_theme() -> None:
    page = full_page()
    assert page.count("<svg") == 11
    assert "var(--sbp)" in page and "#00000" not in page


@pytest.mark.parametrize(
    ("difference", "words"), [(0.02, "worse than repetition"), (-0.02, "better than"), (0.0, "as far as this run can")]
)
def test_the_answer_follows_the_interval(difference: float, words: str) -> None:
    assert words in answer(report() | {"held_out": comparison(difference)})


def test_a_small_run_is_told_what_it_cannot_show() -> None:
    warning = scale_warning(report())
    assert warning is not None
    assert "2,300 times the parameters and 200,000 times the tokens" in warning
    big = report()
    big["scale"] |= {"parameters": 3e9, "trained_tokens": {"sbp": 2e11, "repetition": 2e11}}
    assert scale_warning(big) is None


def test_unequal_training_is_not_called_a_comparison() -> None:
    unequal = report()
    unequal["scale"]["trained_tokens"]["sbp"] = 900_000
    assert "cannot be compared" in scale_sentence(unequal)
    assert "1 M training tokens for each arm" in scale_sentence(report())


def test_numbers_in_words() -> None:
    assert [scaled(n) for n in (443, 393_867, 1_312_128, 2e11, None)] == ["443", "394 k", "1.3 M", "200 B", "–"]
    assert signed(-0.5, 1) == "−0.5"
