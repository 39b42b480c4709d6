"""From scores and manifests to the table, with values worked out by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from invented_panel import interval, limits, synthetic_column, text_column
from small_experiment import small_experiment

from sbp_ray.artifacts import MANIFEST, STARTED
from sbp_ray.evaluation.likelihood.arm_losses import arm_rows, equal_cost_rows, losses_of, measure_arms
from sbp_ray.evaluation.likelihood.checkpoints import Scores
from sbp_ray.evaluation.likelihood.effective_data import DataLaw, effective_data, fit_data_law
from sbp_ray.evaluation.likelihood.scored_texts import Texts, TextSet
from sbp_ray.evaluation.study import Study
from sbp_ray.evaluation.text_quality.samples import KINDS
from sbp_ray.experiment.attempts import append_attempt, lost_hours
from sbp_ray.experiment.costs import Cost, costs_of
from sbp_ray.experiment.grid import Grid, plan_grid
from sbp_ray.experiment.publish import study_of
from sbp_ray.experiment.settings import ExperimentConfig
from sbp_ray.report.headline import answer, remarks, render_summary, times_words
from sbp_ray.report.page import render_page
from sbp_ray.report.panel_page import table_row

# Twenty held-out documents of 10 and 30 tokens, each of its own group, and one question of 5 bytes.
LOSSES = {  # nats a token of both documents, for the seeds 0, 1 and 2
    "repetition": (3.0, 3.1, 3.2),
    "sbp 2 %": (2.9, 3.0, 3.1),
    "oracle": (2.5, 2.6, 2.7),
    "longer": (2.95, 3.05, 3.15),
}
OVER_3 = {"unit": "seeds", "units": 3}
ARMS: dict[str, Any] = {
    "repetition": {},
    "sbp": {},
    "oracle": {},
    "longer": {"like": "repetition", "overrides": ["pretrain.total_tokens=2_500_000"]},
}


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentConfig:
    return small_experiment(tmp_path, arms=ARMS, seeds=[0, 1, 2], shares=[0.02], dollars_per_hour=8)


@pytest.fixture
def grid(experiment: ExperimentConfig) -> Grid:
    """Every artifact finished: an hour each, trainings of 100 parameters."""
    grid = plan_grid(experiment)
    for node in grid.nodes.values():
        stats: dict[str, Any] = {
            "ingest": {"documents": 100, "drops": {"contaminated": 3}},
            "embed": {"flops": 7000},
            "pretrain": {"parameters": 100, "positions": 1000 if "longer" not in grid.users()[node.key] else 4000}
            | {"mixture": {"synthetic": {"passes": 0.25}}},
            "tune": {"positions": 500, "validation": {"pairs": 0}},
            "synthesize": {"prompt_tokens": 60, "tokens_generated": 40, "samples": 9, "documents": 8, "tokens": 7}
            | {"drops": {"too_short": 1}},
        }.get(node.stage.job, {})
        node.artifact.write_json(STARTED, {"fingerprint": node.fingerprint})
        node.artifact.write_json(MANIFEST, {"stats": stats, "wall_s": 3600})
        if node.stage.job == "ingest":
            node.artifact.write_table("validation/part-00000.parquet", pa.table({"group": ["a", "b"]}))
    return grid


@pytest.fixture
def rows(experiment: ExperimentConfig, grid: Grid) -> list[dict[str, Any]]:
    one = np.array([5])
    groups = [str(group) for group in range(20)]
    texts = Texts(
        {
            "held_out": TextSet([], np.array([10, 30] * 10), np.array([50, 150] * 10), groups),
            "answers_read": TextSet([], one, one, ["0"]),
        }
    )
    scores = {
        training.model.key: Scores(
            {
                "held_out": np.array([10.0, 30.0] * 10) * LOSSES[training.name][training.seed],
                "answers_read": one * LOSSES[training.name][training.seed],
            },
            100,
        )
        for training in grid.trainings
    }
    costs = costs_of(grid.nodes.values(), room={"CPU": 4}, dollars_per_hour=8, lost_hours={})
    return arm_rows(study_of(experiment, grid, grid.trainings, costs), scores, texts)


def measure(rows: list[dict[str, Any]], name: str, what: str = "held_out_nats_per_token") -> dict[str, Any]:
    return next(row for row in rows if row["name"] == name)["measures"][what]


def test_losses_are_means_over_seeds_and_gains_are_paired_by_seed(rows) -> None:
    found = measure(rows, "sbp 2 %")
    assert found["mean"] == pytest.approx(3.0)
    assert found["interval"]["low"] == pytest.approx(3.0 - 0.2484138)  # t(0.975; 2) 0.1 / sqrt(3)
    same = {"value": pytest.approx(0.1), "low": pytest.approx(0.1), "high": pytest.approx(0.1)}
    assert found["over_seeds"] == {**same, "unit": "seeds", "units": 3}  # the same with each seed
    assert found["over_groups"] == {**same, "unit": "groups", "units": 20}
    of_answers = measure(rows, "sbp 2 %", "answers_read_nats_per_byte")
    assert of_answers["over_groups"] == {"value": pytest.approx(0.1), "unit": "groups", "units": 1}
    assert measure(rows, "repetition")["gain"] is None
    assert measure(rows, "sbp 2 %", "held_out_nats_per_byte")["mean"] == pytest.approx(3.0 * 400 / 2000)
    assert measure(rows, "sbp 2 %", "answers_read_nats_per_byte")["mean"] == pytest.approx(3.0)


def test_the_share_of_the_oracles_gain(rows) -> None:
    """0.1 of 0.5 with each seed."""
    assert measure(rows, "sbp 2 %")["share_of_oracle"] == pytest.approx({"value": 0.2, "low": 0.2, "high": 0.2})
    assert measure(rows, "oracle")["share_of_oracle"] is None


def test_an_arm_is_charged_for_all_that_it_was_made_from(rows) -> None:
    cost = {row["name"]: row["cost"] for row in rows}
    train = 6 * 100 * 1000
    assert cost["repetition"]["flops"] == train
    # base LM, embedding, tuning 6 x 100 x 500, joint LM, and a quarter of reading and writing 2 x 100 x 100
    assert cost["sbp 2 %"]["flops"] == train + 7000 + 300_000 + 5_000 + train
    # corpus, embeddings, neighbors, pairs, base_lm, synthesizer, lm, and a quarter of synthetic
    assert cost["sbp 2 %"]["hours"] == 7.25
    # Of 4 CPUs the four stages of data and the tuning hold one each, both trainings two, the engine and its writer 2.5.
    assert cost["sbp 2 %"]["dollars"] == pytest.approx(8 * (5 * 1 + 2 * 2 + 0.25 * 2.5) / 4)
    assert cost["sbp 2 %"]["gpu_hours"] == 0
    assert cost["oracle"]["hours"] == 3  # its corpus takes the tokenizer of the base's
    own = {row["name"]: row["own_cost"]["flops"] for row in rows}
    assert own["sbp 2 %"] == train


def test_at_equal_cost_the_cheapest_repetition_that_costs_as_much_counts(rows) -> None:
    [row] = equal_cost_rows(rows)
    assert (row["name"], row["against"]["name"]) == ("sbp 2 %", "longer")  # 2.4 M against 1.512 M FLOPs
    assert row["against"]["gain"] == pytest.approx(0.05)
    assert (row["within"]["name"], row["within"]["gain"]) == ("repetition", pytest.approx(0.1))  # 0.6 M FLOPs
    [alone] = equal_cost_rows([row for row in rows if row["name"] != "longer"])
    assert alone["against"] is None
    assert alone["times_repetition"] == pytest.approx(1_512_000 / 600_000)


def test_an_arm_that_costs_less_than_repetition_has_none_within_its_cost(rows, results) -> None:
    base, sbp, *_ = rows
    [row] = equal_cost_rows([base, {**sbp, "cost": {"flops": 0.9 * base["cost"]["flops"]}}])
    assert (row["against"]["name"], row["within"]) == ("repetition", None)
    results |= {"equal_cost": [row]}
    assert any(
        line.endswith(" (over 3 seeds). No arm that repeats the text costs as little.") for line in remarks(results)
    )
    assert "<td>no arm costs as little</td>" in render_page(results)


def test_the_best_of_what_repeats_the_text_for_no_more_counts_too(rows) -> None:
    """Not the oracle, nor repetition of another corpus, which have other text; and nothing that costs more."""
    base, sbp, oracle, longer = rows
    twice = {
        **longer,
        "name": "twice",
        "corpus": oracle["corpus"],
        "measures": oracle["measures"],
        "cost": base["cost"],
    }
    regularised = {**base, "name": "regularised", "like": "regularised", "measures": longer["measures"]}
    [row] = equal_cost_rows([base, sbp, oracle, longer, regularised, twice])
    assert (row["against"]["name"], row["within"]["name"]) == ("longer", "regularised")
    assert row["within"]["gain"] == pytest.approx(0.05)


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3, 4) + Cost(10, 20, 30, 40) == Cost(11, 22, 33, 44)
    assert Cost(1, 2, 3, 4).times(2) == Cost(2, 4, 6, 8)


def test_runs_that_did_not_finish_an_artifact_are_paid_for_and_so_is_each_gpu(tmp_path: Path) -> None:
    """1 h that finished it and 2.5 h before; on 2 of the 4 GPUs of a cluster that costs 8 dollars an hour."""
    resources = ("base.pretrain.resources.num_workers=2", "base.pretrain.resources.num_gpus=1")
    grid = plan_grid(small_experiment(tmp_path, "repetition", seeds=[0], overrides=resources))
    [key] = [key for key, node in grid.nodes.items() if node.stage.job == "pretrain"]
    stats = {"parameters": 100, "positions": 1000}
    grid.nodes[key].artifact.write_json(MANIFEST, {"stats": stats, "wall_s": 3600})
    append_attempt(tmp_path, artifact=key, seconds=7200, status=1)
    append_attempt(tmp_path, artifact="another", seconds=7200, status=1)
    append_attempt(tmp_path, artifact=key, seconds=1800, status=130)
    append_attempt(tmp_path, artifact=key, seconds=3700, status=0)
    room = {"CPU": 8, "GPU": 4}
    [cost] = costs_of([grid.nodes[key]], room=room, dollars_per_hour=8, lost_hours=lost_hours(tmp_path)).values()
    assert (cost.hours, cost.gpu_hours, cost.dollars) == (3.5, 7.0, 3.5 * 8 * 2 / 4)


def quality() -> dict[str, Any]:
    """Text of sbp with two seeds, and of a control that the same d1 was given."""
    columns = [synthetic_column("first"), synthetic_column("second", repetition=interval(0.06))]
    control = synthetic_column("of the control")
    control["shown"].insert(0, control["shown"][0] | {"doc_id": "s9", "d2": "only the control kept this"})
    rows = [table_row("sbp", "synthetic", columns), table_row("random_pairs", "synthetic", [control])]
    real = {"real_train": text_column(), "real_held_out": None}
    names = ["sbp", "sbp", "longer"]
    return {
        **limits(),
        "table": [*rows, *(table_row(name, KINDS[name], [column]) for name, column in real.items())],
        "real": real,
        "syntheses": [
            {"synthetic": f"s-{i}", "name": name, "for": ["sbp 2 %" if name == "sbp" else name], **column}
            for i, (name, column) in enumerate(zip(names, [*columns, control], strict=True))
        ],
    }


@pytest.fixture
def results(rows, experiment: ExperimentConfig) -> dict[str, Any]:
    points = [{"step": s, "tokens": 100 * s, "loss_nats": 4.0 / s, "validation_nats": 4.5 / s} for s in (1, 2)]
    gain = {"value": 0.2, "low": 0.1, "high": 0.3}
    return {
        "run_dir": "/data/<run>",
        "seeds": [0, 1, 2],
        "synthesizer_per_seed": True,
        "scale": {"documents": 90, "tokens": 9000, "synthetic_documents": 8},
        "texts": {
            "held_out": {"units": 20, "groups": 20, "tokens": 400, "bytes": 2000},
            "answers_read": {"units": 1, "groups": 1, "tokens": 5, "bytes": 5},
        },
        "min_groups": 10,
        "benchmarks": None,
        "judge": None,
        "arms": rows,
        "equal_cost": equal_cost_rows(rows),
        "effective_data": None,
        "curves": [{"name": name, "seed": seed, "points": points} for name in LOSSES for seed in (0, 1, 2)],
        "synthesizers": [
            {"synthesizer": "s-1", "for": ["sbp 2 %"], "points": points, "pairs": 4, "nll_given_d1": 3.0}
            | {"saved_over_random": gain, "saved_over_nothing": gain},
            {"synthesizer": "s-2", "for": ["longer"], "points": [], "pairs": 0},
        ],
        "synthetic": [
            {"for": ["sbp 2 %"], "samples": 9, "documents": 8, "tokens": 700, "drops": {"looping": 1}}
            | {"synthetic": "t-1", "real_text": None}
        ],
        "decontamination": [
            {"artifact": "corpus-1", "contaminated": 3, "held_out_groups": 5, "held_out_groups_in_train": 0}
            | {"documents": 77, "sharing_held_out_text": 1, "ngram_words": 13},
            {"artifact": "synthetic-1", "contaminated": 0}
            | {"documents": 8, "sharing_held_out_text": 0, "ngram_words": 13},
        ],
        "facts": None,
        "quality": quality(),
        "corpora": [],
        "mining": [],
        "unknown_questions": 2,
        "artifacts": [
            {"artifact": "a", "stage": "tune", "for": ["sbp"], "cost": None, "made_by": None, "is_done": False}
            | {"wall_s": None, "peak_mem_gib": None, "counts": {}, "drops": {}}
        ],
        "dead": [],
        "found_elsewhere": None,
        "made_by": {"command": "python jobs/experiment.py", "commit": None, "version": "0.1", "hardware": "2 cores"},
        "settings": experiment.model_dump(mode="json"),
    }


def test_the_answer_comes_first_with_its_interval_its_cost_and_the_oracle(results) -> None:
    assert answer(results) == [
        "sbp 2 % gained +0.100 [+0.100, +0.100] nats a token of held-out text over repetition (over 3 seeds), at 2.5 "
        "times its cost; that is 20.0 % [20.0, 20.0] (over 3 seeds) of what the oracle gained."
    ]
    assert remarks(results) == [
        "Answers, held-out articles: not measured.",
        "Gains have 95 % intervals over 3 seeds.",
        "Too few groups (articles) for an interval over them: answers, articles it read (of 1). Texts of one group "
        "depend on one another, and fewer than 10 groups say too little.",
        "longer trained on 2.5 M tokens and repetition on 1.0 M: its gain is not one at equal tokens.",
        "Repetition is the only arm at equal budget: controls would tell whether the relation between documents has a "
        "part in the gain (docs/experiment.md).",
        "At equal cost, all of it spent (1.5e+06 FLOPs, longer 2.4e+06), sbp 2 % gains +0.050 [+0.050, +0.050] nats a "
        "token (over 3 seeds). Of what repeats the text for no more, repetition is best: beside it sbp 2 % gains "
        "+0.100 [+0.100, +0.100] nats a token (over 3 seeds).",
    ]


def test_an_sbp_arm_of_other_tokens_does_not_answer(results) -> None:
    results["arms"][1] |= {"tokens": results["arms"][1]["tokens"] + 8192, "is_comparable": False}
    assert answer(results)[0].startswith("No arm trained on synthetic text as SBP does, on the same corpus and as many")
    assert "sbp 2 % trained on 1.0 M tokens and repetition on 1.0 M" in " ".join(remarks(results))


CONTROLLED: dict[str, Any] = {
    **{name: {} for name in ("repetition", "regularised", "sbp", "alone", "random_pairs", "oracle")},
    "half": {"like": "repetition", "corpus_times": 0.5},
}
OF_CONTROLLED = {  # the law 1 + 8 / sqrt(tokens): 16, 64 and 256 tokens cost 3, 2 and 1.5 nats
    "half": (3.0, 3.0), "repetition": (2.0, 2.0), "oracle": (1.5, 1.5),
    "regularised": (1.95, 1.95), "alone 2 %": (1.85, 1.9), "random_pairs 2 %": (1.9, 1.9), "sbp 2 %": (1.8, 1.8),
}  # fmt: skip


@pytest.fixture
def controlled(tmp_path: Path, results) -> dict[str, Any]:
    """Results of arms with controls and three corpus sizes, of 16, 64 and 256 tokens, with two seeds."""
    experiment = small_experiment(tmp_path, arms=CONTROLLED, seeds=[0, 1], shares=[0.02], oracle_times=4)
    grid = plan_grid(experiment)
    tokens = {50: 16, 100: 64, 400: 256}
    for node in grid.nodes.values():
        documents = node.config.ingest.max_train_documents
        stats: dict[str, Any] = {"ingest": {"train": {"tokens": tokens[documents]}}}.get(node.stage.job, {})
        if node.stage.job == "pretrain":
            stats = {"exported": {"step": 3, "validation_nats": 1.25}, "final": {"step": 4, "validation_nats": 1.5}}
        node.artifact.write_json(STARTED, {"fingerprint": node.fingerprint})
        node.artifact.write_json(MANIFEST, {"stats": stats, "wall_s": 3600})
        if node.stage.job == "ingest":
            node.artifact.write_table("validation/part-00000.parquet", pa.table({"group": ["a", "b"]}))
    groups = [str(group) for group in range(20)]
    texts = Texts({"held_out": TextSet([], np.array([10] * 20), np.array([50] * 20), groups)})
    scores = {
        one.model.key: Scores({"held_out": np.full(20, 10 * OF_CONTROLLED[one.name][one.seed])}, 100)
        for one in grid.trainings
    }
    study = study_of(experiment, grid, grid.trainings)
    rows = arm_rows(study, scores, texts)
    worth = effective_data(study, losses_of(rows))
    empty: dict[str, Any] = {"equal_cost": [], "curves": [], "synthesizers": [], "quality": None}
    results["texts"].pop("answers_read")
    return results | empty | {"arms": rows, "effective_data": worth, "seeds": [0, 1]}


def test_the_headline_is_the_gain_over_the_best_control_at_equal_budget(controlled) -> None:
    """Of 2, 1.95, (1.85 + 1.9) / 2 and 1.9 nats the third is best: sbp gains 0.05 and 0.1 over it with the two seeds,
    0.075 +- 12.706 x 0.05 / 2. The oracle and the arm of half the corpus are no controls."""
    first, second, _ = answer(controlled)
    assert first == (
        "sbp 2 % shows no difference: +0.075 [−0.243, +0.393] nats a token of held-out text over alone 2 %, the best "
        "of repetition, regularised, alone 2 %, random_pairs 2 % (over 2 seeds)."
    )
    assert second.startswith(
        "sbp 2 % gained +0.200 [+0.200, +0.200] nats a token of held-out text over repetition (over 2"
    )
    control = measure(controlled["arms"], "sbp 2 %")["control"]
    assert control["over_groups"]["value"] == pytest.approx(0.075)
    assert measure(controlled["arms"], "random_pairs 2 %")["control"] is None
    assert "only arm at equal budget" not in " ".join(remarks(controlled))


def test_sbp_stands_beside_as_much_text_that_was_written_otherwise(controlled) -> None:
    """1.85 and 1.9, and twice 1.9, minus 1.8; `regularised` reads no such text, and a control has no such rows."""
    assert answer(controlled)[2] == (
        "Beside as much text that was written otherwise, in nats a token: +0.075 [−0.243, +0.393] (over 2 seeds) over "
        "alone 2 %; +0.100 [+0.100, +0.100] (over 2 seeds) over random_pairs 2 %."
    )
    assert measure(controlled["arms"], "alone 2 %")["at_same_share"] == []


def test_text_written_otherwise_is_that_of_arms_that_train_alike(tmp_path: Path) -> None:
    arms: dict[str, Any] = {
        **{name: {} for name in ("repetition", "sbp", "alone")},
        "alone_decayed": {"like": "alone", "overrides": ["pretrain.weight_decay=1"]},
        "sbp_decayed": {"like": "sbp", "overrides": ["pretrain.weight_decay=1"]},
        **{f"{name}_by_another": {"like": name, "writer": ["pretrain.weight_decay=1"]} for name in ("sbp", "alone")},
    }
    grid = plan_grid(small_experiment(tmp_path, arms=arms, seeds=[0, 1], shares=[0.02, 0.03]))
    study = Study(next(iter(grid.nodes.values())).config, grid.trainings)
    losses = {one.model.key: np.array([1.0]) for one in grid.trainings}
    found = measure_arms(study, losses, np.array([1]), ["g"])
    beside = {name: [other["name"] for other in row["at_same_share"]] for name, row in found.items()}
    assert {name: others for name, others in beside.items() if others} == {
        "sbp 2 %": ["alone 2 %"], "sbp 3 %": ["alone 3 %"],
        "sbp_decayed 2 %": ["alone_decayed 2 %"], "sbp_decayed 3 %": ["alone_decayed 3 %"],
        "sbp_by_another 2 %": ["alone_by_another 2 %"], "sbp_by_another 3 %": ["alone_by_another 3 %"],
    }  # fmt: skip


def test_an_arm_that_reads_otherwise_or_other_real_text_has_no_control_that_trains_alike(tmp_path: Path) -> None:
    """Its gain would be that of the order, the rows, the shape or the real text as well."""
    arms: dict[str, Any] = {
        **{name: {} for name in ("repetition", "sbp", "alone", "megadoc", "synthetic_first")},
        "real_tail": {"like": "sbp", "overrides": ["mixture.real_tail=0.5"]},
        "alone_tail": {"like": "alone", "overrides": ["mixture.real_tail=0.5"]},
        "deeper": {"like": "sbp", "overrides": ["model.num_layers=3"]},
        "twice": {"like": "sbp", "corpus_times": 2},
    }
    grid = plan_grid(small_experiment(tmp_path, arms=arms, seeds=[0], shares=[0.02]))
    study = Study(next(iter(grid.nodes.values())).config, grid.trainings)
    losses = {one.model.key: np.array([1.0]) for one in grid.trainings}
    found = measure_arms(study, losses, np.array([1]), ["g"])
    beside = {name: [other["name"] for other in row["at_same_share"]] for name, row in found.items()}
    assert {name: others for name, others in beside.items() if others} == {
        "sbp 2 %": ["alone 2 %"], "real_tail 2 %": ["alone_tail 2 %"],
    }  # fmt: skip
    # Order and rows are of the arm, and cost nothing; another shape, and more real text, are no equal budget.
    alike = ["sbp 2 %", "megadoc 2 %", "synthetic_first 2 %", "real_tail 2 %"]
    assert [name for name, row in found.items() if row["control"]] == alike


def test_effective_data_is_the_text_that_repetition_needs_for_the_same_loss(controlled) -> None:
    """1.8 nats cost (8 / 0.8)^2 = 100 tokens, 100 / 64 of the corpus."""
    [recipe] = controlled["effective_data"]["recipes"]
    assert recipe["law"] == pytest.approx({"floor": 1, "scale": 8, "alpha": 0.5}, rel=1e-4)
    times = {row["name"]: row["times"]["repetition"] for row in controlled["effective_data"]["arms"]}
    assert set(times) == {"sbp 2 %", "alone 2 %", "random_pairs 2 %"}
    found = times["sbp 2 %"]
    assert [found["value"], found["low"], found["high"]] == pytest.approx([100 / 64] * 3, rel=1e-4)
    assert "in effective data it is worth 1.56 times the corpus [1.56, 1.56] over 2 seeds." in answer(controlled)[1]
    page = render_page(controlled)
    assert "repetition (E 1.000, A 8.0, α 0.500)" in page
    assert "<td>75.0 %</td><td>1.250</td><td>1.500</td>" in page  # both ends of a training
    law = DataLaw(1.0, 8.0, 0.5)
    assert law.tokens_for(1.0) == math.inf
    assert times_words({"value": None, "is_extrapolated": True}).startswith("more real text than any")


def test_effective_data_takes_three_sizes_and_losses_that_fall() -> None:
    assert fit_data_law({16: 1.0, 64: 1.5, 256: 2.0}) is None
    assert fit_data_law({1: 8.0, 4: 4.0, 16: 2.0}) == pytest.approx((0.0, 8.0, 0.5), abs=1e-3)  # no floor below zero


def test_two_corpus_sizes_give_no_effective_data(results) -> None:
    why = "a fit takes 3 corpus sizes, and repetition has 2: add arms with corpus_times"
    recipe = {"name": "repetition", "law": None, "refused": why, "sizes": []}
    results["effective_data"] = {"recipes": [recipe], "arms": [{"name": "sbp 2 %", "times": {"repetition": None}}]}
    assert f"Effective data: not given: {why}." in remarks(results)
    assert "effective data" not in " ".join(answer(results))


def test_a_loss_and_a_draw_are_called_so(results) -> None:
    found = results["arms"][1]["measures"]["held_out_nats_per_token"]
    found |= {"gain": -0.1, "over_seeds": {"value": -0.1, "low": -0.2, "high": -0.05} | OVER_3, "share_of_oracle": None}
    assert answer(results)[0].startswith("sbp 2 % lost: −0.100 [−0.200, −0.050] nats a token")
    found["over_seeds"]["high"] = 0.01
    assert answer(results)[0].startswith("sbp 2 % shows no difference: ")
    found |= {"over_seeds": None, "over_groups": {"value": -0.1, "unit": "groups", "units": 3}}
    assert answer(results)[0].startswith("sbp 2 %: −0.100 (no interval) nats a token of held-out text")


def test_what_weakens_the_answer_is_said(results) -> None:
    results["arms"][2]["measures"]["held_out_nats_per_token"]["over_seeds"] = {"value": 0.1, "low": -1, "high": 1}
    results |= {"synthesizer_per_seed": False, "dead": ["untuned seed 0: no room"]}
    results["equal_cost"][0]["against"] = None
    said = " ".join(remarks(results))
    assert "not shown to be above zero with these seeds, so no share of it is given" in said
    assert "sbp 2 % costs 2.5 times as much as repetition, and no arm like repetition costs as much" in said
    assert "All seeds share one synthesis" in said
    assert "1 trainings have no result: untuned seed 0: no room." in said


def test_the_page_holds_every_number_needs_nothing_else_and_escapes_what_is_not_ours(results) -> None:
    page = render_page(results)
    assert "/data/&lt;run&gt;" in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 3 + 2 + 1 + 5  # of trainings, of gains, of costs, and of the panel
    numbers = ("+0.100", f"{math.exp(3.0):.1f}", "20.0 %", "1.51e+06", "<th>looping</th><td>1</td>")
    for text in (*numbers, "2 questions were left out"):
        assert text in page, text
    json.dumps(results)  # all of it is plain data


def test_each_synthesizer_has_a_column_and_seeds_share_one(results) -> None:
    page = render_page(results)
    assert re.search(r'<th class="sbp">sbp</th><th class="">random_pairs</th><th class="rep">Real, training</th>', page)
    # 2 % and 6 % of the two seeds
    assert 'Repetition inside a document</th><td>4.0 %<span class="ci">(2.0, 6.0)</span></td>' in page


def test_what_most_synthesizers_wrote_for_one_d1_comes_first(results) -> None:
    page = render_page(results)
    assert page.index(">first<") < page.index(">of the control<") < page.index("only the control kept this")
    assert "second" not in page.partition("What was written for the same d1")[2]  # one seed is enough to read


def test_an_experiment_without_synthetic_text_says_so(results) -> None:
    page = render_page(results | {"quality": None})
    assert "Quality of synthetic text:</strong> not measured" in page


def test_the_summary_has_a_line_for_each_arm_and_what_to_keep_in_mind(results) -> None:
    summary = render_summary(results)
    lines = summary.splitlines()
    assert [lines[1]] == answer(results)
    assert [line.split("   ")[0] for line in lines[4:9]] == ["arm", *LOSSES]
    gain = r"3\.000; \+0\.100 \[\+0\.100, \+0\.100\] \(over 3 seeds\)"
    assert re.search(rf"^sbp 2 % +20\.1 +{gain} +{gain} +20\.0 % \[20\.0, 20\.0\] +1\.5e\+06$", summary, re.MULTILINE)
    assert all(remark in summary for remark in remarks(results))
