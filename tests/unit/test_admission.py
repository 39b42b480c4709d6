"""The token budget, and the stream that joins a request's samples."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sbp_ray.engine.admission import Pace, TokenBudget
from sbp_ray.engine.deltas import merged
from sbp_ray.engine.messages import Delta


def test_what_fits_is_taken_on_to_the_last_token() -> None:
    budget = TokenBudget(100, 4)
    with budget.held(60, 2, 30):
        assert budget.retry_after_s(40, 2, 20) is None
        assert budget.retry_after_s(41, 1, 41) == 1
        assert budget.retry_after_s(1, 3, 1) == 1
    assert (budget.tokens, budget.sequences) == (0, 0)


def test_what_a_sample_gives_back_is_there_before_the_request_ends() -> None:
    budget = TokenBudget(100, 4)
    with budget.held(100, 4, 25) as lease:
        budget.give_back(lease, 30, 1)
        assert budget.retry_after_s(30, 1, 30) is None
    assert (budget.tokens, budget.sequences) == (0, 0)


def test_a_request_that_fails_gives_everything_back() -> None:
    budget = TokenBudget(100, 4)
    with pytest.raises(RuntimeError), budget.held(80, 2, 40) as lease:
        budget.give_back(lease, 10, 1)
        raise RuntimeError
    assert (budget.tokens, budget.sequences) == (0, 0)


def paced(seconds_per_token: float = 0.1) -> TokenBudget:
    """Room for 100 tokens in 10 texts, and an engine at so many seconds a token."""
    return TokenBudget(100, 10, pace=Pace(seconds_per_token=seconds_per_token))


def test_retry_after_is_when_what_runs_has_had_its_time(clock: list[float]) -> None:
    """100 tokens at 0.1 s each take 10 s; 4 s later there are 6 s left."""
    budget = paced()
    with budget.held(100, 1, 100):
        clock[0] += 4
        assert budget.retry_after_s(100, 1, 100) == 6


def test_only_as_much_must_end_as_is_missing(clock: list[float]) -> None:
    """Of texts that end in 2, 3 and 5 s the first two make room for 60 tokens."""
    budget = paced()
    with budget.held(30, 1, 20), budget.held(30, 1, 30), budget.held(40, 1, 50):
        assert budget.retry_after_s(60, 1, 10) == 3


def test_who_was_told_a_time_is_counted_on_and_the_next_one_is_told_a_later_time(clock: list[float]) -> None:
    """Texts of 10 s fill it: of four that are refused each is told ten seconds more."""
    budget = paced()
    with budget.held(100, 1, 100):
        assert [budget.retry_after_s(100, 1, 100) for _ in range(4)] == [10, 20, 30, 40]


def test_who_is_expected_by_another_replica_is_not_counted_on(clock: list[float]) -> None:
    budget = paced()
    with budget.held(100, 1, 100):
        told = [budget.retry_after_s(100, 1, 100, is_expected_back=False) for _ in range(2)]
        assert told == [10, 10]


def test_at_three_times_the_capacity_all_are_served_by_the_time_that_they_were_told(clock: list[float]) -> None:
    """Ten clients at once, each wanting a third of it: whoever comes back when told is taken on, at the first or second
    time. An engine that keeps its pace is simulated."""
    budget = TokenBudget(90, 10, pace=Pace(seconds_per_token=0.1))
    waiting = dict.fromkeys(range(10), clock[0])
    asked = dict.fromkeys(waiting, 0)
    running = []
    while waiting:
        clock[0] = min([*waiting.values(), *(end for end, _ in running)])
        for held in [held for held in running if held[0] <= clock[0]]:
            held[1].__exit__(None, None, None)
            running.remove(held)
        for client in [client for client, at in waiting.items() if at <= clock[0]]:
            asked[client] += 1
            wait_s = budget.retry_after_s(30, 1, 30)
            if wait_s is None:
                lease = budget.held(30, 1, 30)
                lease.__enter__()
                running.append((clock[0] + 3, lease))
                del waiting[client]
            else:
                waiting[client] = clock[0] + wait_s
    assert max(asked.values()) == 2


def test_texts_that_end_early_are_learnt_from(clock: list[float]) -> None:
    """Each after a tenth of its time: the mean goes from 1 towards a tenth."""
    budget = paced()
    for _ in range(100):
        with budget.held(100, 1, 100) as lease:
            clock[0] += 1
            budget.give_back(lease, 100, 1)
    with budget.held(100, 1, 100):
        assert budget.retry_after_s(100, 1, 100) in (1, 2)


def test_a_text_that_outlives_what_is_usual_is_given_all_its_time(clock: list[float]) -> None:
    budget = paced()
    budget.pace.share_written = 0.1
    with budget.held(100, 1, 100):
        clock[0] += 3
        assert budget.retry_after_s(100, 1, 100) == 7


def test_the_pace_is_the_time_between_steps_while_there_is_work() -> None:
    pace = Pace()
    for now, goes_on in ((0.0, True), (0.5, True), (1.0, False), (60.0, True), (60.5, True)):
        pace.step(now, goes_on=goes_on)
    assert pace.seconds_per_token == pytest.approx(0.5)


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
