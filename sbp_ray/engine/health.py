"""Whether an application can take requests, asked of Serve's controller at most once a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_HOLDS_FOR_S = 1.0


class Health:
    """Remembers the last answer. Who asks while one is being fetched waits for that: the check needs no key, and a
    crowd must not reach the controller, which all applications of the cluster share."""

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
