"""A worker of the synthesize stage, whole but for its engines."""

import asyncio
import errno
import json
import shutil
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake_engines import Answer, FakeHandle, LocalCoordinator, failing, hanging, sound
from merged_shards import SIGNED, sign
from ray.exceptions import RayTaskError

from sbp_ray import schema
from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.config import (
    DecontaminateConfig,
    EngineConfig,
    PretrainConfig,
    SynthesizeConfig,
    SynthesizeResources,
    TrainingResources,
)
from sbp_ray.engine.messages import RefusedSample, SampleRequest
from sbp_ray.errors import Outcome, SbpError
from sbp_ray.generation import open_shard, shard_worker
from sbp_ray.generation.coordinator import coordinator_class
from sbp_ray.generation.merging import finished_shards, merged_name
from sbp_ray.generation.open_shard import Slots
from sbp_ray.generation.segments import DoneSamples, count_done, list_segments
from sbp_ray.generation.shard_worker import Inputs, ShardWorker
from sbp_ray.shards import shard_name
from sbp_ray.stages.synthesize import synthesize_documents

NUM_SHARDS, DOCUMENTS = 2, 6


class Stage:
    """The inputs of a worker, and calls of it."""

    def __init__(self, folder: Path, synthesizer: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
        self.corpus, self.embeddings, self.out = (
            Artifact(name, str(folder / name)) for name in ("corpus", "embeddings", "synthetic")
        )
        self._synthesizer, self._monkeypatch = synthesizer, monkeypatch
        for shard in range(NUM_SHARDS):
            ids = [bytes.fromhex(f"{shard}{number:031x}") for number in range(DOCUMENTS)]
            rows = [{"doc_id": i, "group": "", "text": "", "input_ids": [9, 8, 7 + i[-1]]} for i in ids]
            self.corpus.write_table(shard_name("train", shard), pa.Table.from_pylist(rows, schema.DOCUMENT))
            signed = [{"doc_id": i, "signature": sign(i.hex())} for i in ids]
            self.embeddings.write_table(shard_name("train", shard), pa.Table.from_pylist(signed, SIGNED))
        self.corpus.write_json(MANIFEST, {"settings": {"ingest": {"num_shards": NUM_SHARDS}}})
        self.coordinator = LocalCoordinator(NUM_SHARDS)

    def run(self, handle: FakeHandle, *, shard: int = 0, **settings: Any) -> Outcome:
        """One shard by a worker of its own."""
        [outcome] = self.run_together(handle, [shard], **settings)
        return outcome

    def run_together(
        self, handle: FakeHandle, shards: Sequence[int], *, samples: int = 2, max_in_flight: int = 4,
        max_bad: int = 10**6, every_s: float = 0.02,
    ) -> list[Outcome]:  # fmt: skip
        """Shards that one worker has open at once."""
        self._monkeypatch.setattr(shard_worker.serve, "get_deployment_handle", lambda *_, **__: handle)
        resources = SynthesizeResources(max_in_flight=max_in_flight, commit_every_s=every_s)
        cfg = SynthesizeConfig(
            samples_per_document=samples, max_tokens=30, min_tokens=2, max_repetition=1, resources=resources
        )
        inputs = Inputs(
            cfg, EngineConfig(max_model_len=100), DecontaminateConfig(), 13, self.corpus,
            self._synthesizer, self.out, "app", max_bad, self.coordinator,
        )  # fmt: skip

        async def call() -> list[Outcome]:
            async with asyncio.timeout(240):
                worker = ShardWorker(inputs)
                answers = await asyncio.gather(*(worker({"shard": shard, "quota": DOCUMENTS}) for shard in shards))
                return [Outcome(*json.loads(answer["outcome"])) for answer in answers]

        return asyncio.run(call())

    def committed(self, shard: int = 0) -> int:
        """Samples that a rerun need not request."""
        return count_done(self.out, [shard])


@pytest.fixture
def stage(tmp_path: Path, tiny_synthesizer: Artifact, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, tiny_synthesizer, monkeypatch)


def test_more_samples_of_a_document_than_slots_are_drawn_in_parts_and_never_wait_for_ever(stage: Stage) -> None:
    handle = FakeHandle()
    stats = stage.run(handle, samples=5, max_in_flight=2).get()
    assert stats["samples"] == 5 * DOCUMENTS
    assert handle.most_open <= 2
    assert handle.open == 0


def test_each_row_says_of_which_round_it_is(
    tmp_path: Path, tiny_synthesizer: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Artifact("synthesizer", str(tmp_path / "later"))
    shutil.copytree(tiny_synthesizer.url, later.url)
    later.write_json(MANIFEST, {"stats": {"round": 2}})
    for name, synthesizer, number in (("first", tiny_synthesizer, 1), ("second", later, 2)):
        stage = Stage(tmp_path / name, synthesizer, monkeypatch)
        stage.run(FakeHandle())
        assert set(stage.out.read_table(merged_name(0))["round"].to_pylist()) == {number}


def test_a_full_disk_cancels_the_draws_at_once_and_loses_nothing_committed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second commit fails; two engines hang, so that whoever waited for the draws would wait for ever."""
    commit, calls = DoneSamples.commit, []

    def full(self: DoneSamples, rows: list[dict[str, Any]]) -> None:
        calls.append(len(rows))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        commit(self, rows)

    monkeypatch.setattr(DoneSamples, "commit", full)
    monkeypatch.setattr(open_shard, "_SEGMENT_SAMPLES", 2)
    handle = FakeHandle(hanging, sound)
    answer = stage.run(handle)
    assert "No space left on device" in answer.message
    assert "run the same command again" in answer.message
    assert handle.open == 0
    assert stage.committed() == calls[0] == stage.coordinator.actor.read()["documents"]  # counted once it is safe
    monkeypatch.setattr(DoneSamples, "commit", commit)
    rerun = FakeHandle()
    assert stage.run(rerun).get()["samples"] == 2 * DOCUMENTS
    assert sum(len(request.seeds) for request, _ in rerun.requests) == 2 * DOCUMENTS - calls[0]


def test_a_bug_comes_out_and_what_was_finished_before_it_is_committed(stage: Stage) -> None:
    error = RayTaskError("draw", "Traceback: cannot add None", TypeError("cannot add None"))

    async def then_a_bug(request: SampleRequest) -> AsyncGenerator[Answer, None]:
        while stage_handle.open > len(request.seeds):  # the others are done, and taken in
            await asyncio.sleep(0.01)
        async for answer in failing(error)(request):
            yield answer

    stage_handle = FakeHandle(then_a_bug, sound)
    with pytest.raises(RayTaskError, match="cannot add None"):
        stage.run(stage_handle, max_in_flight=2 * DOCUMENTS, every_s=60)
    assert stage.committed() == 2 * DOCUMENTS - 2


async def refusing(request: SampleRequest) -> AsyncGenerator[Answer, None]:
    for sample in request.seeds:
        yield RefusedSample(sample, "the engine says no")


def test_the_error_budget_is_charged_with_each_commit_and_a_larger_one_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_shard, "_SEGMENT_SAMPLES", 2)
    handle = FakeHandle(refusing, refusing, hanging)  # the shard never ends
    answer = stage.run(handle, max_bad=3, max_in_flight=4)
    assert "4 samples could not be written" in answer.message
    lines = stage.out.read_bytes("quarantine/part-00000.jsonl").decode().splitlines()
    assert [json.loads(line)["detail"] for line in lines] == ["the engine says no"] * 4
    stats = stage.run(FakeHandle(), max_bad=4).get()
    assert (stats["samples"], stats["drops"]["refused_by_engine"]) == (2 * DOCUMENTS, 4)


def test_a_shard_that_vanishes_while_the_job_runs_is_named_and_the_job_goes_on_once_it_is_back(
    stage: Stage,
) -> None:
    """The second shard goes while the first is drawn."""
    there = Path(stage.corpus.path(shard_name("train", 1)))
    away = there.with_suffix(".away")

    async def taking_it_away(request: SampleRequest) -> AsyncGenerator[Answer, None]:
        if there.exists():
            there.rename(away)
        async for answer in sound(request):
            yield answer

    answers = [stage.run(FakeHandle(taking_it_away), shard=shard) for shard in (0, 1)]
    assert f"{there} is not there: bring it back" in answers[1].message
    assert stage.committed(1) == 0
    away.rename(there)
    handle = FakeHandle()
    for shard in (0, 1):
        if shard not in finished_shards(stage.out):
            assert stage.run(handle, shard=shard).message == ""
    assert sum(len(request.seeds) for request, _ in handle.requests) == 2 * DOCUMENTS
    assert [stage.out.read_stats(merged_name(shard))["samples"] for shard in (0, 1)] == [2 * DOCUMENTS] * 2
    assert list_segments(stage.out, 1) == []


@pytest.mark.usefixtures("in_process")
def test_joint_training_starts_on_the_finished_shards_while_others_are_drawn(
    stage: Stage, tiny_synthesizer: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second shard is half done when a run of its own takes what is finished, and done when that is resumed."""
    from sbp_ray.stages import pretrain
    from sbp_ray.text.tokenizer import load_tokenizer, special_ids

    monkeypatch.setattr(open_shard, "_SEGMENT_SAMPLES", 2)
    finished = stage.run(FakeHandle()).get()
    assert stage.run(FakeHandle(sound, refusing, hanging), shard=1, max_bad=1).message
    assert stage.committed(1) > 0
    stage.out.write_json(STARTED, {"recipe": {"inputs": {"synthesizer": tiny_synthesizer.fingerprint()}}})
    early, lm = Artifact("synthetic", str(tmp_path / "early")), Artifact("lm", str(tmp_path / "lm"))
    special = special_ids(load_tokenizer(tiny_synthesizer.local_copy("model")))
    training = TrainingInputs(stage, tiny_synthesizer, early)
    taken = training.take()
    assert (taken["d1"], taken["documents"]) == (DOCUMENTS, finished["documents"])
    here = TrainingResources(in_process=True)
    cfg = PretrainConfig(seq_len=64, batch_rows=1, total_tokens=64, peak_lr=1e-3, resources=here)
    packing = pretrain.Packing(cfg, False, special, 1000, {"synthetic": (early, "")}, lm)
    packed = pretrain.pack_documents("pretrain-sbp", packing)
    assert packed["synthetic"].stats["examples"] == finished["documents"] > 0

    stage.run(FakeHandle(), shard=1)
    assert training.take() == taken
    again = pretrain.pack_documents("pretrain-sbp", packing)
    assert again == packed


class TrainingInputs:
    """The synthesize stage of the other run, which takes what is finished."""

    def __init__(self, stage: Stage, synthesizer: Artifact, early: Artifact) -> None:
        self._stage, self._synthesizer, self._early = stage, synthesizer, early

    def take(self) -> dict[str, Any]:
        return synthesize_documents(
            SynthesizeConfig(finished_of=self._stage.out.url),
            engine=EngineConfig(),
            decontaminate=DecontaminateConfig(),
            shingle_tokens=13,
            corpus=self._stage.corpus,
            embeddings=self._stage.embeddings,
            synthesizer=self._synthesizer,
            out=self._early,
        )


# What workers keep open


def test_a_shard_that_fails_leaves_its_slots_to_the_one_beside_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request fails when its slots have just gone to the next, which never runs a line of its own."""
    requests = []

    async def sample(self: Any, name: str, prompt: Any, seeds: dict[int, int], _: Any) -> AsyncGenerator[Answer, None]:
        requests.append(name)
        for number in seeds:
            yield RefusedSample(number, "no")
        if len(requests) == 1:
            raise SbpError("the key is refused")

    monkeypatch.setattr(shard_worker.Engines, "sample", sample)
    # Both shards are read in threads, and either one may ask first.
    outcomes = stage.run_together(FakeHandle(), [0, 1], max_in_flight=3)
    whole, failed = sorted(outcomes, key=lambda outcome: outcome.message)
    assert failed.message == "the key is refused"
    assert whole.get()["samples"] == 2 * DOCUMENTS


def test_who_waits_for_many_slots_holds_none_meanwhile() -> None:
    async def use() -> None:
        slots = Slots(4)
        await slots.take(3)
        waiting = asyncio.create_task(slots.take(4))
        await asyncio.sleep(0)
        assert (slots.taken, waiting.done()) == (3, False)
        await slots.give_back(3)
        await asyncio.wait_for(waiting, 5)
        assert slots.taken == 4
        await slots.give_back(4)
        await asyncio.wait_for(slots.take(9), 5)  # more than there are: all, not for ever

    asyncio.run(use())


def test_slots_of_workers_without_work_go_to_the_others_once_no_shard_is_left() -> None:
    """Three shards and two workers: the last shard's worker may use both workers' slots."""
    coordinator = coordinator_class()({9: 5}, 3, 2)
    assert coordinator.committed("a", 0, 0, {}) == (5, 1.0)
    assert coordinator.committed("b", 1, 2, {"documents": 4}) == (7, 1.0)
    coordinator.closed("b", 1)
    assert coordinator.committed("a", 0, 1, {}) == (8, 1.0)  # the third shard is not open yet
    assert coordinator.committed("b", 2, 0, {"documents": 1}) == (8, 1.0)
    coordinator.closed("a", 0)
    assert coordinator.committed("b", 2, 0, {}) == (8, 2.0)
    assert coordinator.read() == {"documents": 5}


def test_a_shard_that_another_worker_takes_over_counts_its_bad_samples_once() -> None:
    coordinator = coordinator_class()({}, 1, 2)
    coordinator.committed("a", 0, 3, {})
    assert coordinator.committed("b", 0, 3, {}) == (3, 2.0)  # a, which died, holds no slots
