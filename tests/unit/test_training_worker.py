"""What the user is told when Ray Train gives up."""

import pytest
from ray.train import ControllerError, PreemptionError, PreemptionInfo, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from sbp_ray.config import TrainingResources
from sbp_ray.training.worker import explain_lost_workers

DIED = WorkerHealthCheckFailedError("health check failed", RuntimeError("the actor died"))
TAKEN = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [0]})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (WorkerGroupError("", {0: RuntimeError("connection reset"), 1: DIED}), "workers died more often than "
         "resources.max_failures=2 allows: see their logs for the reason (often memory)"),
        (PreemptionError(TAKEN), "nodes were taken back more often than resources.max_preemptions=5 allows"),
        (WorkerGroupError("", {0: ZeroDivisionError()}), ""),  # a bug of ours: its traceback is wanted
        (ControllerError(RuntimeError("of Ray's")), ""),
    ],
)  # fmt: skip
def test_workers_that_died_are_told_from_errors_of_ours(error: TrainingFailedError, said: str) -> None:
    assert explain_lost_workers(error, TrainingResources(max_failures=2, max_preemptions=5)) == said
