"""Held-out documents that train documents tell already, through ingest; and what is left to train on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, IngestConfig
from sbp_ray.errors import SbpError
from sbp_ray.ingestion.held_out import smallest_hashes
from sbp_ray.stages.ingest import ingest_documents

pytestmark = pytest.mark.usefixtures("in_process")

NUM_STORIES = 30


def words(number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(number)]


def updated(story: list[str], seed: int) -> list[str]:
    """The story an hour later: a paragraph more, one less, and a word in sixty another."""
    new = words(len(story), seed)
    kept = [new[place] if place % 60 == 7 else word for place, word in enumerate(story)][30:]
    return [*kept, *new[:30]]


def run(folder: Path, out: Artifact, rows: list[dict[str, str]], **changes: Any) -> dict[str, Any]:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"input": (str(path),), "group_column": "group", "num_shards": 3, "vocab_size": 300}
    settings |= {"validation_share": 0.3, "development_share": 0.0}
    return ingest_documents(IngestConfig(**settings | changes), decontaminate=DecontaminateConfig(), out=out)


def stories_with_updates() -> list[dict[str, str]]:
    """Each story and its update have groups of their own, as updates that arrive as new documents do."""
    rows = []
    for number in range(NUM_STORIES):
        story = words(200, number)
        rows.append({"text": " ".join(story), "group": f"{number} first"})
        rows.append({"text": " ".join(updated(story, 1000 + number)), "group": f"{number} second"})
    return rows


def split_of(out: Artifact, split: str) -> set[str]:
    return {group for name in out.files(split) for group in out.read_table(name)["group"].to_pylist()}


def test_a_held_out_document_whose_update_is_trained_on_goes(tmp_path: Path, new_artifact) -> None:
    whole, out = new_artifact("whole"), new_artifact("corpus")
    run(tmp_path, whole, stories_with_updates(), max_shared_with_train=1.0)
    stats = run(tmp_path, out, stories_with_updates())
    train, held_out = split_of(whole, "train"), split_of(whole, "validation")
    other = {group: group.split()[0] + (" second" if group.endswith("first") else " first") for group in train}
    apart = {group for group in held_out if group in other.values()}
    assert len(apart) > 5 and len(held_out - apart) > 2  # planted: some are split across, some wholly held out
    assert split_of(out, "validation") == held_out - apart
    assert split_of(out, "train") == train
    assert stats["drops"] == stats["validation"]["drops"] == {"near_copy_of_train": len(apart)}
    assert len(stats["examples"]["near_copy_of_train"]) == 3


def test_documents_of_one_form_or_subject_stay(tmp_path: Path, new_artifact) -> None:
    frame = words(60, 0)
    rows = [
        {"text": " ".join([*frame[:30], *words(80, 10 + number), *frame[30:]]), "group": str(number)}
        for number in range(40)
    ]
    assert run(tmp_path, new_artifact("corpus"), rows)["drops"] == {}


def test_the_held_out_documents_do_not_depend_on_how_much_is_trained_on(tmp_path: Path, new_artifact) -> None:
    whole, small = new_artifact("whole"), new_artifact("small")
    run(tmp_path, whole, stories_with_updates())
    run(tmp_path, small, stories_with_updates(), max_train_documents=10)
    assert split_of(small, "validation") == split_of(whole, "validation")
    assert len(split_of(small, "train")) < len(split_of(whole, "train"))


def test_a_part_of_a_train_document_three_times_as_long_is_found() -> None:
    text = words(1500, 1)
    part = smallest_hashes(" ".join(text[500:1000]), 64)
    assert len(part) == 64  # of 488, so hashes below 0.13: the whole's 256 of 1,488 reach up to 0.17
    assert np.isin(part, smallest_hashes(" ".join(text), 256)).all()


@pytest.mark.parametrize(("split_by", "kinds"), [("group", "groups"), ("document", "documents")])
def test_two_groups_for_three_splits_are_refused_with_what_to_do(
    tmp_path: Path, new_artifact, split_by: str, kinds: str
) -> None:
    rows = [{"text": "one text", "group": "a"}, {"text": "another", "group": "b"}]
    with pytest.raises(SbpError, match=rf"^the input has two {kinds}: .*: set ingest.development_share=0") as raised:
        run(tmp_path, new_artifact("corpus"), rows, split_by=split_by, development_share=0.1)
    assert "\n" not in str(raised.value)
    stats = run(tmp_path, new_artifact("corpus"), rows, split_by=split_by)
    assert (stats["train"]["documents"], stats["validation"]["documents"]) == (1, 1)


def test_three_groups_are_enough_for_three_splits(tmp_path: Path, new_artifact) -> None:
    rows = [{"text": f"text {number}", "group": str(number)} for number in range(3)]
    stats = run(tmp_path, new_artifact("corpus"), rows, development_share=0.1)
    assert [stats[split]["documents"] for split in ("train", "validation", "development")] == [1, 1, 1]
