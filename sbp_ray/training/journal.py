"""`metrics.jsonl`, one row a step, and the progress line that people read."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.logs import duration

METRICS = "metrics.jsonl"
LINE_EVERY_S = 5.0


class Journal:
    """Written by rank 0. Starts by forgetting what was recorded after the checkpoint that is resumed from."""

    def __init__(self, out: Artifact, stage: str, num_steps: int, resumed_step: int) -> None:
        self._out, self._stage, self._num_steps, self._resumed_step = out, stage, num_steps, resumed_step
        self._lines = [line for line in _lines(out) if json.loads(line)["step"] <= resumed_step]
        self._start = time.monotonic()
        self._last_line = -LINE_EVERY_S
        self._logger = logging.getLogger(__name__)
        self.flush()

    @property
    def wall_s_before(self) -> float:
        """Seconds of training that went into the checkpoint resumed from."""
        return json.loads(self._lines[-1])["wall_s"] if self._lines else 0.0

    def add(self, row: dict[str, Any]) -> None:
        """Record a finished step, and show it if the last line is some seconds old."""
        line = json.dumps(row)
        self._lines.append(line)
        if self._out.is_local:
            with open(self._out.path(METRICS), "a", encoding="utf-8") as file:
                file.write(line + "\n")
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_S or row["step"] == self._num_steps:
            self._last_line = now
            self._logger.info(self._line(row, now - self._start))

    def flush(self) -> None:
        """Commit all rows; object stores cannot append, and rows after the last checkpoint are forgotten anyway."""
        self._out.write_bytes(METRICS, "".join(line + "\n" for line in self._lines).encode())

    def _line(self, row: dict[str, Any], elapsed_s: float) -> str:
        steps = row["step"] - self._resumed_step
        eta = duration(elapsed_s / steps * (self._num_steps - row["step"]))
        held_out = f" | held-out {row['validation_nats']:.3f}" if "validation_nats" in row else ""
        return (
            f"{self._stage} step {row['step']}/{self._num_steps} | loss {row['loss_nats']:.3f} nats{held_out} | "
            f"grad_norm {row['grad_norm']:.2f} | lr {row['lr']:.1e} | {row['tokens_per_s']:,.0f} tokens/s | eta {eta}"
        )


def _lines(out: Artifact) -> list[str]:
    """Complete rows of an earlier attempt; the last may have been cut off."""
    if not out.exists(METRICS):
        return []
    return [line for line in out.read_bytes(METRICS).decode().split("\n")[:-1] if line.endswith("}")]


def last_row(out: Artifact) -> dict[str, Any]:
    """The row of the last step: the training's result in numbers."""
    return json.loads(_lines(out)[-1])
