"""One shard while its samples are requested and committed.

`OpenShard.write` runs two sides at once. `_request_missing` asks the engines for one d1 after another, as slots become
free; what an engine returns waits in a list. `_commit_until_closed` makes a segment of the list every few seconds: from
then on the samples are done, and the coordinator is told so. While the list is full, because the store is slow, the
requesting side waits, and with it the slots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from sbp_ray.artifacts import Artifact
from sbp_ray.config import SynthesizeConfig
from sbp_ray.engine.messages import Sampling
from sbp_ray.errors import SbpError, one_line
from sbp_ray.generation.d1 import Source, Sources, start_order
from sbp_ray.generation.engines import Engines
from sbp_ray.generation.merging import quarantine_so_far
from sbp_ray.generation.rephraser import Rephraser
from sbp_ray.generation.sample_rows import FinishedSample, RowMaker, count_tokens
from sbp_ray.generation.segments import DoneSamples

_SEGMENT_SAMPLES = 2048  # what is finished and not yet committed is bounded by twice this


class Slots:
    """How many samples a worker keeps requested. Who waits for several slots takes none before all of them are free."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0
        self._changed = asyncio.Condition()

    async def take(self, number: int) -> None:
        """Wait until so many are free, and take them; of more than there are, wait for all of them."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.taken + min(number, self.limit) <= self.limit)
            self.taken += number

    async def give_back(self, number: int = 1) -> None:
        async with self._changed:
            self.taken -= number
            self._changed.notify_all()

    async def resize(self, limit: int) -> None:
        """Change their number; what is taken above it stays so until it is given back."""
        async with self._changed:
            self.limit = max(1, limit)
            self._changed.notify_all()


class Shared(NamedTuple):
    """What the open shards of a worker share."""

    name: str
    """Of the worker."""
    cfg: SynthesizeConfig
    out: Artifact
    rows: RowMaker
    engines: Engines | Rephraser
    slots: Slots
    own_slots: int
    """As many as the worker has while the other workers have work too."""
    starting: asyncio.Lock
    """One shard starts its requests at a time: the older one first."""
    coordinator: Any
    """The driver's actor: see `generation.coordinator`."""
    max_bad: int
    """Samples of the whole artifact that may fail for good."""


class OpenShard:
    """The samples of one shard, from a request to a segment."""

    def __init__(self, shared: Shared, shard: int, sources: Sources) -> None:
        self._shared, self._shard, self._sources = shared, shard, sources
        self._samples = shared.cfg.samples_per_document
        self._done = DoneSamples(shared.out, shard, len(sources) * self._samples)
        self._finished: list[FinishedSample] = []
        self._slots = 0
        """Taken and not given back yet. The shard owns them: a request that is cancelled before its first step runs no
        code, so it cannot give back what was taken for it."""
        self._room = asyncio.Condition()
        self._is_due = asyncio.Event()
        self._is_closed = False

    async def write(self) -> None:
        """Request and commit what is missing. What fails first cancels all else; what is finished by then is committed,
        if that can be done."""
        await self._report([])
        try:
            async with asyncio.TaskGroup() as tasks:
                committing = tasks.create_task(self._commit_until_closed())
                try:
                    async with asyncio.TaskGroup() as requests, self._shared.starting:
                        await self._request_missing(requests)
                finally:
                    self._is_closed = True
                    self._is_due.set()
                    await asyncio.wait({committing})
        except ExceptionGroup as group:
            raise _first_error(group) from None
        finally:
            await self._give_back(self._slots)

    async def _request_missing(self, requests: asyncio.TaskGroup) -> None:
        """One d1 after another, when there are slots for its samples; in parts where these are more than all slots."""
        slots, most = self._shared.slots, self._shared.own_slots
        for place in start_order(self._sources.lengths, 2 * slots.limit):
            missing = self._done.missing(place * self._samples, (place + 1) * self._samples)
            for start in range(0, len(missing), most):
                part = missing[start : start + most]
                await slots.take(len(part))
                self._slots += len(part)
                requests.create_task(self._request(self._sources[place], part))

    async def _request(self, source: Source, numbers: Sequence[int]) -> None:
        """Have samples of one d1 written; the slot of each is free when the sample has joined those that wait."""
        shared = self._shared
        by_sample = {number % self._samples: number for number in numbers}
        prompt, room = shared.rows.make_prompt(source)
        if not room:
            for sample, number in by_sample.items():
                await self._add(FinishedSample(number, sample, source, len(prompt), None))
                await self._give_back(1)
            return
        sampling = Sampling(room, shared.cfg.temperature, shared.cfg.top_p)
        seeds = {sample: shared.rows.make_seed(source, sample) for sample in by_sample}
        async for result in shared.engines.sample(source.doc_id.hex(), prompt, seeds, sampling):
            number = by_sample[result.sample]
            await self._add(FinishedSample(number, result.sample, source, len(prompt), result))
            await self._give_back(1)

    async def _give_back(self, number: int) -> None:
        await self._shared.slots.give_back(number)
        self._slots -= number

    async def _add(self, done: FinishedSample) -> None:
        async with self._room:
            await self._room.wait_for(lambda: len(self._finished) < 2 * _SEGMENT_SAMPLES)
        self._finished.append(done)
        if len(self._finished) >= _SEGMENT_SAMPLES:
            self._is_due.set()

    async def _commit_until_closed(self) -> None:
        while not self._is_closed or self._finished:
            if not self._is_closed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_due.wait(), self._shared.cfg.resources.commit_every_s)
            self._is_due.clear()
            if finished := self._finished[:]:
                await asyncio.to_thread(self._commit, finished)
                async with self._room:
                    self._finished = self._finished[len(finished) :]
                    self._room.notify_all()
                await self._report(finished)

    def _commit(self, finished: Sequence[FinishedSample]) -> None:
        rows = self._shared.rows.make_rows(finished)
        try:
            self._done.commit(rows)
        except OSError as error:
            raise write_error(self._shared.out, error) from None

    async def _report(self, committed: Sequence[FinishedSample]) -> None:
        """Tell the coordinator what has been committed; learn how many slots there are from now on.

        Raises:
            SbpError: more samples cannot be written than `max_bad_share` allows.
        """
        shared = self._shared
        counts = count_tokens(committed)
        bad, share = await shared.coordinator.committed.remote(shared.name, self._shard, self._done.num_bad, counts)
        await shared.slots.resize(int(shared.own_slots * share))
        if bad > shared.max_bad:
            await asyncio.to_thread(quarantine_so_far, self._shard, shared.out)
            raise too_many_bad(bad, shared.max_bad, shared.cfg, shared.out)


def write_error(out: Artifact, error: OSError) -> SbpError:
    """What to say when the disk is full, or the store does not answer."""
    return SbpError(
        f"{out.url} cannot be written ({one_line(error)}): mend that and run the same command again to go on"
    )


def too_many_bad(bad: int, max_bad: int, cfg: SynthesizeConfig, out: Artifact) -> SbpError:
    """The error budget is spent."""
    other = "a larger engine.max_model_len" if cfg.rephrase is None else "another synthesize.rephrase"
    return SbpError(
        f"{bad} samples could not be written, more than synthesize.max_bad_share={cfg.max_bad_share} allows "
        f"({max_bad}): see {out.path('quarantine')}, then go on with the same command and a larger "
        f"synthesize.max_bad_share, or start again in a new run_dir with {other}"
    )


def _first_error(group: ExceptionGroup) -> Exception:
    """The exception to raise for a group: one that the user can fix, else the first."""
    errors = [_first_error(error) if isinstance(error, ExceptionGroup) else error for error in group.exceptions]
    return next((error for error in errors if isinstance(error, SbpError)), errors[0])
