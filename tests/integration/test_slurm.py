"""deploy/slurm.sbatch on two nodes: namespaces of this machine with a cable between them, and a stand-in `srun`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
ISOLATE = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]

DRIVER = """
import os, sys
import ray

ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
where = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(ray.util.get_node_ip_address)
nodes = sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
print("RAN", *sys.argv[1:], "ON", *nodes, "WITH", len(os.environ["RAY_AUTH_TOKEN"]), flush=True)
assert ray.get(where.remote()) in nodes
sys.exit(7)
"""

SRUN = """#!/usr/bin/env bash
# Two tasks: the second node in namespaces of its own, the first one here, as the allocation's first node.
while [ "${1#--}" != "$1" ]; do shift; done
unshare --mount --net --pid --fork --kill-child --mount-proc bash -c '
    ip link set lo up
    until ip address add 10.77.0.2/24 dev worker 2>/dev/null; do sleep 0.1; done
    ip link set worker up
    ip route add default via 10.77.0.1
    exec "$@"' bash "$@" >&2 &
worker=$!
until [ "$(readlink /proc/$worker/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link set worker netns $worker
"$@"
status=$?
kill $worker
exit $status
"""

ALLOCATION = """
ip link set lo up
ip link add head type veth peer name worker
ip address add 10.77.0.1/24 dev head
ip link set head up
ip route add default via 10.77.0.2
exec bash deploy/slurm.sbatch configs/demo.yaml run_dir=/shared/one
"""


def _may_isolate() -> bool:
    try:
        cable = ["ip", "link", "add", "head", "type", "veth", "peer", "name", "worker"]
        made = subprocess.run([*ISOLATE, *cable], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return made.returncode == 0


@pytest.mark.parametrize("redo", [["--redo", "tune"], ["--redo=tune"]])
def test_a_job_that_is_queued_again_does_not_delete_again(redo: list[str]) -> None:
    """Neither of Slurm's commands is there: the first attempt comes as far as asking for the hosts' names."""
    command = ["bash", "deploy/slurm.sbatch", "configs/demo.yaml", "run_dir=/shared/one", *redo]
    slurm = {"PATH": os.environ["PATH"], "SLURM_JOB_NODELIST": "node[1-2]"}
    said = [
        subprocess.run(command, cwd=REPO, env=slurm | more, capture_output=True, text=True, check=False).stderr
        for more in ({}, {"SLURM_RESTART_COUNT": "1"})
    ]
    assert "scontrol" in said[0]
    assert said[1].startswith("error: queued again with --redo: submit it without --redo if")


@pytest.mark.slow
def test_the_batch_script_makes_one_ray_of_two_nodes_and_ends_as_the_job_does() -> None:
    if not _may_isolate():
        pytest.skip("namespaces and cables between them are not permitted here, or there is no iproute2")
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        commands = {
            "srun": SRUN,
            "scontrol": "#!/bin/sh\nprintf '10.77.0.1\\n10.77.0.2\\n'\n",
            "python": f'#!/bin/sh\nexec "{sys.executable}" "{folder}/driver.py" "$@"\n',
            "driver.py": DRIVER,
        }
        for command, text in commands.items():
            (folder / command).write_text(text)
            (folder / command).chmod(0o755)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        slurm = {
            "SLURM_JOB_ID": folder.name,
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_SUBMIT_DIR": str(REPO),
            "RAY_START_OPTIONS": "--num-cpus=1 --object-store-memory=100000000",
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        job = subprocess.run(
            [*ISOLATE, "bash", "-c", ALLOCATION],
            cwd=REPO,
            env={**clean, **slurm},
            capture_output=True,
            text=True,
            check=False,
            timeout=560,
        )
        assert not Path(f"/tmp/sbp-{folder.name}").exists()
    [ran] = [line for line in job.stdout.splitlines() if line.startswith("RAN")]
    command = "jobs/pipeline.py --config configs/demo.yaml run_dir=/shared/one"
    assert ran == f"RAN {command} ON 10.77.0.1 10.77.0.2 WITH 64", job.stderr
    assert job.returncode == 7, job.stderr
