"""TensorBoard and Weights & Biases receive a training's curves, each from a process of its own.

`track_training` starts the processes, and ends them by closing their standard input. A process (`main`) reads
`metrics.jsonl` on from where it was (`_Feed`) and sends each step once. The training knows nothing of it, so no tracker
can slow or break a training; a tracker that fails says so in one line.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator

from sbp_ray.artifacts import STARTED, Artifact, fingerprint_of
from sbp_ray.config import TrackingConfig
from sbp_ray.errors import SbpError, one_line
from sbp_ray.logs import set_up_logging

logger = logging.getLogger(__name__)

_POLL_S = 5.0
_LAST_S = 60.0
"""For what is left to send when the training has ended."""
_ENDED_WELL = b"done\n"


def refuse_missing_library(tracking: TrackingConfig) -> None:
    """Raises SbpError where a configured tracker is not installed."""
    for name, where in _configured(tracking):
        if importlib.util.find_spec(name) is None:
            raise SbpError(
                f"tracking.{name}={where}: {name} is not installed: in the checkout, uv pip install -e '.[{name}]', or "
                "leave it out"
            )


def _configured(tracking: TrackingConfig) -> list[tuple[str, str]]:
    """Name and setting of each tracker that is set. A setting, its extra and its module have one name."""
    return [(name, where) for name in _SENDERS if (where := getattr(tracking, name))]


@contextlib.contextmanager
def track_training(tracking: TrackingConfig, out: Artifact, metrics: str) -> Iterator[None]:
    """While the block runs, send the rows of the file `metrics` of an artifact that has been started."""
    commands = [[sys.executable, "-m", __name__, *set_one, out.url, metrics] for set_one in _configured(tracking)]
    processes = [subprocess.Popen(each, stdin=subprocess.PIPE, start_new_session=True) for each in commands]  # noqa: S603
    last = b""
    try:
        yield
        last = _ENDED_WELL
    finally:
        deadline = time.monotonic() + _LAST_S
        for process in processes:
            _end(process, last, deadline)


def _end(process: subprocess.Popen[bytes], last: bytes, deadline: float) -> None:
    """Close its standard input, whereupon it sends the rest. A driver that dies does the same."""
    try:
        process.communicate(last, timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        logger.warning(f"tracking | stopped {_LAST_S:.0f} s after the training: metrics.jsonl has all rows")
        process.kill()
        process.wait()


# The processes


class _Feed:
    """The rows of a training, as they are recorded."""

    def __init__(self, out: Artifact, metrics: str) -> None:
        self._out, self._path = out, out.path(metrics)
        self._offset, self._last_line = 0, b""
        self.is_complete = False
        """Known at the end: whether the driver ended well."""

    def new_rows(self, last_step: int) -> Iterator[list[tuple[int, dict[str, float]]]]:
        """Steps after `last_step` with their numbers, every few seconds, until standard input ends. A step that a
        restart does again is left out."""
        received, is_open = b"", True
        while True:
            rows = []
            for row in map(json.loads, self._read_lines()):
                step = row.pop("step")
                if step > last_step:
                    last_step = step
                    numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
                    rows.append((step, {key: value for key, value in numbers.items() if math.isfinite(value)}))
            yield rows
            if not is_open:
                break
            if select.select([sys.stdin], [], [], _POLL_S)[0]:
                part = os.read(sys.stdin.fileno(), 64)
                received, is_open = received + part, bool(part)
        self.is_complete = received == _ENDED_WELL

    def _read_lines(self) -> list[bytes]:
        """Whole lines after those read before; all lines where a restart has written the file anew."""
        try:
            with self._out.fs.open_input_file(self._path) as file:
                file.seek(min(self._offset - len(self._last_line), file.size()))
                if file.read(len(self._last_line)) != self._last_line:
                    self._offset, self._last_line = 0, b""
                    file.seek(0)
                *lines, _ = file.read().split(b"\n")
        except OSError:  # not there yet, or storage that is away for a while
            return []
        if lines:
            self._offset += sum(len(line) + 1 for line in lines)
            self._last_line = lines[-1] + b"\n"
        return lines


def send_to_tensorboard(folder: str, out: Artifact, feed: _Feed) -> None:
    """Event files in `<folder>/<run>`. Each attempt writes all steps anew, and says so: what is there is discarded."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    with contextlib.closing(EventFileWriter(f"{folder}/{name_run(out)}")) as writer:
        writer.add_event(Event(step=0, session_log=SessionLog(status=SessionLog.START), wall_time=time.time()))
        for rows in feed.new_rows(0):
            for step, numbers in rows:
                values = [Summary.Value(tag=key, simple_value=value) for key, value in numbers.items()]
                writer.add_event(Event(step=step, summary=Summary(value=values), wall_time=time.time()))
            writer.flush()


def send_to_wandb(project: str, out: Artifact, feed: _Feed) -> None:
    """A run of the project, gone on with after a restart."""
    import wandb

    started = out.read_json(STARTED)
    quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    settings = started.get("recipe", {}).get("settings", {})
    # A training that was begun anew is another run.
    name = fingerprint_of({"url": out.url, "started_at": started.get("started_at"), "of": started["fingerprint"]})
    run = wandb.init(project=project, id=name, name=name_run(out), resume="allow", config=settings, settings=quiet)
    for rows in feed.new_rows(run.step - 1 if run.resumed else 0):
        for step, numbers in rows:
            run.log(numbers, step=step)
    run.finish(exit_code=0 if feed.is_complete else 1)


_SENDERS = {"tensorboard": send_to_tensorboard, "wandb": send_to_wandb}


def name_run(out: Artifact) -> str:
    """Such as `demo/5_base_lm`."""
    return "/".join([part for part in out.url.rstrip("/").split("/") if part != "artifacts"][-2:])


def main() -> None:
    """Send to one tracker until standard input ends."""
    set_up_logging()
    name, where, url, metrics = sys.argv[1:]
    out = Artifact("training", url)
    try:
        _SENDERS[name](where, out, _Feed(out, metrics))
    except Exception as error:  # noqa: BLE001  no key, no network, a bug: whatever it is, the training goes on
        logger.warning(f"tracking | {name} gets nothing more: {type(error).__name__}: {one_line(error)}")


if __name__ == "__main__":
    main()
