"""Whether an application can take requests, and whether an engine stands still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_HOLDS_FOR_S = 1.0


class Health:
    """Asks Serve's controller at most once a second, and remembers the answer.

    A caller that comes while an answer is fetched waits for that answer: the check needs no key, and a crowd must not
    reach the controller, which all applications of the cluster share.
    """

    def __init__(self, fetch: Callable[[], str]) -> None:
        """`fetch` blocks; it is called in a thread."""
        self._fetch = fetch
        self._fetching = asyncio.Lock()
        self._fetched_at = float("-inf")
        self._status = ""

    async def status(self) -> str:
        """As of a second ago at most."""
        async with self._fetching:
            if time.monotonic() - self._fetched_at > _HOLDS_FOR_S:
                self._status = await asyncio.to_thread(self._fetch)
                self._fetched_at = time.monotonic()
        return self._status


class StallWatch:
    """Tells an engine that stands still from one without work; fed with the engine's counters now and then."""

    def __init__(self, after_s: float, now: float) -> None:
        self._after_s, self._moved_at, self._steps = after_s, now, -1

    def is_stalled(self, *, steps: int, has_work: bool, now: float) -> bool:
        """Whether the engine has had work for `after_s` and made no step."""
        if steps != self._steps or not has_work:
            self._steps, self._moved_at = steps, now
        return now - self._moved_at >= self._after_s
