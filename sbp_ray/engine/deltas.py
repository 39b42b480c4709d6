"""Many samples of one request as one stream, in which what piled up is one delta."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from sbp_ray.engine.messages import Delta

_PAUSE_S = 0.03  # between two messages of a request: 16 streams cost a core less than their engine does


async def merged(samples: Sequence[AsyncIterator[Delta]], pause_s: float = _PAUSE_S) -> AsyncIterator[list[Delta]]:
    """What the samples write, as it comes, at most every `pause_s`.

    What a sample wrote in the meantime is joined to one delta: the memory held is that of the text, however slowly it
    is read. When the reader stops, or a sample fails, the other samples are cancelled.
    """
    waiting: dict[int, Delta] = {}
    news = asyncio.Event()

    async def follow(sample: AsyncIterator[Delta]) -> None:
        try:
            async for delta in sample:
                waiting[delta.index] = delta.after(waiting.get(delta.index))
                news.set()
        finally:
            news.set()

    followers = [asyncio.create_task(follow(sample)) for sample in samples]
    try:
        while True:
            await news.wait()
            news.clear()
            if waiting:
                deltas = list(waiting.values())
                waiting.clear()
                yield deltas
            for follower in followers:
                if follower.done():
                    follower.result()  # raises what ended it
            if all(follower.done() for follower in followers) and not waiting:
                return
            await asyncio.sleep(pause_s)
    finally:
        for follower in followers:
            follower.cancel()
