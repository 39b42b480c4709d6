"""What a job's cluster cannot hold and has not brought up: told in a line after a minute, with the reason.

`report_waiting` starts a thread that asks Ray's control store for the demands of the whole cluster. Tasks and actors
that wait for others to end are none of its business; `waiting_for` finds those that had no room if all else ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sbp_ray.errors import one_line

logger = logging.getLogger(__name__)

_AFTER_S = 60.0
_EVERY_S = 10.0
_AGAIN_S = 600.0
"""After which a line is repeated while nothing has come."""
_DEAD = 2
"""A node's status in `autoscaler.proto`."""

Bundle = frozenset[tuple[str, float]]
"""Resources of a task, an actor or one part of a placement group."""


@contextmanager
def report_waiting(address: str, *, after_s: float = _AFTER_S, every_s: float = _EVERY_S) -> Iterator[None]:
    """Within the block a thread reports what has waited for nodes for `after_s`.

    Args:
        address: of the control store.
        after_s: how long something waits before it is told of.
        every_s: how often the control store is asked.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(address, after_s, every_s, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _watch(address: str, after_s: float, every_s: float, stop: threading.Event) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
    from ray.exceptions import RayError

    client = GcsClient(address)
    since: dict[Bundle, float] = {}
    told: dict[Bundle, float] = {}
    while not stop.wait(every_s):
        try:
            status = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=every_s))
        except RayError as error:  # the head is busy or restarts: what depends on it says so itself
            logger.debug(f"cluster | no state from {address}: {one_line(error)}")
            continue
        now, waiting = time.monotonic(), waiting_for(status.cluster_resource_state)
        since = {bundle: since.get(bundle, now) for bundle in waiting}
        for bundle, count in waiting.items():
            if now - since[bundle] >= after_s and now - told.get(bundle, -_AGAIN_S) >= _AGAIN_S:
                told[bundle] = now
                why = why_waiting(bundle, status.autoscaling_state)
                waited = f"{now - since[bundle]:.0f} s"
                logger.warning(f"cluster | waiting since {waited} for {count} x {_shown(bundle)}: {why}")


def waiting_for(state: Any) -> Counter[Bundle]:
    """Demands that the nodes which are up could not hold if nothing else ran, with their numbers.

    Args:
        state: `ClusterResourceState` of `autoscaler.proto`.
    """
    nodes = [dict(node.total_resources) for node in state.node_states if node.status != _DEAD]
    total: Counter[str] = Counter()
    for node in nodes:
        total.update(node)
    waiting: Counter[Bundle] = Counter()
    for pending in state.pending_resource_requests:
        bundle = _bundle(pending.request)
        if not any(_fits(bundle, node) for node in nodes):
            waiting[bundle] += pending.count
    for gang in state.pending_gang_resource_requests:
        bundles = _bundles_of(gang)
        wanted: Counter[str] = Counter()
        for bundle in bundles:
            wanted.update(dict(bundle))
        if not _fits(wanted.items(), total) or not all(any(_fits(b, node) for node in nodes) for b in bundles):
            waiting.update(bundles)
    return waiting


def why_waiting(bundle: Bundle, state: Any) -> str:
    """What the autoscaler says of a demand.

    Args:
        state: `AutoscalingState` of `autoscaler.proto`; empty where it is Ray's first autoscaler, which reports none.
    """
    infeasible = {_bundle(request) for request in state.infeasible_resource_requests}
    infeasible |= {each for gang in state.infeasible_gang_resource_requests for each in _bundles_of(gang)}
    coming: Counter[str] = Counter(node.ray_node_type_name for node in state.pending_instances)
    for request in state.pending_instance_requests:
        coming[request.ray_node_type_name] += request.count
    failed = [f"no {each.ray_node_type_name} ({each.reason})" for each in state.failed_instance_requests]
    reasons = []
    if bundle in infeasible:
        reasons.append("infeasible, no type of node of this cluster has it")
    elif coming:
        reasons.append(f"on their way: {', '.join(f'{number} {name}' for name, number in sorted(coming.items()))}")
    else:
        reasons.append("no node that is up has it, and none is known to be on its way")
    return "; ".join([*reasons, *failed])


def _bundles_of(gang: Any) -> list[Bundle]:
    """Of a placement group: Ray fills in the selectors, and the older list of requests beside them or instead."""
    requests = gang.bundle_selectors[0].resource_requests if gang.bundle_selectors else gang.requests
    return [_bundle(request) for request in requests]


def _bundle(request: Any) -> Bundle:
    return frozenset((name, amount) for name, amount in request.resources_bundle.items() if amount)


def _fits(wanted: Any, there: Mapping[str, float]) -> bool:
    return all(amount <= there.get(name, 0.0) for name, amount in wanted)


def _shown(bundle: Bundle) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in sorted(bundle)) + "}"
