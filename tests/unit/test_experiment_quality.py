"""Every synthesizer's text is measured from finished artifacts, by one embedder, once."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import write_corpus, write_synthetic
from small_experiment import small_experiment
from worked_on import WorkedOn

from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.evaluation.study import Study, names_of
from sbp_ray.evaluation.text_quality.beside_real import measure_quality
from sbp_ray.experiment.grid import plan_grid
from sbp_ray.experiment.publish import study_of
from sbp_ray.experiment.settings import ExperimentConfig

ARMS = ("repetition", "sbp", "unconditional", "own_embedder")


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentConfig:
    return small_experiment(tmp_path, *ARMS, seeds=[0], shares=[0.02, 0.03])


@pytest.fixture
def study(experiment: ExperimentConfig) -> Study:
    """sbp copied its d1, unconditional said the same thing each time, own_embedder wrote something else."""
    grid = plan_grid(experiment)
    [corpus] = [node for node in grid.nodes.values() if node.stage.job == "ingest"]
    for node in grid.nodes.values():
        node.artifact.write_json(STARTED, {"fingerprint": node.fingerprint})
        if node.stage.job == "embed":
            documents, tokenizer = write_corpus(corpus.artifact, node.artifact)
    d1s = documents["train"][:12]
    texts = {
        "sbp": [row["text"] for row in d1s],
        "unconditional": ["the garden of the castle in winter is glass " * 7] * 12,
        "own_embedder": [f"{row['text'].upper()} said {i}" for i, row in enumerate(d1s)],
    }
    study = study_of(experiment, grid, grid.trainings)
    for made, trained in study.users("synthetic"):
        write_synthetic(made.artifact, zip(d1s, texts[trained[0].arm], strict=True), tokenizer)
    return study


def test_shares_of_one_arm_read_one_synthetic_text(study: Study, tmp_path: Path) -> None:
    names = {trained[0].arm: names_of(trained) for _, trained in study.users("synthetic", read_it=True)}
    assert names["sbp"] == ["sbp 2 %", "sbp 3 %"]
    assert set(names) == {"sbp", "unconditional", "own_embedder"}
    assert measure_quality(arms_of(study, "repetition"), Artifact("quality", str(tmp_path))) is None


def arms_of(study: Study, *names: str) -> Study:
    return replace(study, trainings=[one for one in study.trainings if one.arm in names])


def test_each_synthesizer_has_its_numbers_and_a_rerun_measures_what_is_new(
    study: Study, tmp_path: Path, in_process: WorkedOn
) -> None:
    store = Artifact("quality", str(tmp_path / "quality"))
    assert measure_quality(arms_of(study, "repetition", "sbp", "unconditional"), store) is not None
    first = {name: Path(store.path(name)).stat().st_mtime_ns for name in store.files()}
    assert len(first) == 3  # two synthetic texts, and real text

    facts = measure_quality(study, store)
    assert facts is not None
    table = {row["name"]: {name: cell["value"] for name, cell in row["measures"].items()} for row in facts["table"]}
    assert list(table) == ["sbp", "unconditional", "own_embedder", "real_train", "real_held_out", "mined"]
    assert (table["sbp"]["d1_copies"], table["sbp"]["corpus_copies"], table["sbp"]["novel_13"]) == (1, 1, 0)
    assert table["unconditional"]["exact_duplicates"] == pytest.approx(11 / 12)
    assert table["unconditional"]["d1_copies"] == table["unconditional"]["corpus_copies"] == 0
    assert table["unconditional"]["repetition"] > 0.5 > table["sbp"]["repetition"]
    assert table["unconditional"]["type_token"] < 0.3  # 8 words again and again
    assert table["own_embedder"]["corpus_copies"] == 0  # tokens of capitals are others
    assert table["real_held_out"]["corpus_copies"] == 0
    assert "irrelevant" in table["own_embedder"] and "irrelevant" not in table["real_train"]
    assert len(facts["syntheses"][0]["shown"]) == 12
    after = {name: Path(store.path(name)).stat().st_mtime_ns for name in store.files()}
    new = {name for name in after if first.get(name) != after[name]}
    assert len(after) == 4
    assert {name.partition("-")[0] for name in new} == {"synthetic", "real"}
    assert len(new) == 2  # own_embedder's, and real text beside it

    assert measure_quality(study, store) == facts
    assert {name: Path(store.path(name)).stat().st_mtime_ns for name in store.files()} == after


def test_text_from_another_corpus_is_left_out_of_the_table(
    tmp_path: Path, in_process: WorkedOn, caplog: pytest.LogCaptureFixture
) -> None:
    arms = {"repetition": {}, "sbp": {}, "half": {"like": "sbp", "corpus_times": 0.5}}
    experiment = small_experiment(tmp_path, seeds=[0], shares=[0.02], arms=arms)
    grid = plan_grid(experiment)
    for node in grid.nodes.values():
        node.artifact.write_json(STARTED, {"fingerprint": node.fingerprint})
        if node.stage.job == "embed" and node.config.ingest.max_train_documents == 100:
            documents, tokenizer = write_corpus(node.inputs["corpus"].artifact, node.artifact)
    study = study_of(experiment, grid, grid.trainings)
    for made, trained in study.users("synthetic"):
        d1s = documents["train"][:4]
        if trained[0].arm == "half":
            d1s = [row | {"doc_id": bytes(15) + bytes([number])} for number, row in enumerate(d1s)]
        write_synthetic(made.artifact, [(row, row["text"]) for row in d1s], tokenizer)
    with caplog.at_level(logging.INFO, logger="sbp_ray"):
        facts = measure_quality(study, Artifact("quality", str(tmp_path / "quality")))
    assert facts is not None
    assert [row["name"] for row in facts["table"]] == ["sbp", "real_train", "real_held_out", "mined"]
    assert "quality of half is not measured: written from another corpus" in caplog.text
