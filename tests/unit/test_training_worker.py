"""How ranks find one another, and what the user is told when Ray Train gives up."""

import os
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray.train import ControllerError, PreemptionError, PreemptionInfo, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from sbp_ray.config import TrainingResources
from sbp_ray.training.network import choose_interface
from sbp_ray.training.worker import explain_lost_workers, explain_storage, gpu_environment

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


def test_a_store_that_a_worker_could_not_read_is_said_in_one_line() -> None:
    denied = OSError("When reading information for key 'x' in bucket 'y': AWS Error ACCESS_DENIED during HeadObject")
    told = explain_storage(WorkerGroupError("", {0: RuntimeError("connection reset"), 1: denied}))
    assert told.endswith("see to the store and to its credentials, and run the same command again to go on")
    assert explain_storage(WorkerGroupError("", {0: ZeroDivisionError(), 1: DIED})) == ""
    assert explain_storage(ControllerError(RuntimeError("of Ray's"))) == ""


def test_ranks_on_gpus_compile_with_their_own_cpus_and_tell_what_they_did_last() -> None:
    environment = gpu_environment(TrainingResources(num_workers=8, num_cpus=6, num_gpus=1))
    assert environment["TORCHINDUCTOR_COMPILE_THREADS"] == "6"  # 8 ranks with the default of 32 would be 256
    assert environment["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.mark.parametrize(("chosen", "name"), [(None, "ens5"), ("ib0", "ib0")])
def test_gloo_sends_through_the_card_that_ray_knows_the_node_by_unless_the_user_has_chosen(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, name: str
) -> None:
    """And not through that of the address which the host's own name has, on Debian 127.0.1.1."""
    cards = {"lo": ["127.0.0.1"], "docker0": ["172.17.0.1"], "ens5": ["02:42:ac", "10.0.3.7"]}
    addresses = {card: [SimpleNamespace(address=one) for one in ones] for card, ones in cards.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.3.7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is put back
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    if chosen:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", chosen)
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == name
