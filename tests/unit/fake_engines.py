"""A deployment handle without a deployment, and a coordinator without an actor, for the tests of the batch path."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any

from sbp_ray.engine.messages import Alive, RefusedSample, SampledDocument, SampleRequest
from sbp_ray.generation.coordinator import coordinator_class

Answer = Alive | SampledDocument | RefusedSample
Behaviour = Callable[[SampleRequest], AsyncGenerator[Answer, None]]


async def sound(request: SampleRequest) -> AsyncGenerator[Answer, None]:
    """Each sample has twenty tokens, from its seed."""
    yield Alive("first")
    for sample, seed in request.seeds.items():
        await asyncio.sleep(0)
        yield SampledDocument(sample, [5 + (seed >> place) % 250 for place in range(20)], "stop", 1)


async def hanging(request: SampleRequest) -> AsyncGenerator[Answer, None]:
    """Taken on, and never heard of again."""
    yield Alive("hanging")
    await asyncio.Event().wait()


def failing(error: Exception, after: int = 0) -> Behaviour:
    """Taken on; so many samples, and then an error."""

    async def behaviour(request: SampleRequest) -> AsyncGenerator[Answer, None]:
        yield Alive("failing")
        for sample in list(request.seeds)[:after]:
            yield SampledDocument(sample, [7] * 20, "stop")
        raise error

    return behaviour


class _Answers:
    def __init__(self, handle: FakeHandle, request: SampleRequest, behaviour: Behaviour) -> None:
        self._handle, self._open, self._stream = handle, len(request.seeds), behaviour(request)
        handle.open += self._open
        handle.most_open = max(handle.most_open, handle.open)

    def __aiter__(self) -> _Answers:
        return self

    async def __anext__(self) -> Answer:
        answer = await anext(self._stream)
        if not isinstance(answer, Alive):
            self._close(1)
        return answer

    def cancel(self) -> None:
        self._close(self._open)

    def _close(self, number: int) -> None:
        self._handle.open -= number
        self._open -= number


class FakeHandle:
    """Behaves to each request as the next of `behaviours` says, and to all after them like the last."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self._behaviours = list(behaviours) or [sound]
        self.open = self.most_open = 0
        self.requests: list[tuple[SampleRequest, tuple[str, ...]]] = []
        self.sample = self

    def options(self, **_: Any) -> FakeHandle:
        return self

    def remote(self, request: SampleRequest, not_on: tuple[str, ...] = ()) -> _Answers:
        self.requests.append((request, not_on))
        behaviour = self._behaviours[min(len(self.requests), len(self._behaviours)) - 1]
        return _Answers(self, request, behaviour)


class LocalCoordinator:
    """The driver's actor, in this process."""

    def __init__(self, num_shards: int) -> None:
        self.actor = coordinator_class()({}, num_shards, 1)
        self.committed = SimpleNamespace(remote=self._committed)
        self.closed = SimpleNamespace(remote=self.actor.closed)

    async def _committed(self, *arguments: Any) -> tuple[int, float]:
        return self.actor.committed(*arguments)
