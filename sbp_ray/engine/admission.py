"""How much a replica takes on: a budget of tokens in flight, beyond which HTTP requests are refused at once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

_MAX_RETRY_S = 60
_MEMORY = 0.1  # weight of the newest lease in the mean time that leases are held


class Lease:
    """Tokens and sequences that a request holds."""

    def __init__(self, tokens: int, sequences: int) -> None:
        self.tokens, self.sequences = tokens, sequences
        self.since = time.monotonic()


class TokenBudget:
    """Counts what requests may at most cost until they end. Batch draws count and are never refused: their job already
    bounds them, and what they take is not there for HTTP."""

    def __init__(self, max_tokens: int, max_sequences: int) -> None:
        self.max_tokens, self.max_sequences = max_tokens, max_sequences
        self.tokens = self.sequences = 0
        self._held_s: float | None = None

    def retry_after_s(self, tokens: int, sequences: int) -> int | None:
        """None if so much can be taken on now; else in how many seconds it is worth asking again.

        By Little's law what is in flight is released at the rate in flight / mean time held.
        """
        missing_tokens = self.tokens + tokens - self.max_tokens
        missing_sequences = self.sequences + sequences - self.max_sequences
        if missing_tokens <= 0 and missing_sequences <= 0:
            return None
        share = max(missing_tokens / max(self.tokens, 1), missing_sequences / max(self.sequences, 1))
        return max(1, min(_MAX_RETRY_S, math.ceil(share * (self._held_s or 0))))

    @contextmanager
    def held(self, tokens: int, sequences: int) -> Iterator[Lease]:
        """Count them in for as long as the block; `give_back` returns a part sooner."""
        lease = Lease(tokens, sequences)
        self.tokens += tokens
        self.sequences += sequences
        try:
            yield lease
        finally:
            self.give_back(lease, lease.tokens, lease.sequences)

    def give_back(self, lease: Lease, tokens: int, sequences: int) -> None:
        """What a sample that has ended held."""
        lease.tokens -= tokens
        lease.sequences -= sequences
        self.tokens -= tokens
        self.sequences -= sequences
        held_s = time.monotonic() - lease.since
        self._held_s = held_s if self._held_s is None else (1 - _MEMORY) * self._held_s + _MEMORY * held_s
