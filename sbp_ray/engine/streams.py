"""Server-sent events of an answer that is being written, which show that the stream is alive while there is no text."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import Any

from sbp_ray.engine.answers import CompletionAnswer, SynthesizeAnswer
from sbp_ray.engine.http_limits import error_body
from sbp_ray.engine.messages import Delta, EngineLostError, Refusal

logger = logging.getLogger(__name__)

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Proxies are to pass each event on as it comes; nginx needs to be told so."""

OURS = "an error of this service, which its logs have: ask for something else"
LOST = "the engine that was writing this died and is being replaced: send the request again"

# Proxies cut a connection on which nothing comes, some after five seconds.
_HEARTBEAT_S = 2.5
_HEARTBEAT = ": waiting\n\n"  # a comment, which clients of server-sent events pass over


async def events_of(
    coming: Awaitable[tuple[AsyncGenerator[list[Delta], None], Any]],
    answer: SynthesizeAnswer | CompletionAnswer,
    deadline: float,
    too_late: str,
    heartbeat_s: float = _HEARTBEAT_S,
) -> AsyncGenerator[str, None]:
    """The stream's events, and a heartbeat wherever none comes for `heartbeat_s`.

    An error that comes after the status line is the last event, and no `[DONE]` follows it.

    Args:
        coming: a replica's messages, and the first of them.
        deadline: of `time.monotonic()`.
        too_late: what is said when it has passed.
    """
    async with aclosing(_written(coming, answer)) as events:
        waiting = asyncio.ensure_future(anext(events))
        try:
            while True:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    yield _event(error_body(504, too_late))
                    return
                await asyncio.wait([waiting], timeout=min(heartbeat_s, left_s))
                if not waiting.done():
                    yield _HEARTBEAT
                    continue
                try:
                    event = waiting.result()
                except StopAsyncIteration:
                    return
                waiting = asyncio.ensure_future(anext(events))
                yield event
        finally:
            waiting.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await waiting


async def _written(
    coming: Awaitable[tuple[AsyncGenerator[list[Delta], None], Any]], answer: SynthesizeAnswer | CompletionAnswer
) -> AsyncGenerator[str, None]:
    try:
        deltas, first = await coming
        async with aclosing(deltas):
            if isinstance(first, Refusal):
                yield _event(error_body(first.status, first.message, first.param))
                return
            answer.begin(first)
            for event in answer.events(first.deltas):
                yield _event(event)
            async for new in deltas:
                for event in answer.events(new):
                    yield _event(event)
            for event in answer.last_events():
                yield _event(event)
        yield "data: [DONE]\n\n"
    except EngineLostError:
        yield _event(error_body(503, LOST))
    except Exception:
        logger.exception("a stream ends early")
        yield _event(error_body(500, OURS))


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
