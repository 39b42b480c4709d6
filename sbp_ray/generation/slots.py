"""How many samples a worker keeps open."""

from __future__ import annotations

import asyncio


class Slots:
    """Places that are taken several at once; one who waits for many takes none before all of them are free."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken = limit, 0
        self._changed = asyncio.Condition()

    @property
    def limit(self) -> int:
        """The most that can be taken at once."""
        return self._limit

    @property
    def taken(self) -> int:
        """Those that are taken now."""
        return self._taken

    async def take(self, number: int) -> None:
        """Wait until so many are free, and take them. More than there are is all of them: nobody waits for ever."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._taken + min(number, self._limit) <= self._limit)
            self._taken += number

    async def give_back(self, number: int = 1) -> None:
        """Make room."""
        async with self._changed:
            self._taken -= number
            self._changed.notify_all()

    async def resize(self, limit: int) -> None:
        """Change their number; what is taken above it stays so until it is given back."""
        async with self._changed:
            self._limit = max(1, limit)
            self._changed.notify_all()
