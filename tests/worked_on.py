"""What `run_steps` works on in a test's own process."""

from __future__ import annotations

import logging
from typing import Any


class WorkedOn(list[tuple[str, dict[str, Any]]]):
    """Step and item of all work that the runner began, in order; it says so in its log."""

    def __init__(self) -> None:
        super().__init__()
        self._left: int | None = None

    def interrupt_after(self, num_items: int) -> None:
        """From here on so many items are worked on, and the next one is interrupted before it begins."""
        self._left = num_items

    def begin(self, step: str, item: dict[str, Any]) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self._left = None
                raise KeyboardInterrupt
        self.append((step, item))


class WorkHandler(logging.Handler):
    """Hands the runner's log to a `WorkedOn`."""

    def __init__(self, worked_on: WorkedOn) -> None:
        super().__init__(logging.DEBUG)
        self._worked_on = worked_on

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.DEBUG and isinstance(record.args, tuple):
            step, item = record.args
            self._worked_on.begin(str(step), dict(item))  # type: ignore[call-overload]
