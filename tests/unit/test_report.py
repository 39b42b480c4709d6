"""The page and the summary of a run, from results of invented numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from invented_panel import beside_d1, interval, limits, synthetic_column, text_column

from sbp_ray.config import EvalConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.found_elsewhere import read_found_elsewhere
from sbp_ray.evaluation.text_quality.samples import KINDS
from sbp_ray.report.headline import answer, render_summary
from sbp_ray.report.page import render_page
from sbp_ray.report.panel_page import table_row
from sbp_ray.report.wording import scale_sentence, scale_warning, scaled, signed

NUM_PLOTS = 3 + 1 + 5 + 3
"""Of trainings, of gains, of the panel, of the pairs."""


def measure(loss: float, gain: float | None = None, groups: int = 12) -> dict[str, Any]:
    """Of one seed."""
    over = None
    if gain is not None:
        over = {**interval(gain), "unit": "groups", "units": groups}
        over = over if groups >= 10 else {name: over[name] for name in ("value", "unit", "units")}
    found = {"by_seed": {"0": loss}, "mean": loss, "interval": None, "gain": gain, "over_seeds": None}
    return {**found, "over_groups": over, "share_of_oracle": None, "control": None, "at_same_share": []}


def arms(gain: float = -0.02, groups: int = 12) -> list[dict[str, Any]]:
    """Repetition and sbp; on answers from articles that it read sbp gains, on the others it does not."""
    sizes = {"held_out": gain, "answers_read": 0.05, "answers_held_out": 0.0}
    found = []
    for name in ("repetition", "sbp"):
        is_sbp = name == "sbp"
        row: dict[str, Any] = {"name": name, "arm": name, "like": name, "says": "how", "round": 1, "seeds": [0]}
        row |= {"is_comparable": True, "corpus": "corpus-0", "ends": None}
        row |= {"members": 0, "tuning": None}
        row |= {"tokens": 1_000_000, "parameters": 1_312_128, "cost": None, "own_cost": None}
        row["share"] = 0.125 if name == "sbp" else None
        row["mixture"] = {"real": {"passes": 2.25}} | ({"synthetic": {"passes": 1.0}} if name == "sbp" else {})
        row["measures"] = {
            f"{text_set}_nats_per_{unit}": measure(loss - size * is_sbp, size if is_sbp else None, groups)
            for text_set, size in sizes.items()
            for unit, loss in (("token", 6.0), ("byte", 1.5))
        }
        found.append(row)
    return found


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
        "containment": 0.92, "content_overlap": 0.4, "d1": "<b>bold & bad</b>", "d2": "other",
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


def facts() -> dict[str, Any]:
    """Of a world of three entities: one class of tokens, and what the synthetic text states."""
    share = {"value": 0.2, "unit": "groups", "units": 3}
    losses = {"repetition": measure(2.5), "sbp": measure(2.25, 0.25)}
    return {
        "entities": 3,
        "facts": [1, 9, 0, 2],
        "sizes": {"value_1_nats_per_value": 9},
        "arms": [{"name": name, "measures": {"value_1_nats_per_value": loss}} for name, loss in losses.items()],
        "texts": [{"name": "sbp", "documents": 4, "statements": 20, "shares": {"nobody": share}}],
    }


def report(gain: float = -0.02, groups: int = 12) -> dict[str, Any]:
    """What a run's `report.json` holds."""
    curve = [{"step": 1, "tokens": 100, "loss_nats": 8.0}, {"step": 2, "tokens": 200, "loss_nats": 7.0}]
    curve[1]["validation_nats"] = 7.1
    made_by = {"command": "python jobs/ingest.py", "commit": "4567def", "version": "0.1", "hardware": "1"}
    real = {"real_train": text_column(), "real_held_out": text_column(duplicates=None)}
    columns = {**real, "mined": {"documents": 3, "d1": beside_d1()}}
    synthetic = synthetic_column()
    return {
        "run_dir": "runs/demo",
        "seeds": [0],
        "scale": {"documents": 1882, "tokens": 393_867, "synthetic_documents": 443},
        "texts": {
            name: {"units": 10, "groups": groups, "tokens": 100, "bytes": 400}
            for name in ("held_out", "answers_read", "answers_held_out")
        },
        "min_groups": 10,
        "unknown_questions": 0,
        "arms": arms(gain, groups),
        "equal_cost": [],
        "effective_data": None,
        "curves": [{"name": name, "seed": 0, "points": curve} for name in ("repetition", "sbp")],
        "benchmarks": None,
        "judge": None,
        "synthesizers": [
            {"synthesizer": "s-1", "for": ["sbp"], "points": curve, "pairs": 9, "nll_given_d1": 5.0,
             "nll_given_random": 5.2, "nll_alone": 5.1, "saved_over_random": interval(0.2),
             "saved_over_nothing": {"value": 0.1, "unit": "groups", "units": 3}}
        ],
        "synthetic": [
            {"synthetic": "t-1", "for": ["sbp"], "samples": 500, "documents": 443, "tokens": 90_000,
             "drops": {"looping": 57}, "real_text": {"documents": 100, "drops": {"looping": 2}}}
        ],
        "facts": facts(),
        "quality": {
            **limits(),
            "table": [
                table_row("sbp", "synthetic", [synthetic]),
                *(table_row(name, KINDS[name], [column]) for name, column in columns.items()),
            ],
            "real": columns,
            "syntheses": [{"synthetic": "t-1", "name": "sbp", "for": ["sbp"], **synthetic}],
        },
        "corpora": [
            {"corpus": "corpus-1", "files": {"read": 3, "skipped": {".csv": 2}, "damaged": 1, "bytes_unread": 7},
             "rows": 2100, "for": ["sbp"],
             "splits": [{"split": "train", "documents": 1882, "groups": 48, "characters": 123_456, "tokens": 30_000}],
             "scripts": [("latin", 0.75), ("thai", 0.25)], "lengths": [(256, 0.4), (1024, 0.6)],
             "drops": [{"reason": "exact_duplicate", "documents": 3, "examples": ["A <b>river</b> is"]},
                       {"reason": "no_text", "documents": 2, "examples": ["in/a.jsonl:7", "in/a.jsonl:9"]}]}
        ],
        "mining": [{"pairs": "p-1", "for": ["sbp"], "num_pairs": 5462, "same_group_share": 0.977, **mining()}],
        "decontamination": [],
        "artifacts": [
            {"artifact": "corpus-1", "stage": "ingest", "is_done": True, "wall_s": 30.7, "peak_mem_gib": 2.0,
             "counts": {"documents": 1882}, "drops": {"exact_duplicate": 3}, "made_by": made_by}
        ],
        "found_elsewhere": None,
        "made_by": {"command": "python jobs/eval.py", "commit": "0123abc", "version": "0.1", "hardware": "2 cores"},
        "settings": {"run_dir": "runs/demo"},
    }  # fmt: skip


def empty_report() -> dict[str, Any]:
    """A run with no question file, nothing held out, no synthetic documents and no manifests."""
    found = report()
    found |= {
        "texts": {},
        "mining": [],
        "corpora": [],
        "synthesizers": [],
        "synthetic": [],
        "quality": None,
        "facts": None,
    }
    found["curves"] = [{"name": name, "seed": 0, "points": []} for name in ("repetition", "sbp")]
    for arm in found["arms"]:
        arm |= {"measures": {}, "mixture": None}
    found["scale"] = dict.fromkeys(found["scale"])
    found["artifacts"][0] |= {"is_done": False, "wall_s": None, "peak_mem_gib": None, "counts": {}, "drops": {}}
    found["artifacts"][0]["made_by"] = None
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
    found["mining"][0]["recall"] = None
    assert "Recall of the lists of neighbours: not measured." in render_page(found)


def test_the_page_says_what_the_corpus_holds_and_what_was_dropped() -> None:
    page = render_page(report())
    assert "2,100 rows were read from 3 files, of which 1 could not be read to the end. Not read: 2 .csv." in page
    assert "<tr><th>train</th><td>1,882</td><td>48</td><td>123,456</td><td>30,000</td></tr>" in page
    assert "<tr><th>Thai</th><td>25.0 %</td></tr>" in page
    assert "<tr><th>1,024</th><td>60.0 %</td></tr>" in page
    assert '<th>no text</th><td>2</td><td class="words"><ul><li>in/a.jsonl:7</li><li>in/a.jsonl:9</li></ul>' in page
    assert "A &lt;b&gt;river&lt;/b&gt; is" in page


def test_a_run_without_neighbours_has_no_plots_of_them() -> None:
    found = report()
    found["mining"][0] |= {"bands": [], "thresholds": [], "samples": []}
    assert render_page(found).count("<svg") == NUM_PLOTS - 3


def test_what_an_experiment_with_controls_found_stands_beside_the_answer_as_text() -> None:
    found = report()
    found["found_elsewhere"] = {"file": "data/answer.txt", "says": ["sbp lost <b>by far</b>.", "It costs more."]}
    page, summary = render_page(found), render_summary(found)
    assert "data/answer.txt" in page and "sbp lost &lt;b&gt;by far&lt;/b&gt;. It costs more." in page
    said = "With controls, in another experiment on this corpus (data/answer.txt):\nsbp lost <b>by far</b>.\nIt costs"
    assert said in summary
    assert "With controls" not in full_page() and "With controls" not in render_summary(report())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b" \n\n", "holds nothing: name the answer.txt"),
        (b"\xff\xfe", "cannot be read"),
        (b"x" * 20_000, "holds more than 10,000 bytes"),
    ],
)
def test_a_file_that_is_no_answer_is_refused_in_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "answer.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SbpError, match=re.escape(said)) as error:
        read_found_elsewhere(EvalConfig(found_elsewhere=str(path)))
    assert "\n" not in str(error.value)


def test_what_was_not_measured_says_so() -> None:
    page, summary = empty_page(), render_summary(empty_report())
    for text in ("Held-out documents: ", "Answers, articles it read: ", "What d1 is worth to a synthesizer: "):
        text += "not measured."
        assert text in page and text in summary
    assert "Mined pairs:</strong> not measured" in page
    assert "Quality of synthetic text:</strong> not measured" in page
    assert "not measured" not in render_summary(report())


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
    found["quality"]["syntheses"][0]["shown"][0]["nearest_id"] = "0"
    assert "It is d1." in render_page(found)


def test_what_is_known_of_the_world_is_tabled_or_said_not_to_be_measured() -> None:
    page = full_page()
    assert "<th>value of a fact stated once (9)</th>" in page and "<td>2.500</td>" in page
    assert "<th>statements about nobody</th><td>20.0 %</td>" in page
    assert "Facts recalled: not measured." in empty_page()


def test_how_it_was_made_is_said() -> None:
    page = full_page()
    for text in ("python jobs/eval.py", "0123abc", "4567def", "2 cores"):
        assert text in page


def test_the_page_is_plotted_in_the_colours_of_its_theme() -> None:
    page = full_page()
    assert page.count("<svg") == NUM_PLOTS
    assert "var(--sbp)" in page and "#00000" not in page


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (-0.02, "sbp lost: −0.020 [−0.030, −0.010] nats a token of held-out text over repetition (over 12 groups)"),
        (0.02, "sbp gained +0.020 [+0.010, +0.030] nats a token"),
        (0.0, "sbp shows no difference: +0.000"),
    ],
)
def test_the_answer_of_one_seed_follows_the_interval_over_groups(gain: float, words: str) -> None:
    assert answer(report(gain))[0].startswith(words)


def test_a_run_of_two_arms_says_over_repetition_and_that_no_control_was_asked() -> None:
    found = report(0.02)
    assert answer(found) == [
        "sbp gained +0.020 [+0.010, +0.030] nats a token of held-out text over repetition (over 12 groups)."
    ]
    assert "Repetition is the only arm at equal budget: controls would tell" in render_page(found)


def test_few_groups_have_no_interval_and_a_sentence_that_says_so() -> None:
    found = report(0.02, groups=5)
    assert answer(found) == ["sbp: +0.020 (no interval) nats a token of held-out text over repetition."]
    page, summary = render_page(found), render_summary(found)
    said = "Too few groups (articles) for an interval over them: held-out documents (of 5), answers, articles it read"
    assert said in page and said in summary
    assert '<td>+0.020<span class="ci">too few groups</span></td>' in page
    assert "403.4        6.000" in summary and "5.980; +0.020 (no interval)" in summary


def test_a_text_of_few_groups_has_no_interval_in_the_panel() -> None:
    found = report()
    found["quality"]["table"][0]["measures"]["repetition"] = {"value": 0.02, "unit": "groups", "units": 4}
    assert "interval over them: sbp (of 4). Texts of one group depend" in render_page(found)
    assert "Too few groups" not in full_page()


def test_a_single_seed_says_what_its_intervals_leave_out() -> None:
    said = "One seed: intervals are over groups; no interval says how far another training would move a gain."
    assert said in full_page() and said in render_summary(report())


def test_drops_stand_beside_those_of_real_text() -> None:
    assert "<th>looping</th><td>57</td><td>11.4 %</td><td>2.0 %</td>" in full_page()


def test_a_small_run_is_told_what_it_cannot_show() -> None:
    warning = scale_warning(report())
    assert warning is not None
    assert "2,300 times the parameters and 200,000 times the tokens" in warning
    big = report()
    for arm in big["arms"]:
        arm |= {"parameters": 3e9, "tokens": 2e11}
    assert scale_warning(big) is None


def test_unequal_training_is_not_called_a_comparison() -> None:
    unequal = report()
    unequal["arms"][1] |= {"tokens": 900_000, "is_comparable": False}
    assert answer(unequal) == [
        "No arm trained on synthetic text as SBP does, on the same corpus and as many tokens as repetition."
    ]
    assert "sbp trained on 900 k tokens and repetition on 1 M" in render_summary(unequal)
    assert "900 k to 1 M training tokens for each arm" in scale_sentence(unequal)
    assert "1 M training tokens for each arm" in scale_sentence(report())


@pytest.mark.parametrize(("repetition", "sbp", "is_said"), [
    (["float32"], ["float32"], False),
    (["float32"], ["bfloat16"], True),
    (["bfloat16", "float32"], ["bfloat16", "float32"], True),  # two seeds on two machines
])  # fmt: skip
def test_arms_of_different_arithmetic_are_told_of(repetition: list[str], sbp: list[str], is_said: bool) -> None:
    found = report()
    for arm in found["arms"]:
        arm["dtypes"] = repetition if arm["name"] == "repetition" else sbp
    said = f"(repetition in {' and '.join(repetition)}, sbp in {' and '.join(sbp)})"
    assert (said in render_summary(found)) == is_said


def test_numbers_in_words() -> None:
    assert [scaled(n) for n in (443, 393_867, 1_312_128, 2e11, None)] == ["443", "394 k", "1.3 M", "200 B", "–"]
    assert signed(-0.5, 1) == "−0.5"
