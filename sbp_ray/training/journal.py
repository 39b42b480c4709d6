"""`metrics.jsonl`, one row a step; `attempts.jsonl`, one row a start; and the progress line that people read.

A row is appended to `metrics.jsonl` at once on a file system. On an object store, which cannot append, rows appear
there before each checkpoint. In both cases the rows of a checkpoint's steps are there, and synced, before it
counts. A start forgets the rows of later steps: they are trained, and recorded, once more.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import one_line
from sbp_ray.logs import duration

METRICS = "metrics.jsonl"
ATTEMPTS = "attempts.jsonl"
LINE_EVERY_S = 5.0

logger = logging.getLogger(__name__)


class Journal:
    """Written by rank 0."""

    def __init__(self, out: Artifact, stage: str, num_steps: int, resumed_step: int, num_ranks: int) -> None:
        self._out, self._stage, self._num_steps = out, stage, num_steps
        self._last_line = -LINE_EVERY_S
        found = read_whole_lines(out, METRICS)
        kept = [line for line in found if json.loads(line)["step"] <= resumed_step]
        self.wall_s_before: float = json.loads(kept[-1])["wall_s"] if kept else 0.0
        """Seconds of training that went into the checkpoint resumed from."""
        self._size = _write_lines(out, METRICS, kept)
        """Bytes of whole rows in the file."""
        self._waiting: list[str] = []
        """Rows that are not in the file yet."""
        self._begin(resumed_step, wasted=len(found) - len(kept), num_ranks=num_ranks)

    def _begin(self, resumed_step: int, wasted: int, num_ranks: int) -> None:
        earlier = read_whole_lines(self._out, ATTEMPTS)
        row = {"resumed_step": resumed_step, "wasted_steps": wasted, "ranks": num_ranks, "started_at": time.time()}
        _write_lines(self._out, ATTEMPTS, [*earlier, json.dumps(row)])
        if earlier:
            logger.info(
                f"{self._stage} | attempt {len(earlier) + 1} goes on from step {resumed_step}, {wasted} steps wasted"
            )

    def add(self, row: dict[str, Any]) -> None:
        """Record a finished step, and show it if the last line is some seconds old.

        A row that finds no room waits until `flush`, which stops the training if there is none then.
        """
        self._waiting.append(json.dumps(row))
        if self._out.is_local:
            try:
                self._append()
            except OSError as error:
                if len(self._waiting) == 1:
                    logger.warning(f"{self._stage} | {METRICS} is written no further than here: {one_line(error)}")
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_S or row["step"] == self._num_steps:
            self._last_line = now
            logger.info(self._format_line(row))

    def flush(self) -> None:
        """Commit all rows.

        Raises:
            OSError: there is no room, or no way to the store.
        """
        if self._out.is_local:
            self._append(is_synced=True)
        else:
            lines = [*read_whole_lines(self._out, METRICS), *self._waiting]
            _write_lines(self._out, METRICS, lines)
            self._waiting.clear()

    def _append(self, is_synced: bool = False) -> None:
        data = "".join(line + "\n" for line in self._waiting).encode()
        with open(self._out.path(METRICS), "r+b") as file:
            file.truncate(self._size)  # half a row may be there, which found no room
            file.seek(self._size)
            file.write(data)
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        self._size += len(data)
        self._waiting.clear()

    def _format_line(self, row: dict[str, Any]) -> str:
        held_out = f" | held-out {row['validation_nats']:.3f}" if "validation_nats" in row else ""
        mfu = f" | mfu {row['mfu']:.2f}" if row["mfu"] is not None else ""
        return (
            f"{self._stage} step {row['step']}/{self._num_steps} | loss {row['loss_nats']:.3f} nats{held_out} | "
            f"grad_norm {row['grad_norm']:.2f} | lr {row['lr']:.1e} | {row['tokens_per_s']:,.0f} tokens/s{mfu} | "
            f"{row['mem_gib']:.1f} GiB | waited {row['data_wait_s']:.2f} s | eta {duration(row['eta_s'])}"
        )


def _write_lines(out: Artifact, name: str, lines: list[str]) -> int:
    """Commit the whole file; returns its bytes."""
    data = "".join(line + "\n" for line in lines).encode()
    out.write_bytes(name, data)
    return len(data)


def read_whole_lines(out: Artifact, name: str) -> list[str]:
    """Complete rows of earlier attempts; the last may have been cut off."""
    if not out.exists(name):
        return []
    return [line for line in out.read_bytes(name).decode().split("\n")[:-1] if line.endswith("}")]


def read_row(out: Artifact, step: int) -> dict[str, Any]:
    """What was measured at a step: of the last or the exported one, the training's result in numbers."""
    return next(row for line in read_whole_lines(out, METRICS) if (row := json.loads(line))["step"] == step)


def count_attempts(out: Artifact) -> dict[str, int]:
    """How often the training was started, and how many recorded steps had to be done again."""
    attempts = [json.loads(line) for line in read_whole_lines(out, ATTEMPTS)]
    return {"attempts": len(attempts), "wasted_steps": sum(attempt["wasted_steps"] for attempt in attempts)}
