"""What waits for nodes is told apart from what waits for others to end."""

from __future__ import annotations

from ray.core.generated.autoscaler_pb2 import (
    AutoscalingState,
    ClusterResourceState,
    FailedInstanceRequest,
    GangResourceRequest,
    NodeState,
    NodeStatus,
    PendingInstance,
    PendingInstanceRequest,
    ResourceRequest,
    ResourceRequestByCount,
)

from sbp_ray.cluster_waiting import waiting_for, why_waiting

ON_GPU = ResourceRequest(resources_bundle={"CPU": 1, "GPU": 1})
GPU_BUNDLE = frozenset({("CPU", 1.0), ("GPU", 1.0)})


def _state(*nodes: dict[str, float], **demands: list[object]) -> ClusterResourceState:
    up = [NodeState(total_resources=node, status=NodeStatus.RUNNING) for node in nodes]
    dead = NodeState(total_resources={"CPU": 64, "GPU": 8}, status=NodeStatus.DEAD)
    return ClusterResourceState(node_states=[*up, dead], **demands)


def _pending(request: ResourceRequest, count: int) -> list[object]:
    return [ResourceRequestByCount(request=request, count=count)]


def test_what_only_waits_for_others_to_end_is_not_counted() -> None:
    one_cpu = ResourceRequest(resources_bundle={"CPU": 1})
    assert waiting_for(_state({"CPU": 4}, pending_resource_requests=_pending(one_cpu, 1000))) == {}


def test_what_no_living_node_could_hold_is_counted() -> None:
    assert waiting_for(_state({"CPU": 4}, pending_resource_requests=_pending(ON_GPU, 3))) == {GPU_BUNDLE: 3}


def test_a_placement_group_waits_where_its_parts_do_not_fit_together() -> None:
    group = [GangResourceRequest(requests=[ON_GPU, ON_GPU])]
    assert waiting_for(_state({"CPU": 4, "GPU": 2}, pending_gang_resource_requests=group)) == {}
    assert waiting_for(_state({"CPU": 4, "GPU": 1}, pending_gang_resource_requests=group)) == {GPU_BUNDLE: 2}


def test_the_reason_is_the_autoscalers() -> None:
    assert why_waiting(GPU_BUNDLE, AutoscalingState(infeasible_resource_requests=[ON_GPU])).startswith("infeasible")
    coming = AutoscalingState(
        pending_instances=[PendingInstance(ray_node_type_name="gpu")],
        pending_instance_requests=[PendingInstanceRequest(ray_node_type_name="gpu", count=2)],
        failed_instance_requests=[FailedInstanceRequest(ray_node_type_name="gpu-spot", reason="no capacity")],
    )
    assert why_waiting(GPU_BUNDLE, coming) == "on their way: 3 gpu; no gpu-spot (no capacity)"
    assert "none is known to be on its way" in why_waiting(GPU_BUNDLE, AutoscalingState())
