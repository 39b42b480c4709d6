"""The token budget, and the stream that joins a request's samples."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sbp_ray.engine import admission
from sbp_ray.engine.admission import TokenBudget
from sbp_ray.engine.deltas import merged
from sbp_ray.engine.messages import Delta


def test_what_fits_is_taken_on_to_the_last_token() -> None:
    budget = TokenBudget(100, 4)
    with budget.held(60, 2):
        assert budget.retry_after_s(40, 2) is None
        assert budget.retry_after_s(41, 1) == 1
        assert budget.retry_after_s(1, 3) == 1
    assert (budget.tokens, budget.sequences) == (0, 0)


def test_what_a_sample_gives_back_is_there_before_the_request_ends() -> None:
    budget = TokenBudget(100, 4)
    with budget.held(100, 4) as lease:
        budget.give_back(lease, 30, 1)
        assert budget.retry_after_s(30, 1) is None
    assert (budget.tokens, budget.sequences) == (0, 0)


def test_a_request_that_fails_gives_everything_back() -> None:
    budget = TokenBudget(100, 4)
    with pytest.raises(RuntimeError), budget.held(80, 2) as lease:
        budget.give_back(lease, 10, 1)
        raise RuntimeError
    assert (budget.tokens, budget.sequences) == (0, 0)


def test_retry_after_is_how_long_the_missing_share_takes_to_be_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held 20 s on average and full: the missing half of what is in flight is free in 10 s."""
    clock = [0.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: clock[0])
    budget = TokenBudget(100, 10)
    with budget.held(100, 1):
        clock[0] = 20.0
    with budget.held(100, 1):
        assert budget.retry_after_s(50, 1) == 10
        assert budget.retry_after_s(100, 1) == 20


def test_deltas_that_pile_up_are_joined_and_none_is_lost() -> None:
    async def sample(index: int, count: int) -> AsyncIterator[Delta]:
        for number in range(count):
            yield Delta(index, f"{number},", number + 1, "stop" if number == count - 1 else None)
            await asyncio.sleep(0)

    async def read() -> list[list[Delta]]:
        return [deltas async for deltas in merged([sample(0, 50), sample(1, 3)], pause_s=0.01)]

    batches = asyncio.run(read())
    assert len(batches) < 20  # not one for each of the 53 deltas
    for index, count in ((0, 50), (1, 3)):
        own = [delta for deltas in batches for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in own) == "".join(f"{number}," for number in range(count))
        assert (own[-1].num_tokens, own[-1].finish_reason) == (count, "stop")


def test_a_sample_that_fails_ends_the_stream_and_the_others() -> None:
    ended = []

    async def failing() -> AsyncIterator[Delta]:
        yield Delta(0, "a", 1)
        raise RuntimeError("dead")

    async def endless() -> AsyncIterator[Delta]:
        try:
            while True:
                yield Delta(1, "b", 1)
                await asyncio.sleep(0.001)
        finally:
            ended.append(True)

    async def read() -> None:
        async for _ in merged([failing(), endless()], pause_s=0.001):
            pass

    with pytest.raises(RuntimeError, match="dead"):
        asyncio.run(read())
    assert ended == [True]
