"""A deployment handle without a deployment: what the tests of the batch path draw from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from sbp_ray.engine.messages import Alive, Drawn, Draws, Refused

Answer = Alive | Drawn | Refused
Behaviour = Callable[[Draws], AsyncGenerator[Answer, None]]


async def sound(draws: Draws) -> AsyncGenerator[Answer, None]:
    """Each sample has twenty tokens, from its seed."""
    yield Alive("first")
    for sample, seed in draws.seeds.items():
        await asyncio.sleep(0)
        yield Drawn(sample, [5 + (seed >> place) % 250 for place in range(20)], "stop", 1)


async def hanging(draws: Draws) -> AsyncGenerator[Answer, None]:
    """Taken on, and never heard of again."""
    yield Alive("hanging")
    await asyncio.Event().wait()


def failing(error: Exception, after: int = 0) -> Behaviour:
    """Taken on; so many samples, and then an error."""

    async def behaviour(draws: Draws) -> AsyncGenerator[Answer, None]:
        yield Alive("failing")
        for sample in list(draws.seeds)[:after]:
            yield Drawn(sample, [7] * 20, "stop")
        raise error

    return behaviour


class _Answers:
    def __init__(self, handle: FakeHandle, draws: Draws, behaviour: Behaviour) -> None:
        self._handle, self._open, self._stream = handle, len(draws.seeds), behaviour(draws)
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
        self.asked: list[tuple[Draws, tuple[str, ...]]] = []
        self.draw = self

    def options(self, **_: Any) -> FakeHandle:
        return self

    def remote(self, draws: Draws, not_on: tuple[str, ...] = ()) -> _Answers:
        self.asked.append((draws, not_on))
        behaviour = self._behaviours[min(len(self.asked), len(self._behaviours)) - 1]
        return _Answers(self, draws, behaviour)
