"""cluster.yaml is accepted by Ray's own validation, and says what the docs say of it. No cloud is asked."""

import copy
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from sbp_ray.cluster_limits import WRITER_CPUS, demand, largest_cluster, refuse_what_cannot_fit
from sbp_ray.config_file import load_config
from sbp_ray.errors import SbpError

REPO = Path(__file__).parents[2]


def _shipped() -> dict[str, Any]:
    return yaml.safe_load((REPO / "cluster.yaml").read_text())


def _validate(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does before it calls the cloud, and then what the head does with the file."""
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    AutoscalingConfig(copy.deepcopy(prepared), skip_content_hash=True).get_node_type_configs()
    return prepared


def test_ray_accepts_the_file() -> None:
    prepared = _validate(_shipped())
    assert set(prepared["available_node_types"]) == {"head", "cpu", "gpu", "gpu-spot"}


def _misspell(config: dict[str, Any]) -> None:
    config["idle_timeout_minute"] = config.pop("idle_timeout_minutes")


def _unknown_head(config: dict[str, Any]) -> None:
    config["head_node_type"] = "haed"


def _no_resources(config: dict[str, Any]) -> None:
    del config["available_node_types"]["gpu"]["resources"]


def _words_for_numbers(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu"]["resources"]["GPU"] = "eight"


def _more_than_the_maximum(config: dict[str, Any]) -> None:
    config["available_node_types"]["cpu"]["min_workers"] = config["max_workers"] + 1


def _misspelt_node_setting(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu"]["max_worker"] = 3


@pytest.mark.parametrize(
    "break_it",
    [
        _misspell,
        _unknown_head,
        _no_resources,
        _words_for_numbers,
        _more_than_the_maximum,
        _misspelt_node_setting,
    ],
)
def test_ray_refuses_a_broken_copy(break_it: Callable[[dict[str, Any]], None]) -> None:
    import jsonschema

    config = _shipped()
    break_it(config)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        _validate(config)


def test_nothing_is_scheduled_on_the_head() -> None:
    config = _shipped()
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert head["max_workers"] == 0


def test_every_worker_type_starts_from_zero_and_all_together_are_bounded() -> None:
    config = _shipped()
    workers = {name: node for name, node in config["available_node_types"].items() if name != config["head_node_type"]}
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in workers.values())
    assert sum(node["max_workers"] for node in workers.values()) == config["max_workers"]
    assert any(node["resources"].get("GPU") for node in workers.values())
    assert any("GPU" not in node["resources"] for node in workers.values())


def test_spot_is_preferred_and_labels_say_the_truth() -> None:
    types = _shipped()["available_node_types"]
    for name in ("cpu", "gpu-spot", "gpu"):
        is_spot = types[name]["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert is_spot == (types[name]["labels"]["market"] == "spot")
    assert types["gpu-spot"]["labels"]["market"] == "spot"
    assert types["gpu-spot"]["priority"] > types["gpu"]["priority"]


def test_tokens_are_required_on_every_node_and_the_dashboard_stays_on_loopback() -> None:
    config = _shipped()
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        [start] = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
    [head_start] = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head_start
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_mounted_files_are_in_the_repository_and_commands_are_shell() -> None:
    config = _shipped()
    assert (REPO / config["file_mounts"]["~/sbp_ray/requirements"] / "gpu.txt").is_file()
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    assert any("uv pip sync ~/sbp_ray/requirements/gpu.txt" in command for command in commands)
    for command in commands:
        assert subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False).returncode == 0, command


def test_the_largest_cluster_is_what_the_limits_allow() -> None:
    assert largest_cluster(_shipped()) == {"CPU": 16 * 192 + 8 * 32, "GPU": 16 * 8}
    # With room for 3 workers in all: three GPU machines, which have the most CPUs too.
    assert largest_cluster(_shipped() | {"max_workers": 3}) == {"CPU": 3 * 192, "GPU": 3 * 8}


@pytest.mark.parametrize(("num_gpus", "refused"), [(6, False), (4, False), (3, True)])
def test_an_elastic_training_fits_where_its_fewest_workers_do(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, refused: bool
) -> None:
    """A fixed cluster of eight, of which nodes are missing when the job starts."""
    import ray

    small = Path(__file__).with_name("small.yaml")
    wanted = ["num_workers=8", "min_workers=4", "num_gpus=1", "num_cpus=1"]
    config = load_config(small, ["pretrain.batch_rows=32", *(f"pretrain.resources.{setting}" for setting in wanted)])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": float(num_gpus)})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SbpError, match="wants 4 GPUs, the cluster can have at most 3") if refused else nullcontext():
        refuse_what_cannot_fit("pretrain", config)


def test_each_gpu_of_an_engine_counts_with_its_cpus() -> None:
    config = load_config(
        Path(__file__).with_name("small.yaml"),
        ["engine.resources.num_gpus=1", "engine.resources.tensor_parallel_size=4", "engine.resources.num_cpus=6"],
    )
    assert demand("synthesize", config) == {"CPU": 4 * 6 + WRITER_CPUS, "GPU": 4}


def test_gpu_nodes_can_be_given_network_cards_that_ray_takes() -> None:
    """What the comments of the file say to uncomment."""
    text = (REPO / "cluster.yaml").read_text()
    [first] = [line.strip(" #-") for line in text.splitlines() if "NetworkCardIndex: 0" in line]
    node = {"NetworkInterfaces": [yaml.safe_load(first.replace("…", "1"))]}
    assert node["NetworkInterfaces"][0]["InterfaceType"] == "efa"
    pytest.importorskip("boto3")  # of the head alone
    from ray.autoscaler._private.aws.config import _configure_subnets_and_groups_from_network_interfaces

    made = _configure_subnets_and_groups_from_network_interfaces(node)
    assert (made["SubnetIds"], made["SecurityGroupIds"]) == (["subnet-1"], ["sg-1"])
