"""What an engine that fails leaves is requested from another, and nothing but a refusal ends a sample."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fake_engines import Answer, FakeHandle, failing, hanging, sound
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError

from sbp_ray.engine.messages import (
    Alive,
    EngineLostError,
    OtherModelError,
    RefusedSample,
    SampledDocument,
    SampleRequest,
    Sampling,
)
from sbp_ray.errors import SbpError
from sbp_ray.generation import engines
from sbp_ray.generation.engines import Engines

SEEDS = {0: 11, 1: 22, 2: 33}
IDENTITY = {"synthesizer": "v1"}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_LONGEST_PAUSE_S", 0)


def sample(handle: FakeHandle, silent_for_s: float = 10, give_up_after_s: float = 10) -> list[Any]:
    async def read() -> list[Any]:
        asking = Engines(handle, IDENTITY, silent_for_s=silent_for_s, give_up_after_s=give_up_after_s)
        async with asyncio.timeout(240):
            return [one async for one in asking.sample("a-document", [1, 2], SEEDS, Sampling(20, 1.0, 1.0))]

    return asyncio.run(read())


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("sample", f"Traceback: {cause}", cause)


def test_only_what_a_dead_engine_has_not_given_is_asked_again_with_the_same_seeds_and_elsewhere() -> None:
    handle = FakeHandle(failing(ActorDiedError(), after=1), sound)
    results = sample(handle)
    assert sorted(one.sample for one in results) == [0, 1, 2]
    assert [request.seeds for request, _ in handle.requests] == [SEEDS, {1: 22, 2: 33}]
    assert handle.requests[1][1] == ("failing",)
    assert handle.open == 0


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        DeploymentUnavailableError.__new__(DeploymentUnavailableError),
        task_error(EngineLostError("EngineDeadError")),
    ],
)
def test_what_may_pass_is_tried_far_more_than_eight_times_and_ends_no_sample(error: Exception) -> None:
    handle = FakeHandle(*[failing(error)] * 15, sound)
    assert [type(one) for one in sample(handle)] == [SampledDocument] * 3
    assert len(handle.requests) == 16


def test_an_engine_that_stands_still_is_left_for_another() -> None:
    handle = FakeHandle(hanging, sound)
    assert len(sample(handle, silent_for_s=0.05)) == 3
    assert handle.requests[1][1] == ("hanging",)


def test_an_engine_that_goes_forward_is_waited_for_however_long_a_sample_takes() -> None:
    async def slow(request: SampleRequest) -> AsyncGenerator[Answer, None]:
        for _ in range(8):
            yield Alive("slow")
            await asyncio.sleep(0.05)
        for sample in request.seeds:
            yield SampledDocument(sample, [7], "stop")

    handle = FakeHandle(slow)
    assert len(sample(handle, silent_for_s=0.3, give_up_after_s=0.3)) == 3
    assert len(handle.requests) == 1


def test_when_no_engine_answers_the_job_stops_with_a_line_that_says_why() -> None:
    async def never(request: SampleRequest) -> AsyncGenerator[Answer, None]:
        await asyncio.Event().wait()
        yield Alive("")

    with pytest.raises(SbpError, match=r"no engine has answered for .* run the same command again"):
        sample(FakeHandle(never), give_up_after_s=0.1)
    with pytest.raises(SbpError, match=r"no engine has answered for .* \(last: .*ActorDiedError"):
        sample(FakeHandle(failing_at_once(ActorDiedError())), give_up_after_s=0.1)


def failing_at_once(error: Exception) -> Any:
    async def behaviour(request: SampleRequest) -> AsyncGenerator[Answer, None]:
        raise error
        yield Alive("")

    return behaviour


def test_a_document_that_ends_twenty_engines_stops_the_job_by_name() -> None:
    handle = FakeHandle(failing(ActorDiedError()))
    with pytest.raises(SbpError, match="d1 a-document was with 20 engines"):
        sample(handle)
    assert len(handle.requests) == 20


def test_a_service_that_gets_another_model_while_it_is_used_stops_the_job() -> None:
    handle = FakeHandle(failing(task_error(OtherModelError()), after=1))
    with pytest.raises(SbpError, match=r"^the service whose engines were used has another model .* the same command"):
        sample(handle)
    [(request, _)] = handle.requests
    assert request.identity == IDENTITY


def test_a_bug_in_the_replica_comes_out_with_its_message() -> None:
    with pytest.raises(RayTaskError, match="cannot add None"):
        sample(FakeHandle(failing(task_error(TypeError("cannot add None")))))


def test_a_refusal_is_a_result() -> None:
    async def refusing(request: SampleRequest) -> AsyncGenerator[Answer, None]:
        for sample in request.seeds:
            yield RefusedSample(sample, "too long")

    assert sample(FakeHandle(refusing)) == [RefusedSample(sample, "too long") for sample in SEEDS]
