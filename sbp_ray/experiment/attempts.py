"""What ran when: a line for each process that the experiment started, so that work which was done twice is paid twice.

An artifact's manifest tells the wall time of the run that finished it. Those before it, which failed or were
interrupted, stand here alone.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ATTEMPTS = "attempts.jsonl"


def append_attempt(run_dir: Path, *, artifact: str, seconds: float, status: int) -> None:
    """Note a process that has ended."""
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    row = {"artifact": artifact, "ended": ended, "seconds": round(seconds, 1), "status": status}
    with (run_dir / ATTEMPTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def lost_hours(run_dir: Path) -> dict[str, float]:
    """For each artifact, hours of the processes that did not finish it."""
    hours: dict[str, float] = {}
    for row in _rows(run_dir):
        if row["status"] != 0:
            hours[row["artifact"]] = hours.get(row["artifact"], 0.0) + row["seconds"] / 3600
    return hours


def _rows(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / ATTEMPTS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]  # the last may have been cut off
