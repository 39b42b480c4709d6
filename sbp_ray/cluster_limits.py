"""What a cluster can ever have, and what a job asks of it.

`refuse_what_cannot_fit` compares the `demand` of a job with the `room` of the cluster. How large a cluster can become
is told by the first of these that knows: `cluster.most` in the settings; the limits that the cluster publishes to Ray
(Anyscale does, open-source Ray does not); KubeRay's RayCluster, read from the API server; the file of `ray up`, which
Ray's monitor on this machine was started with. Where none does and nodes come by an autoscaler, nothing is refused, and
a line says so; where no autoscaler runs, what is up now is all there is.
"""

from __future__ import annotations

import json
import logging
import math
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sbp_ray.config import ClusterConfig, Config, EngineConfig, Resources, TrainingConfig, TrainingResources
from sbp_ray.errors import SbpError, one_line
from sbp_ray.processor import num_cpus

logger = logging.getLogger(__name__)

WRITER_CPUS = 0.5
"""Of each actor that asks an engine for documents and writes them; there is one for each engine."""
_UNKNOWN = dict.fromkeys(("CPU", "GPU", "memory"), math.inf)
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_API_SERVER_TIMEOUT_S = 10
_NODE_GROUP = "ray.io/node-group"
"""Ray's label of a node that an autoscaler's provider started: its type there."""

_most: dict[str, float] = {}
"""`cluster.most` of the cluster that this process has joined."""


# What fits


def refuse_what_cannot_fit(job: str, config: Config) -> None:
    """Compare a stage's workers with the most that the cluster can ever have.

    Raises:
        SbpError: the cluster can never fit them.
    """
    refuse_without_room("engine" if job == "synthesize" else job, demand(job, config))


def refuse_without_room(key: str, wanted: dict[str, float]) -> None:
    """Compare what the settings under `key` take with the most that the cluster can ever have.

    Raises:
        SbpError: the cluster can never fit it.
    """
    largest = room()
    for resource, amount in wanted.items():
        available = float(largest.get(resource, 0))
        if amount > available:
            raise SbpError(
                f"{key}.resources wants {amount:g} {resource}s, the cluster can have at most {available:g}: "
                f"lower {key}.resources or use a larger cluster"
            )


def is_in_process(job: str, config: Config) -> bool:
    """Whether the job does without Ray."""
    section = getattr(config, job)
    return isinstance(section, TrainingConfig) and section.resources.in_process


def demand(job: str, config: Config) -> dict[str, float]:
    """CPUs and GPUs that a job's workers hold at the same time."""
    if job == "synthesize" and config.synthesize.rephrase is not None:
        return {"CPU": WRITER_CPUS, "GPU": 0.0}
    return engine_demand(config.engine) if job == "synthesize" else _demand(getattr(config, job).resources)


def _demand(resources: Resources) -> dict[str, float]:
    """Of the fewest workers that the stage can do with."""
    workers = resources.num_workers
    if isinstance(resources, TrainingResources) and resources.min_workers:
        workers = resources.min_workers
    return {"CPU": workers * resources.num_cpus, "GPU": workers * resources.num_gpus}


def engine_demand(engine: EngineConfig) -> dict[str, float]:
    """Of the engines that are kept when idle, at least one, and of who asks them."""
    replicas = max(1, engine.resources.min_replicas)
    engines = demand_of_engines(engine)
    return engines | {"CPU": engines["CPU"] + replicas * WRITER_CPUS}


def demand_of_engines(engine: EngineConfig) -> dict[str, float]:
    """Of the fewest engines, or of the first where there may be none.

    Each of the GPUs that share a model has a worker with `num_cpus` and `num_gpus`.
    """
    replicas = max(1, engine.resources.min_replicas)
    workers = replicas * (engine.resources.tensor_parallel_size if engine.resources.num_gpus else 1)
    return {"CPU": workers * engine.resources.num_cpus, "GPU": workers * engine.resources.num_gpus}


# What the cluster can have


@contextmanager
def limited_by(cluster: ClusterConfig) -> Iterator[None]:
    """Within the block `cluster.most` counts in `room`, and a cluster of unknown limits is told of once."""
    global _most
    _most = dict(cluster.most.items())
    try:
        if math.inf in room().values():
            logger.info(
                "cluster | an autoscaler runs, and how much it can bring up is published nowhere: jobs ask for what "
                "they need; set cluster.most, such as {CPU: 512, GPU: 64}, to have them refused where it is too much"
            )
        yield
    finally:
        _most = {}


def room() -> dict[str, float]:
    """The most of each resource that the cluster can ever have, memory in bytes; infinite where nobody knows."""
    import ray

    up = dict(ray.cluster_resources())
    if "RAY_ADDRESS" not in os.environ:
        return up  # a Ray of our own does not grow
    found = _published() or _of_kuberay() or _of_ray_up()
    if found is None:
        found = _UNKNOWN if _nodes_come_and_go() else up
    return {"memory": math.inf, **found, **_most}


def room_now() -> dict[str, float]:
    """The same, and what is up now where nobody knows: to share out among jobs."""
    import ray

    up = ray.cluster_resources()
    return {name: amount if math.isfinite(amount) else up.get(name, 0.0) for name, amount in room().items()}


def room_here() -> dict[str, float]:
    """The same of this machine, without Ray."""
    import torch

    return {"CPU": float(num_cpus()), "GPU": float(torch.cuda.device_count())}


def _published() -> dict[str, float] | None:
    """What whoever runs the cluster has told its control store."""
    from ray._private.state import state

    limits = state.get_max_resources_from_cluster_config()
    if limits is None:
        return None
    return {name: math.inf if most >= sys.maxsize else float(most) for name, most in limits.items()}


def _of_kuberay() -> dict[str, float] | None:
    """Worker groups of the RayCluster that this pod belongs to: what its spec lets them grow to.

    Without an autoscaler its `replicas` count, which need not be up yet. Ray's own reading of the groups says what a
    node of each has, as it does for the autoscaler.
    """
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    try:
        cluster = _ask_api_server(name)
    except OSError as error:
        logger.warning(f"cluster | RayCluster {name} cannot be read from the API server ({one_line(error)})")
        return dict(_UNKNOWN)
    groups = cluster["spec"].setdefault("workerGroupSpecs", [])
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        for group in groups:
            group["maxReplicas"] = group.get("replicas", 1)
    for group in groups:
        group.setdefault("minReplicas", 0)
    return largest_cluster(_derive_autoscaling_config_from_ray_cr(cluster))


def _ask_api_server(name: str) -> dict[str, Any]:
    """Raises OSError where there is no token, no answer, or no permission."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    version = os.environ.get("KUBERAY_CRD_VER", "v1")
    namespace = (_SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    token = (_SERVICE_ACCOUNT / "token").read_text(encoding="utf-8").strip()
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    request = urllib.request.Request(  # noqa: S310  https
        f"{url}/apis/ray.io/{version}/namespaces/{namespace}/rayclusters/{name}",
        headers={"Authorization": f"Bearer {token}"},
    )
    trusted = ssl.create_default_context(cafile=str(_SERVICE_ACCOUNT / "ca.crt"))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
    )  # no proxy leads to the API server of the own cluster
    with opener.open(request, timeout=_API_SERVER_TIMEOUT_S) as answer:
        return json.load(answer)


def _of_ray_up() -> dict[str, float] | None:
    """The file that this cluster's monitor was started with, where that runs on this machine: the head, as jobs do."""
    import psutil
    import ray

    address = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    flag = "--autoscaling-config="
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        files = [argument.removeprefix(flag) for argument in command if argument.startswith(flag)]
        if files and address in command:
            return largest_cluster(yaml.safe_load(Path(files[0]).expanduser().read_text(encoding="utf-8")))
    return None


def _nodes_come_and_go() -> bool:
    import ray

    return any(node["Alive"] and node["Labels"].get(_NODE_GROUP) for node in ray.nodes())


def largest_cluster(config: Mapping[str, Any]) -> dict[str, float]:
    """The most of each resource that an autoscaler can bring up: workers of all types, up to its config's limits."""
    types = config["available_node_types"]
    workers = [node for name, node in types.items() if name != config["head_node_type"]]
    most: dict[str, float] = dict(types[config["head_node_type"]]["resources"])
    for resource in {key for node in workers for key in node["resources"]}:
        left = config["max_workers"]
        for node in sorted(workers, key=lambda node: -node["resources"].get(resource, 0)):
            number = min(left, node.get("max_workers", left))
            most[resource] = most.get(resource, 0) + number * node["resources"].get(resource, 0)
            left -= number
    return most
