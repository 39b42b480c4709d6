"""Workers come from zero when work asks for them, each of the type it needs, and leave when it is done.

Real node processes on one machine. The node types are those of cluster.yaml; what changes is who makes a node (Ray's
single-machine provider instead of AWS), how large it says it is, and how soon an idle one goes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_head import free_ports, ray_head

REPO = Path(__file__).parents[2]
HEAD_ID = "f" * 51 + "00000"
"""The node id that Ray's single-machine provider expects of its head."""

DRIVER = """
import json, logging, time
import ray
from sbp_ray.cluster_limits import room
from sbp_ray.cluster_waiting import report_waiting

ray.init(address="auto", log_to_driver=False)
limits = room()
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("sbp_ray.cluster_waiting").addHandler(handler)

def workers():
    return [node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"]]

def wait_for(condition, what, timeout_s=240):
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.2)

@ray.remote(num_cpus=1)
class Work:
    def where(self):
        return ray.get_runtime_context().get_node_id()

def of_node(node):
    resources = {key: value for key, value in node["Resources"].items() if key in ("CPU", "GPU")}
    return {"resources": resources, "market": node["Labels"].get("market")}

seen = {"before": len(workers()), "limits": {name: limits[name] for name in ("CPU", "GPU")}}
waiting = report_waiting(ray.get_runtime_context().gcs_address, after_s=0.5, every_s=0.5)
waiting.__enter__()
too_much = Work.options(num_gpus=7).remote()  # no type has so many in one node
wait_for(lambda: any("infeasible" in line for line in lines), "what can never fit is named")
del too_much
seen["line"] = next(line for line in lines if "infeasible" in line).partition("s for ")[2]
waiting.__exit__(None, None, None)
on_gpu = Work.options(num_gpus=1).remote()
nodes = [ray.get(on_gpu.where.remote(), timeout=240)]  # it holds its node's only CPU, where other work could go in
on_cpu = Work.remote()
nodes.append(ray.get(on_cpu.where.remote(), timeout=240))
known = {node["NodeID"]: of_node(node) for node in workers()}
seen["gpu_work"], seen["cpu_work"] = (known[node] for node in nodes)
seen["during"] = len(known)
del on_gpu, on_cpu
wait_for(lambda: not workers(), "the idle worker leaves")
seen["after"] = len(workers())
print(json.dumps(seen))
"""


def _on_one_machine(gcs_address: str) -> dict[str, Any]:
    """cluster.yaml with one CPU and one GPU where a machine has many, and nodes that are processes."""
    config = yaml.safe_load((REPO / "cluster.yaml").read_text())
    for node in config["available_node_types"].values():
        node["resources"] = {name: min(amount, 1) for name, amount in node["resources"].items()}
        node["node_config"] = {}
    config["head_node_type"] = "ray.head.default"  # the name that the provider gives its head
    config["available_node_types"]["ray.head.default"] = config["available_node_types"].pop("head")
    config["provider"] = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": HEAD_ID,
        "gcs_address": gcs_address,
    }
    config["idle_timeout_minutes"] = 0.05
    config |= {"auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": []}
    config |= {"rsync_exclude": [], "rsync_filter": [], "initialization_commands": []}
    return config | {key: [] for key in config if key.endswith("_commands")}


@pytest.mark.slow
def test_workers_of_the_right_type_come_from_zero_and_leave_when_idle() -> None:
    [gcs_port] = free_ports(1)
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "CUDA_VISIBLE_DEVICES": "0",  # no node that says it has a GPU starts where tests are shown none
    }
    only_head = {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        config = folder / "cluster.yaml"
        config.write_text(yaml.safe_dump(_on_one_machine(f"127.0.0.1:{gcs_port}")))
        with ray_head(
            folder,
            f"--autoscaling-config={config}",
            "--num-gpus=0",
            environment=environment | only_head,
            gcs_port=gcs_port,
            num_cpus=0,
        ) as head:
            driver_env = {k: v for k, v in head.environment.items() if k not in only_head}
            driver = subprocess.run(
                [sys.executable, "-c", DRIVER],
                env=driver_env | {"RAY_ADDRESS": head.address},
                capture_output=True,
                text=True,
                timeout=580,
                check=False,
            )
        assert driver.returncode == 0, driver.stderr + _logs(folder)
        assert head.processes() == []
    seen = json.loads(driver.stdout.splitlines()[-1])
    assert seen == {
        "before": 0,
        "limits": {"CPU": 8 + 8 + 8, "GPU": 8 + 8},  # of the file that the monitor was started with
        "line": "1 x {CPU: 1, GPU: 7}: infeasible, no type of node of this cluster has it",
        "gpu_work": {"resources": {"CPU": 1.0, "GPU": 1.0}, "market": "spot"},  # preferred to the type on demand
        "cpu_work": {"resources": {"CPU": 1.0}, "market": "spot"},  # no GPU machine for work without a GPU
        "during": 2,
        "after": 0,
    }


def _logs(folder: Path) -> str:
    return "".join(path.read_text()[-3000:] for path in folder.glob("session_latest/logs/monitor.*"))
