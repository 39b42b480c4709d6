"""Every synthesizer's text is measured from finished artifacts, by one embedder, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hand_made import write_corpus, write_synthetic
from small_experiment import small_experiment

from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.experiment.grid import Grid, plan_grid
from sbp_ray.experiment.quality import quality_facts, synthetic_users
from sbp_ray.experiment.settings import ExperimentConfig

ARMS = ("repetition", "sbp", "unconditional", "own_embedder")


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentConfig:
    return small_experiment(tmp_path, *ARMS, seeds=[0], shares=[0.02, 0.03])


@pytest.fixture
def grid(experiment: ExperimentConfig) -> Grid:
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
    for key, trained in synthetic_users(grid, grid.trainings).items():
        written = zip(d1s, texts[trained[0].arm], strict=True)
        write_synthetic(grid.nodes[key].artifact, written, tokenizer)
    return grid


def test_shares_of_one_arm_read_one_synthetic_text(grid: Grid) -> None:
    users = synthetic_users(grid, grid.trainings)
    names = {trained[0].arm: [training.name for training in trained] for trained in users.values()}
    assert names["sbp"] == ["sbp 2 %", "sbp 3 %"]
    assert set(names) == {"sbp", "unconditional", "own_embedder"}
    assert quality_facts_of_no_text(grid) is None


def quality_facts_of_no_text(grid: Grid) -> Any:
    repetition = [training for training in grid.trainings if training.share is None]
    return quality_facts(None, grid, repetition, Artifact("quality", "unused"))  # type: ignore[arg-type]


@pytest.mark.slow
def test_each_synthesizer_has_its_numbers_and_a_rerun_measures_what_is_new(
    experiment: ExperimentConfig, grid: Grid, tmp_path: Path, local_ray: None
) -> None:
    store = Artifact("quality", str(tmp_path / "quality"))
    some = [training for training in grid.trainings if training.arm != "own_embedder"]
    assert quality_facts(experiment, grid, some, store) is not None
    first = {name: Path(store.path(name)).stat().st_mtime_ns for name in store.files()}
    assert len(first) == 3  # two synthetic texts, and real text

    facts = quality_facts(experiment, grid, grid.trainings, store)
    assert facts is not None
    table = {row["name"]: {name: cell["value"] for name, cell in row["measures"].items()} for row in facts["table"]}
    assert list(table) == ["sbp", "unconditional", "own_embedder", "real_train", "real_held_out"]
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

    assert quality_facts(experiment, grid, grid.trainings, store) == facts
    assert {name: Path(store.path(name)).stat().st_mtime_ns for name in store.files()} == after
