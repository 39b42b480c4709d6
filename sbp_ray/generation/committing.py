"""What is finished of a shard becomes segments, every few seconds and one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

from sbp_ray.engine.messages import Drawn, Refused
from sbp_ray.errors import SbpError, one_line
from sbp_ray.generation.d1 import Source
from sbp_ray.generation.ledger import Ledger

_SEGMENT_SAMPLES = 2048  # what is finished and not yet committed is bounded by twice this


class Finished(NamedTuple):
    """A sample that need not be asked for again."""

    number: int
    source: Source
    sample: int
    num_prompt: int
    result: Drawn | Refused | None
    """None where d1 leaves no room to write."""


class Committer:
    """Gathers finished samples and commits them.

    While two segments' worth wait for a slow store, `add` waits, and with it the slots: nothing piles up. `run` is a
    task beside those that draw, in one task group: where it fails, they are cancelled, whatever they wait for.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        judge: Callable[[list[Finished]], list[dict[str, Any]]],
        report: Callable[[list[Finished]], Awaitable[None]],
        every_s: float,
    ) -> None:
        """
        Args:
            judge: makes rows of a segment; called in a thread.
            report: called with what has just been committed.
            every_s: seconds between two commits.
        """
        self._ledger, self._judge, self._report, self._every_s = ledger, judge, report, every_s
        self._finished: list[Finished] = []
        self._room = asyncio.Condition()
        self._is_due = asyncio.Event()
        self._is_closed = False

    async def add(self, one: Finished) -> None:
        """Take in a finished sample."""
        async with self._room:
            await self._room.wait_for(lambda: len(self._finished) < 2 * _SEGMENT_SAMPLES)
        self._finished.append(one)
        if len(self._finished) >= _SEGMENT_SAMPLES:
            self._is_due.set()

    def close(self) -> None:
        """Nothing is added any more: `run` ends after the last commit."""
        self._is_closed = True
        self._is_due.set()

    async def run(self) -> None:
        """Commit until closed.

        Raises:
            SbpError: the store does not take it.
        """
        while not self._is_closed or self._finished:
            if not self._is_closed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_due.wait(), self._every_s)
            self._is_due.clear()
            if self._finished:
                await self._commit(self._finished[:])

    async def _commit(self, finished: list[Finished]) -> None:
        rows = await asyncio.to_thread(self._judge, finished)
        try:
            await asyncio.to_thread(self._ledger.commit, rows)
        except OSError as error:
            raise cannot_be_written(self._ledger.url, error) from None
        async with self._room:
            self._finished = self._finished[len(finished) :]
            self._room.notify_all()
        await self._report(finished)


def cannot_be_written(url: str, error: OSError) -> SbpError:
    """What to say when the disk is full, or the store does not answer."""
    return SbpError(f"{url} cannot be written ({one_line(error)}): mend that and run the same command again to go on")
