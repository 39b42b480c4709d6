"""How much a replica takes on: a budget of tokens in flight, beyond which HTTP requests are refused at once.

A refusal says when it is worth asking again. That follows from the work ahead: what each request in flight may still
take, at the pace of the engine, less the time that it has had; and from those that were refused before and told to come
back, who are counted on to do so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_MAX_RETRY_S = 60
_MEMORY = 0.1  # weight of the newest value in a running mean
_COMES_BACK_WITHIN_S = 2.0
_MAX_EXPECTED = 1000


@dataclass(eq=False)
class Lease:
    """Tokens and sequences that a request holds, or will when it comes back."""

    tokens: int
    sequences: int
    max_tokens: int
    """Of each of its texts."""
    since: float


@dataclass
class Pace:
    """How long texts take."""

    seconds_per_token: float = 0.0
    """Of one text in the engine's present batch; 0 before it has made a step."""
    share_written: float = 1.0
    """Mean share of the time for `max_tokens` after which a text ends."""
    _stepped_at: float | None = None

    def step(self, now: float, *, goes_on: bool) -> None:
        """The engine has made a step, which gives each text a token; `goes_on`: it has more to do."""
        if self._stepped_at is not None:
            took_s = now - self._stepped_at
            mean = self.seconds_per_token or took_s
            self.seconds_per_token = (1 - _MEMORY) * mean + _MEMORY * took_s
        self._stepped_at = now if goes_on else None

    def end(self, held_s: float, max_tokens: int) -> None:
        """A text has ended."""
        if self.seconds_per_token:
            share = min(held_s / (max_tokens * self.seconds_per_token), 1.0)
            self.share_written = (1 - _MEMORY) * self.share_written + _MEMORY * share

    def duration_s(self, max_tokens: int) -> float:
        """That a text is expected to take."""
        return max_tokens * self.seconds_per_token * self.share_written


@dataclass
class TokenBudget:
    """Counts what requests may at most cost until they end. Requests of a batch job count and are never refused: their
    job already bounds them, and what they take is not there for HTTP."""

    max_tokens: int
    max_sequences: int
    tokens: int = 0
    sequences: int = 0
    pace: Pace = field(default_factory=Pace)
    _leases: set[Lease] = field(default_factory=set)
    _expected: list[Lease] = field(default_factory=list)
    """Of those that were refused, from the moment for which they were told to come back."""

    def retry_after_s(
        self, tokens: int, sequences: int, max_tokens: int, *, is_expected_back: bool = True
    ) -> int | None:
        """None if so much can be taken on now; else in how many seconds it is worth asking again.

        Whoever is told a time is counted on to come back then, so that the next one is told a later time. Of several
        replicas that refuse a request only one is to expect it back.
        """
        now = time.monotonic()
        self._expected = [lease for lease in self._expected if lease.since + _COMES_BACK_WITHIN_S > now]
        if self.tokens + tokens <= self.max_tokens and self.sequences + sequences <= self.max_sequences:
            # Who comes back and is taken on is in flight from now on.
            self._expected = self._expected[1:] if self._expected and self._expected[0].since <= now else self._expected
            return None
        wait_s = max(1, min(_MAX_RETRY_S, math.ceil(self._free_at(tokens, sequences, now) - now)))
        if is_expected_back and len(self._expected) < _MAX_EXPECTED:
            self._expected.append(Lease(tokens, sequences, max_tokens, now + wait_s))
            self._expected.sort(key=lambda lease: lease.since)
        return wait_s

    def _free_at(self, tokens: int, sequences: int, now: float) -> float:
        """From when on there is room for so much, whoever else comes back."""
        changes = [(self._ends_at(lease, now), lease.tokens, lease.sequences) for lease in self._leases]
        for lease in self._expected:
            changes.append((max(lease.since, now), -lease.tokens, -lease.sequences))
            changes.append((self._ends_at(lease, now), lease.tokens, lease.sequences))
        free_tokens, free_sequences = self.max_tokens, self.max_sequences  # once all of them have ended
        for at, more_tokens, more_sequences in sorted(changes, reverse=True):
            free_tokens -= more_tokens
            free_sequences -= more_sequences
            if free_tokens < tokens or free_sequences < sequences:
                return at
        return now

    def _ends_at(self, lease: Lease, now: float) -> float:
        """The expected end; of one that has outlived it, the latest possible end."""
        expected = lease.since + self.pace.duration_s(lease.max_tokens)
        latest = lease.since + lease.max_tokens * self.pace.seconds_per_token
        return max(lease.since, now, expected if expected > now else latest)

    @contextmanager
    def held(self, tokens: int, sequences: int, max_tokens: int) -> Iterator[Lease]:
        """Count them in for as long as the block; `give_back` returns a part sooner."""
        lease = Lease(tokens, sequences, max_tokens, time.monotonic())
        self._leases.add(lease)
        self.tokens += tokens
        self.sequences += sequences
        try:
            yield lease
        finally:
            self._release(lease, lease.tokens, lease.sequences)
            self._leases.remove(lease)

    def give_back(self, lease: Lease, tokens: int, sequences: int) -> None:
        """What a text that has ended held."""
        self._release(lease, tokens, sequences)
        self.pace.end(time.monotonic() - lease.since, lease.max_tokens)

    def _release(self, lease: Lease, tokens: int, sequences: int) -> None:
        lease.tokens -= tokens
        lease.sequences -= sequences
        self.tokens -= tokens
        self.sequences -= sequences
