"""Whether an application can take requests, and whether an engine stands still."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping

_HOLDS_FOR_S = 1.0
_ANSWERS_WITHIN_S = 2.0
# A controller that has died is back in some ten seconds, and a new configuration is built for half a minute.
_REMEMBERED_FOR_S = 60.0


class UnknownStatusError(Exception):
    """The status cannot be told just now, which says nothing about the engines."""


def status_of(deployment: str, replicas: Mapping[str, int]) -> str:
    """`ready`, `asleep` or `starting`, by what Serve says of the deployment, and of how many replicas.

    Raises:
        UnknownStatusError: the controller is new, and has not heard from the replicas yet that ran under the last.
    """
    if replicas.get("RUNNING", 0):
        return "ready"
    if replicas.get("RECOVERING", 0):
        raise UnknownStatusError
    return "asleep" if deployment == "HEALTHY" else "starting"


class Health:
    """Asks Serve's controller at most once a second, and remembers the answer.

    All callers that come while an answer is fetched wait for that answer: the check needs no key, and a crowd must not
    reach the controller, which all applications of the cluster share. While the controller is silent, or does not know,
    the last answer holds: engines go on serving without it. Where that lasts, an engine that was ready is asked itself,
    and so is one of which an ingress that has just started was never told.
    """

    def __init__(
        self,
        fetch: Callable[[], str],
        engine_answers: Callable[[], Awaitable[bool]],
        answers_within_s: float = _ANSWERS_WITHIN_S,
    ) -> None:
        """`fetch` blocks, and is called in a thread; it raises `UnknownStatusError` where there is nothing to tell."""
        self._fetch, self._engine_answers = fetch, engine_answers
        self._answers_within_s = answers_within_s
        self._fetching: asyncio.Task[str] | None = None
        self._confirming: asyncio.Task[None] | None = None
        self._asked_at = self._known_at = float("-inf")
        self._status: str | None = None

    async def status(self) -> str:
        """As of a second ago where the controller answers, else the last that was known."""
        now = time.monotonic()
        if self._fetching is None and now - self._asked_at > _HOLDS_FOR_S:
            self._fetching = asyncio.create_task(asyncio.to_thread(self._fetch))
            self._fetching.add_done_callback(self._take)
            self._asked_at = now
        if self._fetching is not None:
            await asyncio.wait([self._fetching], timeout=self._answers_within_s)
        if not self._is_known() and self._status in ("ready", None):
            if self._confirming is None or self._confirming.done():
                self._confirming = asyncio.create_task(self._confirm())
            await asyncio.wait([self._confirming])
        return self._status if self._status and self._is_known() else "starting"

    def _is_known(self) -> bool:
        return time.monotonic() - self._known_at < _REMEMBERED_FOR_S

    def _take(self, fetching: asyncio.Task[str]) -> None:
        self._fetching = None
        if not isinstance(fetching.exception(), UnknownStatusError):
            self._status, self._known_at = fetching.result(), time.monotonic()

    async def _confirm(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._answers_within_s):
                if await self._engine_answers():
                    self._status, self._known_at = "ready", time.monotonic()


class StallWatch:
    """Tells an engine that stands still from one without work; fed with the engine's counters now and then."""

    def __init__(self, after_s: float, now: float) -> None:
        self._after_s, self._moved_at, self._steps = after_s, now, -1

    def is_stalled(self, *, steps: int, has_work: bool, now: float) -> bool:
        """Whether the engine has had work for `after_s` and made no step."""
        if steps != self._steps or not has_work:
            self._steps, self._moved_at = steps, now
        return now - self._moved_at >= self._after_s
