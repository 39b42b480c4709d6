"""The events of a stream: text, heartbeats, and what ends it early."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from openai._streaming import SSEDecoder

from sbp_ray.engine.answers import CompletionAnswer
from sbp_ray.engine.bodies import CompletionRequest
from sbp_ray.engine.messages import Accepted, Delta, EngineLostError, Refusal
from sbp_ray.engine.streams import events_of

HEARTBEAT_S = 0.02
ANSWER = CompletionRequest(model="synthesizer", prompt="x", stream=True)


def streamed(*script: Any, within_s: float = 60) -> list[str]:
    """The events of a replica that does what the script says: messages, errors, and events that it waits for."""
    beaten = 0

    async def replica() -> AsyncGenerator[Any, None]:
        for message in script:
            if isinstance(message, Exception):
                raise message
            if message == "wait for a heartbeat":
                while not beaten:
                    await asyncio.sleep(0)
            else:
                yield message

    async def begin() -> tuple[Any, Any]:
        messages = replica()
        return messages, await anext(messages)

    async def read() -> list[str]:
        nonlocal beaten
        coming = asyncio.ensure_future(begin())
        events = []
        deadline = time.monotonic() + within_s
        async for event in events_of(coming, CompletionAnswer(ANSWER), deadline, "too late", HEARTBEAT_S):
            beaten += event.startswith(":")
            events.append(event)
        return events

    return asyncio.run(read())


ACCEPTED = Accepted(prompt_tokens=1, seed=1, synthesizer="f", deltas=[Delta(0, "the", 1)])
LAST = [Delta(0, " sea", 2, "stop", 3)]


def data(events: list[str]) -> list[Any]:
    """As OpenAI's client reads them, which must pass over heartbeats."""
    decoder = SSEDecoder()
    read = [event.data for event in decoder.iter_bytes(iter([event.encode() for event in events]))]
    return [text if text == "[DONE]" else json.loads(text) for text in read if text]


def texts(events: list[str]) -> list[str]:
    return [choice["text"] for event in data(events)[:-1] for choice in event["choices"]]


def test_a_stream_that_waits_for_an_engine_and_between_texts_says_that_it_is_alive() -> None:
    for script in (["wait for a heartbeat", ACCEPTED, LAST], [ACCEPTED, "wait for a heartbeat", LAST]):
        events = streamed(*script)
        assert any(event.startswith(": ") for event in events)
        assert texts(events) == ["the", " sea"]
        assert data(events)[-1] == "[DONE]"


def test_a_refusal_after_the_status_line_and_a_lost_engine_are_the_last_event() -> None:
    [refused] = data(streamed(Refusal(400, "too long", param="prompt")))
    assert (refused["error"]["code"], refused["error"]["param"]) == (400, "prompt")
    lost = data(streamed(ACCEPTED, EngineLostError()))
    assert lost[0]["choices"][0]["text"] == "the"
    assert lost[-1]["error"]["code"] == 503


def test_a_fault_of_ours_is_the_last_event_too() -> None:
    events = data(streamed(ACCEPTED, TypeError("cannot add None")))
    assert (events[-1]["error"]["code"], events[-1]["error"]["type"]) == (500, "server_error")
    assert "None" not in events[-1]["error"]["message"]


def test_a_stream_ends_at_its_deadline() -> None:
    async def read() -> list[str]:
        never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        events = events_of(never, CompletionAnswer(ANSWER), time.monotonic() + 0.05, "too late", HEARTBEAT_S)
        read = [event async for event in events]
        assert never.cancelled()
        return read

    [error] = data(asyncio.run(read()))
    assert (error["error"]["code"], error["error"]["message"]) == (504, "too late")


def test_a_client_that_leaves_stops_the_replica() -> None:
    closed = []

    async def replica() -> AsyncGenerator[Any, None]:
        try:
            yield ACCEPTED
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def leave() -> None:
        messages = replica()
        coming = asyncio.ensure_future(asyncio.sleep(0, (messages, await anext(messages))))
        events = events_of(coming, CompletionAnswer(ANSWER), time.monotonic() + 60, "too late", HEARTBEAT_S)
        while (await anext(events)).startswith(":"):
            pass
        await events.aclose()

    asyncio.run(leave())
    assert closed == [True]
