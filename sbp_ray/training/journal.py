"""`metrics.jsonl`, one row a step; `attempts.jsonl`, one row a start; and the progress line that people read."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import one_line
from sbp_ray.logs import duration

METRICS = "metrics.jsonl"
ATTEMPTS = "attempts.jsonl"
LINE_EVERY_S = 5.0
UPLOAD_EVERY_S = 60.0  # to an object store, which cannot append


class Journal:
    """Written by rank 0. Starts by forgetting what was recorded after the checkpoint that is resumed from."""

    def __init__(self, out: Artifact, stage: str, num_steps: int, resumed_step: int, num_ranks: int) -> None:
        self._out, self._stage, self._num_steps = out, stage, num_steps
        found = _lines(out, METRICS)
        self._lines = [line for line in found if json.loads(line)["step"] <= resumed_step]
        self._last_line = -LINE_EVERY_S
        self._last_upload = time.monotonic()
        self._is_behind = False
        self._logger = logging.getLogger(__name__)
        self._begin(resumed_step, wasted=len(found) - len(self._lines), num_ranks=num_ranks)
        self.flush()

    def _begin(self, resumed_step: int, wasted: int, num_ranks: int) -> None:
        earlier = _lines(self._out, ATTEMPTS)
        row = {"resumed_step": resumed_step, "wasted_steps": wasted, "ranks": num_ranks, "started_at": time.time()}
        self._out.write_bytes(ATTEMPTS, "".join(line + "\n" for line in [*earlier, json.dumps(row)]).encode())
        if earlier:
            self._logger.info(
                f"{self._stage} | attempt {len(earlier) + 1} goes on from step {resumed_step}, {wasted} steps wasted"
            )

    @property
    def wall_s_before(self) -> float:
        """Seconds of training that went into the checkpoint resumed from."""
        return json.loads(self._lines[-1])["wall_s"] if self._lines else 0.0

    def add(self, row: dict[str, Any]) -> None:
        """Record a finished step, and show it if the last line is some seconds old.

        A row that finds no room is kept here until `flush`, which stops the training if there is none then.
        """
        line = json.dumps(row)
        self._lines.append(line)
        now = time.monotonic()
        if not self._is_behind:
            try:
                self._append(line, now)
            except OSError as error:
                self._is_behind = True  # half a line may be there: nothing is put behind it
                self._logger.warning(f"{self._stage} | {METRICS} is written no further than here: {one_line(error)}")
        if now - self._last_line >= LINE_EVERY_S or row["step"] == self._num_steps:
            self._last_line = now
            self._logger.info(self._line(row))

    def _append(self, line: str, now: float) -> None:
        if self._out.is_local:
            with open(self._out.path(METRICS), "a", encoding="utf-8") as file:
                file.write(line + "\n")
        elif now - self._last_upload >= UPLOAD_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Commit all rows.

        Raises:
            OSError: there is no room, or no way to the store.
        """
        self._last_upload = time.monotonic()
        self._out.write_bytes(METRICS, "".join(line + "\n" for line in self._lines).encode())
        self._is_behind = False

    def _line(self, row: dict[str, Any]) -> str:
        held_out = f" | held-out {row['validation_nats']:.3f}" if "validation_nats" in row else ""
        mfu = f" | mfu {row['mfu']:.2f}" if row["mfu"] is not None else ""
        return (
            f"{self._stage} step {row['step']}/{self._num_steps} | loss {row['loss_nats']:.3f} nats{held_out} | "
            f"grad_norm {row['grad_norm']:.2f} | lr {row['lr']:.1e} | {row['tokens_per_s']:,.0f} tokens/s{mfu} | "
            f"{row['mem_gib']:.1f} GiB | waited {row['data_wait_s']:.2f} s | eta {duration(row['eta_s'])}"
        )


def _lines(out: Artifact, name: str) -> list[str]:
    """Complete rows of earlier attempts; the last may have been cut off."""
    if not out.exists(name):
        return []
    return [line for line in out.read_bytes(name).decode().split("\n")[:-1] if line.endswith("}")]


def row_of(out: Artifact, step: int) -> dict[str, Any]:
    """What was measured at a step: of the last or the exported one, the training's result in numbers."""
    return next(row for line in _lines(out, METRICS) if (row := json.loads(line))["step"] == step)


def survived(out: Artifact) -> dict[str, int]:
    """How often the training was started, and how many recorded steps had to be done again."""
    attempts = [json.loads(line) for line in _lines(out, ATTEMPTS)]
    return {"attempts": len(attempts), "wasted_steps": sum(attempt["wasted_steps"] for attempt in attempts)}
