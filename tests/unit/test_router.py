"""A request that one replica has no room for goes to the others; an engine that stands still is not an idle one."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from sbp_ray.engine.bodies import SynthesizeRequest
from sbp_ray.engine.health import StallWatch
from sbp_ray.engine.messages import Accepted, EngineLostError, Refusal
from sbp_ray.engine.router import two_of, write_where_there_is_room

BODY = SynthesizeRequest(document="the river")
ACCEPTED = Accepted(3, 5, "v1", [])


class Answers:
    def __init__(self, first: Any) -> None:
        self._messages, self.is_cancelled = iter([first]), False

    async def __aiter__(self) -> AsyncIterator[Any]:
        for message in self._messages:
            if isinstance(message, Exception):
                raise message
            yield message

    def cancel(self) -> None:
        self.is_cancelled = True


def ask(replicas: dict[str, Any]) -> tuple[Any, list[tuple[str, ...]]]:
    """The first message, and what each attempt avoided; the router takes the first replica that it may, else `a`."""
    avoided: list[tuple[str, ...]] = []

    def write(body: Any, not_on: tuple[str, ...]) -> Answers:
        avoided.append(not_on)
        return Answers(next((first for name, first in replicas.items() if name not in not_on), replicas["a"]))

    async def first() -> Any:
        return (await write_where_there_is_room(write, BODY))[1]

    return asyncio.run(first()), avoided


def full(name: str, retry_after_s: int) -> Refusal:
    return Refusal(429, "full", retry_after_s, name)


def test_a_replica_with_room_is_found_behind_full_ones() -> None:
    assert ask({"a": full("a", 9), "b": full("b", 4), "c": ACCEPTED}) == (ACCEPTED, [(), ("a",), ("a", "b")])


def test_when_all_are_full_each_is_asked_once_and_the_shortest_wait_is_told() -> None:
    answer, avoided = ask({"a": full("a", 9), "b": full("b", 4)})
    assert answer == full("b", 4)
    assert avoided == [(), ("a",), ("a", "b")]


def test_what_no_replica_would_take_is_asked_once() -> None:
    refusal = Refusal(400, "longer than the window")
    assert ask({"a": refusal, "b": ACCEPTED}) == (refusal, [()])


@pytest.mark.parametrize(
    "error", [ActorDiedError(), RayTaskError("write", "Traceback", EngineLostError("EngineDeadError"))]
)
def test_a_lost_engine_is_told_from_a_bug(error: Exception) -> None:
    with pytest.raises(EngineLostError):
        ask({"a": error})
    with pytest.raises(RayTaskError, match="cannot add None"):
        ask({"a": RayTaskError("write", "Traceback: cannot add None", TypeError("cannot add None"))})


def test_the_router_takes_two_of_those_that_are_not_to_be_avoided_and_any_where_all_are() -> None:
    names = ["a", "b", "c", "d"]
    for seed in range(20):
        assert set(two_of(names, ["b"], random.Random(seed))) < {0, 2, 3}
    assert two_of(names, ["a", "b", "d"]) == [2]
    assert sorted(two_of(["a", "b"], ["a", "b"])) == [0, 1]
    assert two_of([], ["a"]) == []


def test_an_engine_stands_still_when_it_has_work_and_makes_no_step() -> None:
    watch = StallWatch(10, now=0)
    looks = [(0, 5, True), (9, 5, True), (9.5, 6, True), (19, 6, True), (19.5, 6, True)]
    assert [watch.is_stalled(steps=steps, has_work=work, now=now) for now, steps, work in looks] == [False] * 4 + [True]
    idle = StallWatch(10, now=0)
    assert not any(idle.is_stalled(steps=5, has_work=False, now=now) for now in (0, 9, 50))
    assert not idle.is_stalled(steps=5, has_work=True, now=59)  # work came after 50
    assert idle.is_stalled(steps=5, has_work=True, now=60)
