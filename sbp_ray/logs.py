"""One log format in driver and workers, and one line of progress that says how far, how fast and how long."""

from __future__ import annotations

import logging
import sys
import time

FORMAT = "%(asctime)s %(levelname).1s %(message)s"


def set_up_logging() -> None:
    """Send `sbp_ray`'s log lines to standard error. Runs in the driver and, as a setup hook, in every worker."""
    logger = logging.getLogger("sbp_ray")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it reports how it reads axis labels


class Progress:
    """Logs `embed | 3/8 shards (38 %) | 0.7 shards/s | eta 7s` at most every `every_s` seconds."""

    def __init__(self, stage: str, total: int, unit: str, *, done: int = 0, every_s: float = 5.0) -> None:
        self._stage, self._total, self._unit, self._every_s = stage, total, unit, every_s
        self._done = self._resumed = done
        self._start = time.monotonic()
        self._last = -every_s
        self._logger = logging.getLogger(__name__)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count finished units; `note` is added to the line."""
        self._done += count
        now = time.monotonic()
        if now - self._last < self._every_s and self._done < self._total:
            return
        self._last = now
        self._logger.info(self._line(now - self._start) + (f" | {note}" if note else ""))

    def eta_s(self) -> float:
        """Seconds until all units are done at the rate so far; 0 while there is none."""
        finished = self._done - self._resumed
        return (self._total - self._done) * (time.monotonic() - self._start) / finished if finished else 0.0

    def _line(self, elapsed_s: float) -> str:
        rate = (self._done - self._resumed) / elapsed_s if elapsed_s > 0 else 0.0
        share = f"{self._done / self._total:.0%}" if self._total else "100%"
        left = duration((self._total - self._done) / rate) if rate > 0 else "unknown"
        done = f"{self._done:,}/{self._total:,} {self._unit} ({share})"
        return f"{self._stage} | {done} | {rate:,.1f} {self._unit}/s | eta {left}"


def duration(seconds: float) -> str:
    """`42s`, `3m10s`, `2h05m`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
