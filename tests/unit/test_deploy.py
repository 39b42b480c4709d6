"""What lies under deploy/ is accepted by Ray's own reading, names real files and settings, and says one thing once."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sbp_ray.cluster_limits import demand, largest_cluster
from sbp_ray.config_file import load_config
from sbp_ray.engine.access import KEYS_VARIABLE

REPO = Path(__file__).parents[2]
DEPLOY = REPO / "deploy"
KUBERAY = {
    "RayCluster": "raycluster.yaml",
    "RayJob": "rayjob.yaml",
    "RayService": "rayservice.yaml",
}

# Fields of KubeRay 1.6, from its API reference, as far as our files might use them.
CLUSTER = {
    "rayVersion", "enableInTreeAutoscaling", "authOptions", "autoscalerOptions", "gcsFaultToleranceOptions",
    "headGroupSpec", "workerGroupSpecs", "headServiceAnnotations", "suspend", "upgradeStrategy", "managedBy",
}  # fmt: skip
SPECS = {
    "RayCluster": CLUSTER,
    "RayJob": {
        "entrypoint", "runtimeEnvYAML", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "submissionMode", "rayClusterSpec", "submitterPodTemplate", "activeDeadlineSeconds", "metadata", "suspend",
    },
    "RayService": {"serveConfigV2", "rayClusterConfig", "serveService", "upgradeStrategy"},
}  # fmt: skip
GROUP = {
    "groupName", "minReplicas", "replicas", "maxReplicas", "numOfHosts", "rayStartParams", "template", "resources",
    "labels", "idleTimeoutSeconds", "scaleStrategy", "suspend",
}  # fmt: skip
POD = {"containers", "volumes", "tolerations", "securityContext", "nodeSelector", "affinity", "serviceAccountName"}


def _load(kind: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "kuberay" / KUBERAY[kind]).read_text())


def _cluster(kind: str) -> dict[str, Any]:
    spec = _load(kind)["spec"]
    return spec if kind == "RayCluster" else spec["rayClusterSpec" if kind == "RayJob" else "rayClusterConfig"]


@pytest.mark.parametrize("kind", KUBERAY)
def test_a_file_for_kuberay_has_no_field_that_kuberay_does_not_know(kind: str) -> None:
    whole = _load(kind)
    assert (whole["apiVersion"], whole["kind"]) == ("ray.io/v1", kind)
    assert whole["spec"].keys() <= SPECS[kind]
    cluster = _cluster(kind)
    assert cluster.keys() <= CLUSTER
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert group.keys() <= GROUP
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod.keys() <= POD
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= {volume["name"] for volume in pod.get("volumes", [])}
            assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("kind", KUBERAY)
def test_rays_autoscaler_reads_the_groups(kind: str) -> None:
    """Its own reading of a RayCluster, with its own validation: GPUs from zero, and nothing on the head."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    whole = {"metadata": {"name": "a", "namespace": "b"}, "spec": _cluster(kind)}
    config = _derive_autoscaling_config_from_ray_cr(whole)
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert {name: node["min_workers"] for name, node in types.items()} == dict.fromkeys(types, 0)
    most = largest_cluster(config)
    assert (most["CPU"], most["GPU"]) == (8 * 32 + 8 * 96, 8 * 8)
    settings = load_config(REPO / "configs/h200.yaml")
    for job in ("ingest", "embed", "neighbors", "pair", "pretrain", "tune", "synthesize", "eval"):
        assert all(amount <= most[name] for name, amount in demand(job, settings).items())


def test_the_three_clusters_are_one_and_ask_for_a_token() -> None:
    cluster = _cluster("RayCluster")
    assert _cluster("RayJob") == cluster == _cluster("RayService")
    assert cluster["authOptions"] == {"mode": "token", "secretName": "sbp-ray-token"}
    assert cluster["enableInTreeAutoscaling"] is True and cluster["autoscalerOptions"]["version"] == "v2"


def test_every_version_of_ray_is_the_pinned_one() -> None:
    pinned = re.search(r'"ray\[[^]]*\]==([\d.]+)"', (REPO / "pyproject.toml").read_text())
    assert pinned
    assert {_cluster(kind)["rayVersion"] for kind in KUBERAY} == {pinned[1]}


def test_the_service_is_reached_by_key_from_other_machines_and_has_an_engine_in_its_image() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve_apps.synthesizer import SynthesizerArgs

    deployed = ServeDeploySchema.model_validate(yaml.safe_load(_load("RayService")["spec"]["serveConfigV2"]))
    [application] = deployed.applications
    assert application.import_path == "serve_apps.synthesizer:app"
    args = SynthesizerArgs.model_validate(application.args)
    assert (deployed.http_options.host, deployed.proxy_location.value) == ("0.0.0.0", "EveryNode")
    cluster = _cluster("RayService")
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        [container] = group["template"]["spec"]["containers"]
        assert KEYS_VARIABLE in {variable["name"] for variable in container["env"]}
        assert container["image"] == "sbp-ray:gpu" and args.engine.resources.num_gpus  # whose vLLM knows no CPUs
    serve_port = {"name": "serve", "containerPort": deployed.http_options.port}
    assert serve_port in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]


def _commands() -> dict[str, str]:
    sky = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    anyscale = yaml.safe_load((DEPLOY / "anyscale.yaml").read_text())
    run = sky["run"].replace("$CONFIG", sky["envs"]["CONFIG"])
    return {"rayjob": _load("RayJob")["spec"]["entrypoint"], "sky": run, "anyscale": anyscale["entrypoint"]}


@pytest.mark.parametrize("name", ["rayjob", "sky", "anyscale"])
def test_what_is_run_is_there(name: str) -> None:
    found = re.search(r'(jobs/\w+\.py) --config "?(\S+?\.yaml)', _commands()[name])
    assert found
    assert (REPO / found[1]).is_file()
    load_config(REPO / found[2])


@pytest.mark.parametrize("kind", ["script", "setup", "run"])
def test_commands_are_shell(kind: str) -> None:
    sky = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    text = (DEPLOY / "slurm.sbatch").read_text() if kind == "script" else sky[kind]
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).stderr == ""


def test_the_image_takes_files_that_are_there_and_ends_without_rights() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    instructions = [line.split() for line in lines if line and not line.startswith("#")]
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER"}
    assert {words[0] for words in instructions} == known
    for words in instructions:
        if words[0] == "COPY":
            *sources, _ = [word for word in words[1:] if not word.startswith("--")]
            for extra in ("cpu", "gpu"):
                assert all((REPO / source.replace("${EXTRA}", extra)).exists() for source in sources)
        if words[0] == "RUN":
            command = " ".join(words[1:])
            assert subprocess.run(["sh", "-n", "-c", command], capture_output=True, check=False).returncode == 0
    assert instructions[-1] == ["USER", "1000"]
