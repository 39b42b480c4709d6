"""What a cluster can become is read from where it is published, in one order."""

from __future__ import annotations

import json
import logging
import math
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from ray.core.generated.autoscaler_pb2 import ClusterConfig as Published
from ray.core.generated.autoscaler_pb2 import NodeGroupConfig

from sbp_ray import cluster_limits
from sbp_ray.cluster_limits import limited_by, room, room_now
from sbp_ray.config import ClusterConfig
from sbp_ray.config_file import settings_of
from sbp_ray.errors import SbpError

UP = {"CPU": 8.0, "memory": 3e10}
HEAD = {"Alive": True, "Labels": {}}
OF_AN_AUTOSCALER = {"Alive": True, "Labels": {"ray.io/node-group": "head"}}


class Cluster:
    """What Ray says of a cluster that this process has joined: a head with 8 CPUs, and whatever is set."""

    def __init__(self) -> None:
        self.node = HEAD
        self.published: Published | None = None


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    from ray._private.state import state

    cluster = Cluster()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    for name in ("RAY_CLUSTER_NAME", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: dict(UP))
    monkeypatch.setattr(ray, "nodes", lambda: [cluster.node])
    monkeypatch.setattr(state, "get_cluster_config", lambda: cluster.published)

    # Ray's filter of log records asks the context too, where a test before this one has joined a Ray.
    of_the_filter = dict.fromkeys(("get_job_id", "get_worker_id", "get_node_id"), str)
    worker = SimpleNamespace(mode=ray.SCRIPT_MODE)
    context = SimpleNamespace(gcs_address="10.0.0.1:6379", worker=worker, **of_the_filter)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    return cluster


def test_without_an_autoscaler_what_is_up_is_all_there_is(joined: Cluster) -> None:
    assert room() == UP


def test_where_an_autoscaler_publishes_nothing_nothing_is_refused_and_a_line_says_so(
    joined: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined.node = OF_AN_AUTOSCALER
    monkeypatch.setattr(logging.getLogger("sbp_ray"), "propagate", True)
    with caplog.at_level(logging.INFO), limited_by(ClusterConfig()):
        assert room() == dict.fromkeys(("CPU", "GPU", "memory"), math.inf)
        assert room_now() == {"CPU": 8.0, "GPU": 0.0, "memory": 3e10}  # what jobs share out among themselves
    assert [line for line in caplog.messages if "set cluster.most" in line] == caplog.messages != []


def test_the_setting_comes_before_all_else(joined: Cluster) -> None:
    joined.node = OF_AN_AUTOSCALER
    with limited_by(ClusterConfig(most={"CPU": 512, "GPU": 64})):
        assert room() == {"CPU": 512, "GPU": 64, "memory": math.inf}
    assert room()["GPU"] == math.inf  # it ends with the job


def test_a_resource_that_ray_does_not_know_by_that_name_is_refused_in_the_setting() -> None:
    with pytest.raises(SbpError, match="most"):
        settings_of(ClusterConfig, {"most": {"gpu": 3}}, [], where="a.yaml")


def test_what_the_cluster_publishes_is_taken(joined: Cluster) -> None:
    joined.published = Published(
        node_group_configs=[
            NodeGroupConfig(name="cpu", resources={"CPU": 32}, max_count=8),
            NodeGroupConfig(name="gpu", resources={"CPU": 96, "GPU": 8}, max_count=4),
            NodeGroupConfig(name="any", resources={"TPU": 4}, max_count=-1),
        ]
    )
    assert room() == {"CPU": 8 * 32 + 4 * 96, "GPU": 32, "TPU": math.inf, "memory": math.inf}


def test_the_file_of_ray_up_is_found_by_the_monitor_that_reads_it(joined: Cluster, tmp_path: Path) -> None:
    """A process with the command line of Ray's monitor, of this cluster; one of another cluster beside it."""
    types = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 4, "GPU": 1, "memory": 2**34}, "max_workers": 3},
    }
    config = {"head_node_type": "head", "available_node_types": types, "max_workers": 2}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config | {"max_workers": 1}))
    monitors = [
        subprocess.Popen(
            [sys.executable, "-c", "input()", f"--autoscaling-config={tmp_path / file}", f"--gcs-address={address}"],
            stdin=subprocess.PIPE,
        )
        for file, address in [("other.yaml", "10.0.0.2:6379"), ("ours.yaml", "10.0.0.1:6379")]
    ]
    try:
        assert room() == {"CPU": 8, "GPU": 2, "memory": 2**35}
    finally:
        for monitor in monitors:
            monitor.kill()
            monitor.communicate()


# KubeRay


def _group(name: str, most: int, limits: dict[str, str], **more: Any) -> dict[str, Any]:
    pod = {"spec": {"containers": [{"resources": {"limits": limits}}]}}
    return {"groupName": name, "replicas": 1, "maxReplicas": most, "rayStartParams": {}, "template": pod, **more}


RAY_CLUSTER = {
    "metadata": {"name": "sbp", "namespace": "team"},
    "spec": {
        "enableInTreeAutoscaling": True,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "4", "memory": "8Gi"}}}]}},
        },
        "workerGroupSpecs": [
            _group("cpu", 4, {"cpu": "16", "memory": "64Gi"}),
            _group("gpu", 3, {"cpu": "32", "memory": "256Gi", "nvidia.com/gpu": "8"}, minReplicas=0, numOfHosts=2),
        ],
    },
}


@pytest.fixture
def api_server(joined: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """An API server of Kubernetes on loopback with a certificate of its own; give it an answer and its status."""
    name = "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", *name],
        check=True, capture_output=True,
    )  # fmt: skip
    given: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_right = self.path == "/apis/ray.io/v1/namespaces/team/rayclusters/sbp"
            is_known = self.headers["Authorization"] == "Bearer a-token"
            self.send_response(given["status"] if is_right and is_known else 404)
            self.end_headers()
            self.wfile.write(json.dumps(given["answer"]).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    (tmp_path / "token").write_text("a-token\n")
    (tmp_path / "namespace").write_text("team")
    monkeypatch.setattr(cluster_limits, "_SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "sbp")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT_HTTPS", str(server.server_port))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # which leads nowhere
    yield lambda answer, status=200: given.update(answer=answer, status=status)
    server.shutdown()
    thread.join()
    server.server_close()


def test_on_kuberay_each_group_counts_with_its_largest_number_of_replicas(api_server: Callable[..., None]) -> None:
    api_server(RAY_CLUSTER)
    gib = 2**30
    memory = (8 + 4 * 64 + 6 * 256) * gib
    assert room() == {"CPU": 4 * 16 + 6 * 32, "GPU": 6 * 8, "memory": memory}


def test_on_kuberay_without_an_autoscaler_the_replicas_count_that_were_asked_for(
    api_server: Callable[..., None],
) -> None:
    api_server(RAY_CLUSTER | {"spec": RAY_CLUSTER["spec"] | {"enableInTreeAutoscaling": False}})
    assert room()["GPU"] == 2 * 8  # one replica of two hosts


def test_on_kuberay_without_permission_nothing_is_refused_and_a_line_says_why(
    api_server: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    api_server({"message": "rayclusters is forbidden"}, 403)
    monkeypatch.setattr(logging.getLogger("sbp_ray"), "propagate", True)
    assert room()["GPU"] == math.inf
    assert "RayCluster sbp cannot be read from the API server (HTTP Error 403: Forbidden)" in caplog.text
