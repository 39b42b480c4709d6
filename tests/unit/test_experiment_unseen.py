"""Held-out text is looked for in everything that an arm trains on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from small_experiment import small_experiment

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.evaluation.likelihood import scored_texts
from sbp_ray.evaluation.unseen import find_held_out_text
from sbp_ray.experiment.grid import plan_grid
from sbp_ray.experiment.publish import study_of
from sbp_ray.schema import DOCUMENT
from sbp_ray.steps import call_each

RUN = "one two three four five six seven eight nine ten eleven twelve thirteen"
HELD_OUT = [
    f"It begins. {RUN}; and it goes on.",
    "another held-out document of its own words, as long as a run of words",
]
TRAIN = ["real text of other words", f"Quoting: {RUN}!", RUN.removesuffix(" thirteen")]  # twelve words are too few
WRITTEN = ["a new text", f"and, {RUN.upper()}", f"again {RUN}"]


def _documents(texts: list[str], groups: list[str]) -> pa.Table:
    rows = zip(texts, groups, strict=True)
    return pa.Table.from_pylist(
        [
            {"doc_id": n.to_bytes(16, "big"), "group": group, "text": text, "input_ids": [5]}
            for n, (text, group) in enumerate(rows)
        ],
        schema=DOCUMENT,
    )


def test_of_a_shard_only_the_groups_that_are_asked_for_come_back(tmp_path: Path, monkeypatch: Any) -> None:
    corpus, returned = Artifact("corpus", str(tmp_path)), []
    for shard, groups in enumerate((["a", "b"], ["c", "d", "d"])):
        corpus.write_table(f"train/part-{shard:05d}.parquet", _documents(["text"] * len(groups), groups))

    def noting(*arguments: Any) -> Iterator[tuple[str, set[str]]]:
        for call, found in call_each(*arguments):
            returned.append(found)
            yield call, found

    monkeypatch.setattr(scored_texts, "call_each", noting)
    assert scored_texts.find_groups(corpus, "train", {"b", "d", "e"}) == {"b", "d"}
    assert returned == [{"b"}, {"d"}]


def test_documents_that_share_a_run_of_words_with_a_held_out_one_are_counted(tmp_path: Path) -> None:
    experiment = small_experiment(tmp_path, "repetition", "sbp", seeds=[0], shares=[0.02])
    grid = plan_grid(experiment)
    for node in grid.nodes.values():
        if node.stage.job in ("ingest", "synthesize"):
            node.artifact.write_json(STARTED, {"fingerprint": node.fingerprint})
            node.artifact.write_json(MANIFEST, {"stats": {"drops": {"contaminated": 4}}})
        if node.stage.job == "ingest":
            node.artifact.write_table("train/part-00000.parquet", _documents(TRAIN, ["a", "b", "c"]))
            node.artifact.write_table("validation/part-00000.parquet", _documents(HELD_OUT, ["c", "d"]))
        if node.stage.job == "synthesize":
            for shard, texts in enumerate((WRITTEN[:2], WRITTEN[2:])):
                node.artifact.write_table(f"part-{shard:05d}.parquet", pa.table({"text": texts}))
    nodes, store = study_of(experiment, grid, grid.trainings).nodes, Artifact("scores", str(tmp_path / "scores"))
    corpus, synthetic = find_held_out_text(nodes, HELD_OUT, 13, store)
    assert (corpus["documents"], corpus["sharing_held_out_text"]) == (3, 1)
    assert (corpus["held_out_groups"], corpus["held_out_groups_in_train"]) == (2, 1)  # c is on both sides
    assert (synthetic["documents"], synthetic["sharing_held_out_text"]) == (3, 2)
    assert (corpus["contaminated"], synthetic["contaminated"]) == (4, 4)

    for name in store.files("", ".json"):  # a text is read once
        store.write_json(name, store.read_json(name) | {"documents": 77})
    assert [row["documents"] for row in find_held_out_text(nodes, HELD_OUT, 13, store)] == [77, 77]
    assert [row["documents"] for row in find_held_out_text(nodes, HELD_OUT[:1], 13, store)] == [3, 3]
