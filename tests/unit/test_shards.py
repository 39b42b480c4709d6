"""The runner of steps: what it does again, in which order, where, and what a worker's error becomes."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from worked_on import WorkedOn

from sbp_ray import steps
from sbp_ray.artifacts import Artifact
from sbp_ray.config import EmbedConfig, Resources, TrainingResources
from sbp_ray.embedder import load_embedder
from sbp_ray.errors import SbpError
from sbp_ray.shards import Stats, fetch_rows, list_shards, read_stats, shard_name
from sbp_ray.steps import SCRATCH, Step, call_each, make_stats_once, run_steps

HERE = Resources(num_workers=2)


class Copier:
    """Copies a number into a file; a number below zero is the user's mistake."""

    def __init__(self, out: Artifact, folder: str) -> None:
        self._out, self._folder = out, folder

    def __call__(self, item: dict[str, Any]) -> Stats:
        if item["shard"] < 0:
            raise SbpError(f"{item['shard']} is negative: give another number")
        self._out.write_json(f"{self._folder}/{item['shard']}.json", item)
        return {"documents": item["shard"]}


def copy(out: Artifact, folder: str, numbers: list[int], **settings: Any) -> Step:
    items = [{"shard": number} for number in numbers]
    return Step(
        f"copy-{folder}", Copier, (out, folder), items, lambda item: f"{folder}/{item['shard']}.json", **settings
    )


def test_items_are_worked_on_in_order_and_step_by_step_and_those_whose_file_is_there_are_not(
    new_artifact, in_process: WorkedOn
) -> None:
    out = new_artifact("any")
    out.write_json("b/5.json", {})
    run_steps(out, [copy(out, "a", [3, 1]), copy(out, "b", [7, 5, 6])], HERE)
    assert [(step, item["shard"]) for step, item in in_process] == [
        ("copy-a", 3),
        ("copy-a", 1),
        ("copy-b", 7),
        ("copy-b", 6),
    ]
    assert out.read_json("b/5.json") == {}
    in_process.clear()
    run_steps(out, [copy(out, "a", [3, 1]), copy(out, "b", [7, 5, 6])], HERE)
    assert in_process == []


@pytest.mark.parametrize("survivors", range(5))
def test_an_interrupted_run_goes_on_where_it_was(new_artifact, in_process: WorkedOn, survivors: int) -> None:
    out = new_artifact("any")
    in_process.interrupt_after(survivors)
    with pytest.raises(KeyboardInterrupt):
        run_steps(out, [copy(out, "a", [1, 2, 3]), copy(out, "b", [1, 2])], HERE)
    run_steps(out, [copy(out, "a", [1, 2, 3]), copy(out, "b", [1, 2])], HERE)
    assert [item["shard"] for _, item in in_process] == [1, 2, 3, 1, 2]  # nothing twice


def test_files_of_an_earlier_attempt_are_made_again(new_artifact, in_process: WorkedOn) -> None:
    out = new_artifact("any")
    for number in (1, 2):
        out.write_json(f"a/{number}.json", {})
    run_steps(out, [copy(out, "a", [1, 2], outdated=["a/2.json"])], HERE)
    assert [item["shard"] for _, item in in_process] == [2]


@pytest.mark.usefixtures("in_process")
def test_a_step_may_depend_on_the_one_before_it(new_artifact) -> None:
    out = new_artifact("any")

    def steps() -> Iterator[Step]:
        yield copy(out, "a", [1, 2])
        yield copy(out, "b", [len(out.files("a"))])

    run_steps(out, steps(), HERE)
    assert out.files("b") == ["b/2.json"]


@pytest.mark.usefixtures("in_process")
def test_each_folder_is_listed_once_and_no_file_is_asked_for_by_itself(
    new_artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = new_artifact("any")
    run_steps(out, [copy(out, "a", list(range(50)))], HERE)
    listed: list[str] = []
    files = Artifact.files

    def counted(artifact: Artifact, folder: str = "", suffix: str = "") -> list[str]:
        listed.append(folder)
        return files(artifact, folder, suffix)

    monkeypatch.setattr(Artifact, "files", counted)
    monkeypatch.setattr(Artifact, "exists", lambda artifact, name: pytest.fail(f"asked for {name}"))
    run_steps(out, [copy(out, "a", list(range(50)))], HERE)
    assert listed == ["a"]


@pytest.mark.usefixtures("in_process")
def test_progress_counts_what_was_there_before(new_artifact, caplog: pytest.LogCaptureFixture) -> None:
    out = new_artifact("any")
    out.write_json("a/1.json", {})
    with caplog.at_level(logging.INFO):
        run_steps(out, [copy(out, "a", [1, 2, 3])], HERE)
    assert "copy-a | 1 of 3 shards are there already" in caplog.messages
    assert any(message.startswith("copy-a | 3/3 shards (100%)") for message in caplog.messages)


# Errors


def _worker(error: OSError) -> type:
    class Worker:
        def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
            raise error

    return Worker


def _run(out: Artifact, worker: Callable[..., Any]) -> None:
    step = Step("pair", worker, (), [{"shard": 0}], lambda item: "never.json")
    run_steps(out, [step], TrainingResources(in_process=True))


@pytest.mark.usefixtures("in_process")
def test_a_full_disk_and_a_store_that_refuses_can_be_mended_and_no_other_error_of_the_system_can(new_artifact) -> None:
    out = new_artifact("any")
    with pytest.raises(SbpError, match=r"there is no room to write \(.*No space left.*\): make room, and run the same"):
        _run(out, _worker(OSError(errno.ENOSPC, "No space left on device")))
    refused = (
        "When listing objects under key 'run/' in bucket 'b': AWS Error ACCESS_DENIED during ListObjectsV2 operation"
    )
    with pytest.raises(SbpError, match=r"AWS Error ACCESS_DENIED .*: see to the store and to its credentials, and run"):
        _run(out, _worker(OSError(refused)))
    with pytest.raises(PermissionError):
        _run(out, _worker(PermissionError(errno.EACCES, "Permission denied")))


@pytest.mark.usefixtures("in_process")
def test_what_was_committed_before_an_error_stays(new_artifact) -> None:
    out = new_artifact("any")
    with pytest.raises(SbpError, match="-1 is negative: give another number"):
        run_steps(out, [copy(out, "a", [4, -1, 5])], HERE)
    assert out.files("a") == ["a/4.json"]


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    out = Artifact("pairs", str(tmp_path))
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*/train/part-00000.parquet'"),
        out.writing("train/part-00000.parquet"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list((tmp_path / "train").iterdir()) == []


def test_a_task_whose_processes_die_again_and_again_becomes_a_line_with_its_items(
    new_artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = new_artifact("any")
    arguments = ("copies", Copier, (out, "a"), 1)
    row = {"items": json.dumps([{"shard": 4}])}
    monkeypatch.setattr(steps, "_count_deaths", lambda: 7)
    assert json.loads(steps.work_on_items(row, *arguments)["outcomes"]) == [[{"documents": 4}, ""]]
    monkeypatch.setattr(steps, "_count_deaths", lambda: 8)
    [[_, message]] = json.loads(steps.work_on_items(row, *arguments)["outcomes"])
    assert message.startswith('copies: 8 processes that worked on [{"shard": 4}] have died: see Ray')


# In Ray


@pytest.fixture
def ray_workers(local_ray: None) -> Iterator[None]:
    """Ray whose workers get this file's functions by value: they cannot import a file of tests."""
    import ray

    here = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(here)
    yield
    ray.cloudpickle.unregister_pickle_by_value(here)


class PidWriter:
    """Notes which process worked on an item, and as which of its worker's items."""

    def __init__(self, out: Artifact) -> None:
        if not out.url:
            raise SbpError("the worker cannot be built: mend it")
        self._out, self._number = out, 0

    def __call__(self, item: dict[str, Any]) -> Stats:
        if item.get("error"):
            raise SbpError(item["error"])
        self._number += 1
        self._out.write_json(f"a/{item['shard']}.json", [os.getpid(), self._number])
        return {"drops": {"dropped": 1}}


def note_pids(out: Artifact, num_items: int, **settings: Any) -> Step:
    items = [{"shard": number} for number in range(num_items)]
    return Step("pids", PidWriter, (out,), items, lambda item: f"a/{item['shard']}.json", **settings)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_workers")
def test_on_ray_tasks_build_their_worker_anew_and_actors_keep_it(new_artifact) -> None:
    tasks, actors, threads = (new_artifact(name) for name in ("tasks", "actors", "threads"))
    run_steps(tasks, [note_pids(tasks, 4)], HERE)
    run_steps(actors, [note_pids(actors, 4, keeps_worker=True)], Resources(num_workers=1))
    run_steps(threads, [note_pids(threads, 4, items_at_once=2)], HERE)
    numbers = {made: [made.read_json(name)[1] for name in made.files("a")] for made in (tasks, actors, threads)}
    assert numbers[tasks] == [1, 1, 1, 1]
    assert sorted(numbers[actors]) == [1, 2, 3, 4]
    assert sorted(numbers[threads]) == [1, 1, 2, 2]
    assert os.getpid() not in [made.read_json(name)[0] for made in (tasks, actors) for name in made.files("a")]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_workers")
def test_a_step_that_reads_little_is_done_by_the_driver(new_artifact) -> None:
    out, corpus = new_artifact("any"), new_artifact("corpus")
    corpus.write_bytes("train/part-00000.parquet", bytes(100))
    run_steps(out, [note_pids(out, 2, reads=[(corpus, "train")])], HERE)
    assert [out.read_json(name)[0] for name in out.files("a")] == [os.getpid()] * 2
    corpus.write_bytes("train/part-00001.parquet", bytes(5 << 20))
    large = new_artifact("large")
    run_steps(large, [note_pids(large, 2, reads=[(corpus, "train")])], HERE)
    assert os.getpid() not in [large.read_json(name)[0] for name in large.files("a")]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_workers")
def test_short_items_share_a_task_and_every_worker_has_four_tasks(new_artifact) -> None:
    """16 items of 5 MiB together: 13 would read 4 MiB, and two workers have eight tasks of two items."""
    out, corpus = new_artifact("any"), new_artifact("corpus")
    corpus.write_bytes("train/part-00000.parquet", bytes(5 << 20))
    run_steps(out, [note_pids(out, 16, reads=[(corpus, "train")])], HERE)
    assert sorted(out.read_json(name)[1] for name in out.files("a")) == [1] * 8 + [2] * 8


def _fail(number: int, shared: str) -> str:
    if number == 2:
        raise SbpError(f"{shared}: mend it")
    if number == 3:
        raise OSError(errno.ENOSPC, "No space left on device")
    return f"{shared} {number}"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_workers")
@pytest.mark.parametrize("keeps_worker", [False, True])
def test_on_ray_an_error_of_the_user_arrives_as_its_own_line(new_artifact, keeps_worker: bool) -> None:
    out = new_artifact("any")
    items = [{"shard": 0, "error": "the input is empty: give another"}]
    failing = Step("pids", PidWriter, (out,), items, lambda item: "a/0.json", keeps_worker=keeps_worker)
    with pytest.raises(SbpError) as caught:
        run_steps(out, [failing], HERE)
    assert str(caught.value) == "the input is empty: give another"
    with pytest.raises(SbpError) as caught:
        run_steps(out, [note_pids(Artifact("none", ""), 1, keeps_worker=keeps_worker)], HERE)
    assert str(caught.value) == "the worker cannot be built: mend it"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_workers")
def test_calls_on_ray_return_their_values_and_raise_the_user_s_errors_as_one_line() -> None:
    assert dict(call_each(_fail, [0, 1, 4], "value")) == {0: "value 0", 1: "value 1", 4: "value 4"}
    named = {"A_LIBRARY_READS_IT": "when it is imported"}
    assert dict(call_each(os.getenv, list(named), environment=named)) == named
    for number, message in (
        (2, "value: mend it"),
        (3, "there is no room to write ([Errno 28] No space left on device)"),
    ):
        with pytest.raises(SbpError) as caught:
            dict(call_each(_fail, [number], "value"))
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


def _embed_nothing(name: str) -> None:
    load_embedder(EmbedConfig(model="/nowhere/to/be/found"))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_workers")
def test_an_embedder_that_a_worker_of_the_evaluation_lacks_is_one_line() -> None:
    with pytest.raises(SbpError) as caught:
        list(call_each(_embed_nothing, ["train/part-00000.parquet"]))
    assert str(caught.value).startswith("embed.model=/nowhere/to/be/found: cannot be loaded (")
    assert "\n" not in str(caught.value)


# What there is


def test_stats_are_made_once_and_scratch_goes_even_if_the_run_died_before_it_went(new_artifact) -> None:
    out = new_artifact("any")
    out.write_json(f"{SCRATCH}/half.json", {})
    assert make_stats_once(out, lambda: {"documents": 3}) == {"documents": 3}
    assert not out.exists(SCRATCH)
    out.write_json(f"{SCRATCH}/half.json", {})
    assert make_stats_once(out, lambda: pytest.fail("they are there")) == {"documents": 3}
    assert not out.exists(SCRATCH)


def write_shards(out: Artifact, split: str, num_shards: int, numbers: range) -> None:
    """Documents by the shard that their numbers say: `shard_of` reads the first four bytes."""
    for shard in range(num_shards):
        mine = [number for number in numbers if number % num_shards == shard]
        doc_ids = pa.array([doc_id(number) for number in mine], pa.binary(16))
        out.write_table(
            shard_name(split, shard), pa.table({"doc_id": doc_ids, "number": mine}), {"documents": len(mine)}
        )


def doc_id(number: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(12)


def test_a_gap_among_the_shards_and_a_shard_less_than_the_other_split_has_are_missing(new_artifact) -> None:
    out = new_artifact("corpus")
    with pytest.raises(SbpError, match=r"train/part-00000.parquet is missing .*: put it back, or use --redo ingest"):
        list_shards(out, "train")
    write_shards(out, "train", 3, range(0))
    write_shards(out, "validation", 3, range(0))
    assert list_shards(out, "train") == [shard_name("train", shard) for shard in range(3)]
    Path(out.path("train/part-00001.parquet")).unlink()
    with pytest.raises(SbpError, match=r"train/part-00001.parquet is missing \(1 of 3 shards of train are\)"):
        list_shards(out, "train")
    out.write_table("train/part-00001.parquet", pa.table({"doc_id": []}))
    Path(out.path("validation/part-00002.parquet")).unlink()
    with pytest.raises(SbpError, match=r"validation/part-00002.parquet is missing \(1 of 3 shards of validation are\)"):
        list_shards(out, "validation")


def test_rows_come_by_id_in_the_order_asked_for(new_artifact) -> None:
    out = new_artifact("corpus")
    write_shards(out, "train", 3, range(7))
    table = fetch_rows(out, "train", [doc_id(number) for number in (5, 0, 4, 0)], ["number"])
    assert table["number"].to_pylist() == [5, 0, 4, 0]
    assert table["doc_id"].to_pylist() == [doc_id(number) for number in (5, 0, 4, 0)]
    assert fetch_rows(out, "train", [], ["number"]).num_rows == 0
    with pytest.raises(SbpError, match=r"part-00001.parquet lacks 1 documents, such as 0000000a0{24}: it is not"):
        fetch_rows(out, "train", [doc_id(1), doc_id(10)], ["number"])
    found = fetch_rows(out, "train", [doc_id(number) for number in (5, 10, 4, 8)], ["number"], skips_missing=True)
    assert found["number"].to_pylist() == [5, 4]


def test_stats_of_all_files_come_in_order(new_artifact) -> None:
    out = new_artifact("corpus")
    write_shards(out, "train", 3, range(4))
    assert list(read_stats(out, list_shards(out, "train"))) == [{"documents": 2}, {"documents": 1}, {"documents": 1}]
