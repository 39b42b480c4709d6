"""Tells an engine that stands still from one that has nothing to do."""

from __future__ import annotations


class StallWatch:
    """Fed with the engine's counters now and then."""

    def __init__(self, after_s: float, now: float) -> None:
        self._after_s, self._moved_at, self._steps = after_s, now, -1

    def is_stalled(self, *, steps: int, has_work: bool, now: float) -> bool:
        """Whether it has had work for `after_s` and made no step."""
        if steps != self._steps or not has_work:
            self._steps, self._moved_at = steps, now
        return now - self._moved_at >= self._after_s
