"""TensorBoard, Weights & Biases and MLflow receive the curves, from a process of their own.

`metrics.jsonl` is the source: the process reads it as it grows, and forwards each step once. The training knows nothing
of it, so no tracker can slow or break one; a tracker that fails is named in one line, and the others go on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sbp_ray.artifacts import STARTED, Artifact, fingerprint_of
from sbp_ray.config import TrackingConfig
from sbp_ray.errors import SbpError, one_line
from sbp_ray.logs import set_up_logging
from sbp_ray.training.trackers import Run, Tracker, open_trackers

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_LAST_S = 60.0  # for what is left to send when the training has ended
_LIBRARIES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Setting, which is the name of the extra too, and the module that it needs."""
_ENDED_WELL = b"done\n"


def configured(tracking: TrackingConfig) -> list[str]:
    """Names of the trackers that are set."""
    return [name for name in _LIBRARIES if getattr(tracking, name)]


def refuse_missing_library(tracking: TrackingConfig) -> None:
    """
    Raises:
        SbpError: a configured tracker is not installed.
    """
    for name in configured(tracking):
        if importlib.util.find_spec(_LIBRARIES[name]) is None:
            raise SbpError(
                f"tracking.{name}={getattr(tracking, name)}: {name} is not installed: pip install 'sbp-ray[{name}]', "
                "or leave it out"
            )


@contextlib.contextmanager
def tracked(tracking: TrackingConfig, out: Artifact, metrics: str) -> Iterator[None]:
    """While the block runs, forward the rows of `metrics` of an artifact that has been started."""
    names = configured(tracking)
    if not names:
        yield
        return
    order = json.dumps({"tracking": tracking.model_dump(), "metrics": metrics, "run": asdict(run_of(out))})
    try:
        process = subprocess.Popen(  # noqa: S603  ourselves
            [sys.executable, "-m", "sbp_ray.training.tracking", order], stdin=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        logger.warning(f"tracking | {', '.join(names)} get nothing: {one_line(error)}")
        yield
        return
    try:
        yield
        _send(process, _ENDED_WELL)
    finally:
        _close(process)


def _send(process: subprocess.Popen[bytes], message: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has died, and has said why
        process.stdin.write(message)
        process.stdin.flush()


def _close(process: subprocess.Popen[bytes]) -> None:
    """Its standard input ends: it sends the rest. A driver that dies ends it in the same way."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_LAST_S)
    except subprocess.TimeoutExpired:
        logger.warning(
            f"tracking | not done {_LAST_S:.0f} s after the training, and stopped: metrics.jsonl has all rows"
        )
        process.kill()
        process.wait()


def run_of(out: Artifact) -> Run:
    """What a tracker is told of the training: another id where it was begun anew."""
    folders = [part for part in out.url.rstrip("/").split("/") if part != "artifacts"]
    started = out.read_json(STARTED)
    identity = fingerprint_of({"url": out.url, "started_at": started.get("started_at"), "of": started["fingerprint"]})
    return Run(identity, "/".join(folders[-2:]), out.url, flat(started.get("recipe", {}).get("settings", {})))


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"tune": {"seed": 0}}` -> `{"tune.seed": 0}`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


# The process


@dataclass
class _Follower:
    """Forwards each step to each tracker once, in order."""

    out: Artifact
    metrics: str
    trackers: list[Tracker]

    def forward(self) -> None:
        """What has been recorded since."""
        rows = self._rows()
        for tracker in list(self.trackers):
            last = tracker.last_step
            new = [row for row in rows if row["step"] > last]  # steps that a restart does again are not sent again
            if new:
                self._guarded(tracker, lambda tracker=tracker, new=new: tracker.log(new))  # type: ignore[misc]

    def finish(self, *, is_complete: bool) -> None:
        """Tell each tracker that nothing more comes."""
        for tracker in list(self.trackers):
            self._guarded(tracker, lambda tracker=tracker: tracker.finish(is_complete))  # type: ignore[misc]

    def _guarded(self, tracker: Tracker, call: Any) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  whatever a library raises must not take the others with it
            logger.warning(f"tracking | {tracker.name} gets nothing more: {type(error).__name__}: {one_line(error)}")
            self.trackers.remove(tracker)

    def _rows(self) -> list[dict[str, Any]]:
        try:
            text = self.out.read_bytes(self.metrics).decode()
        except (FileNotFoundError, OSError):  # not there yet, or storage that is away for a while
            return []
        lines = [line for line in text.split("\n")[:-1] if line.endswith("}")]
        by_step = {row["step"]: row for row in map(json.loads, lines)}
        return [by_step[step] for step in sorted(by_step)]


def main() -> None:
    """Follow until standard input ends."""
    set_up_logging()
    order = json.loads(sys.argv[1])
    run = Run(**order["run"])
    trackers = open_trackers(TrackingConfig.model_validate(order["tracking"]), run)
    follower = _Follower(Artifact("training", run.url), order["metrics"], trackers)
    said = b""
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], _POLL_S)
        if ready:
            part = os.read(sys.stdin.fileno(), 64)
            said += part
            if not part:
                break
        follower.forward()
    follower.forward()
    follower.finish(is_complete=said == _ENDED_WELL)


if __name__ == "__main__":
    main()
