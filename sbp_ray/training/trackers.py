"""The trackers: each library behind the same three calls. Imported late: they are optional extras."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sbp_ray.config import TrackingConfig
from sbp_ray.errors import one_line

logger = logging.getLogger(__name__)

_TAG = "sbp_ray.id"
_BATCH = 1000  # metrics that MLflow takes at once

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A training, as a tracker shows it."""

    id: str
    name: str
    """Such as `demo/5_base_lm`."""
    url: str
    """Of the artifact."""
    settings: dict[str, Any]
    """Flat: `tune.seed`."""


class Tracker(Protocol):
    """Where the rows go."""

    name: str
    last_step: int
    """Steps up to this one are there, from an earlier attempt too."""

    def log(self, rows: Sequence[Row]) -> None:
        """Take rows of later steps, in order."""

    def finish(self, is_complete: bool) -> None:
        """The training has ended, or else its driver failed."""


def open_trackers(tracking: TrackingConfig, run: Run) -> list[Tracker]:
    """Those that are set; one that cannot be opened is named and left out."""
    openers: list[tuple[str, Callable[[], Tracker]]] = []
    if tracking.tensorboard:
        folder = tracking.tensorboard
        openers.append(("tensorboard", lambda: TensorBoard(folder, run)))
    if tracking.wandb:
        project = tracking.wandb
        openers.append(("wandb", lambda: WeightsAndBiases(project, run)))
    if tracking.mlflow:
        uri = tracking.mlflow
        openers.append(("mlflow", lambda: MLflow(uri, tracking.mlflow_experiment, run)))
    opened = []
    for name, start in openers:
        try:
            opened.append(start())
        except Exception as error:  # noqa: BLE001  no key, no network, a bug: whatever it is, the training goes on
            logger.warning(f"tracking | {name} gets nothing: {type(error).__name__}: {one_line(error)}")
    return opened


def numbers(row: Row) -> Iterator[tuple[str, float]]:
    """What of a row is a curve."""
    for key, value in row.items():
        if key != "step" and isinstance(value, int | float) and math.isfinite(value):
            yield key, float(value)


class TensorBoard:
    """Event files in `<folder>/<run>`. Each attempt writes all steps anew, and says so: what is there is discarded."""

    name = "tensorboard"

    def __init__(self, folder: str, run: Run) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(f"{folder}/{run.name}")
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(step=0, session_log=restart, wall_time=time.time()))
        self.last_step = 0

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values = [self._summary.Value(tag=key, simple_value=value) for key, value in numbers(row)]
            event = self._event(step=row["step"], summary=self._summary(value=values), wall_time=time.time())
            self._writer.add_event(event)
            self.last_step = row["step"]
        self._writer.flush()

    def finish(self, is_complete: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of a project, gone on with after a restart."""

    name = "wandb"

    def __init__(self, project: str, run: Run) -> None:
        import wandb

        quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
        self._run = wandb.init(
            project=project, id=run.id, name=run.name, resume="allow", config=run.settings, settings=quiet
        )
        self.last_step = self._run.step - 1 if self._run.resumed else 0

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(dict(numbers(row)), step=row["step"])
            self.last_step = row["step"]

    def finish(self, is_complete: bool) -> None:
        self._run.finish(exit_code=0 if is_complete else 1)


class MLflow:
    """A run of an experiment, gone on with after a restart."""

    name = "mlflow"

    def __init__(self, uri: str, experiment: str, run: Run) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else self._client.create_experiment(experiment)
        earlier = self._client.search_runs([experiment_id], f"tags.`{_TAG}` = '{run.id}'")
        self.last_step = 0
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            history = self._client.get_metric_history(self._id, "loss_nats")
            self.last_step = max((entry.step for entry in history), default=0)
        else:
            tags = {_TAG: run.id, "sbp_ray.url": run.url}
            self._id = self._client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
            params = [Param(key, str(value)[:500]) for key, value in run.settings.items()]
            self._client.log_batch(self._id, params=params[:100])  # what it takes at once

    def log(self, rows: Sequence[Row]) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [self._metric(key, value, now_ms, row["step"]) for row in rows for key, value in numbers(row)]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._id, metrics=metrics[start : start + _BATCH])
        self.last_step = rows[-1]["step"]

    def finish(self, is_complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if is_complete else "FAILED")
