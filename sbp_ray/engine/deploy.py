"""From engine settings to a Serve application, and one that lives as long as a batch job needs it."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EngineConfig
from sbp_ray.errors import SbpError
from sbp_ray.logs import duration

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.llm import LLMConfig

logger = logging.getLogger(__name__)

MODEL_ID = "synthesizer"
DEPLOYMENT = "SynthesizerServer"
_REPORT_EVERY_S = 10.0


def quiet_environment() -> dict[str, str]:
    """Environment of every process that imports vLLM: no hub, no telemetry, errors only on the terminal."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }


def identity_of(engine: EngineConfig, synthesizer: Artifact) -> dict[str, Any]:
    """What decides the distribution that a replica draws from: the checkpoint, and how the engine computes."""
    return {
        "synthesizer": synthesizer.fingerprint(),
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
    }


def llm_config(engine: EngineConfig, synthesizer: Artifact) -> LLMConfig:
    """The settings of the replicas in the words of Ray Serve LLM and vLLM."""
    from ray.serve.llm import LLMConfig

    from sbp_ray.engine.service import ModelFiles

    on_gpu = engine.resources.num_gpus > 0
    return LLMConfig(
        model_loading_config={"model_id": MODEL_ID, "model_source": str(synthesizer.local_copy("model"))},
        accelerator_type=None,
        placement_group_config=_gpu_placement(engine) if on_gpu else _cpu_placement(engine),
        engine_kwargs=_engine_kwargs(engine) | (_gpu_kwargs(engine) if on_gpu else _cpu_kwargs(engine)),
        runtime_env={"env_vars": quiet_environment() | ({} if on_gpu else _cpu_environment(engine))},
        deployment_config=_deployment_options(engine),
        log_engine_metrics=True,
        callback_config={
            "callback_class": ModelFiles,
            "callback_kwargs": {
                "artifact_name": synthesizer.name,
                "artifact_url": synthesizer.url,
                "folder": "model",
            },
        },
    )


def _engine_kwargs(engine: EngineConfig) -> dict[str, Any]:
    return {
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "enforce_eager": engine.enforce_eager,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # sampling follows the request alone, not a file beside the weights
        "use_tqdm_on_load": False,
    }


def _gpu_placement(engine: EngineConfig) -> dict[str, Any]:
    return {"bundle_per_worker": {"CPU": engine.resources.num_cpus, "GPU": engine.resources.num_gpus}}


def _gpu_kwargs(engine: EngineConfig) -> dict[str, Any]:
    return {"gpu_memory_utilization": engine.gpu_memory_share}


def _cpu_placement(engine: EngineConfig) -> dict[str, Any]:
    return {"bundles": [{"CPU": engine.resources.num_cpus}]}


def _cpu_kwargs(engine: EngineConfig) -> dict[str, Any]:
    return {
        "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30),
        # A prompt prefilled in parts makes vLLM 0.29 rewind the seeded generator, which CPU generators cannot do: the
        # engine dies of it. Whole prompts never need that, and a window must then fit one step.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(engine.max_model_len, 8192),
    }


def _cpu_environment(engine: EngineConfig) -> dict[str, str]:
    threads = engine.resources.num_threads or math.ceil(engine.resources.num_cpus)
    # vLLM's own binding leaves one core out, half of a small machine, and gives several engines the same cores.
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}


def _deployment_options(engine: EngineConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        # The engine's workers hold the CPUs of the placement group; the replica itself only waits for them.
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": 4 * engine.max_num_seqs,
        "max_constructor_retry_count": 1,
        "health_check_timeout_s": 60,
        "graceful_shutdown_timeout_s": 5,
    }
    if engine.min_replicas == engine.max_replicas:
        return options | {"num_replicas": engine.max_replicas}
    return options | {
        "autoscaling_config": {
            "min_replicas": engine.min_replicas,
            "max_replicas": engine.max_replicas,
            "target_ongoing_requests": engine.max_num_seqs,
        }
    }


def build_server(engine: EngineConfig, synthesizer: Artifact) -> Application:
    """The engine replicas alone, reached through their deployment handle."""
    _require_model(synthesizer)
    _quiet_this_process()
    from ray.serve.llm import build_llm_deployment

    from sbp_ray.engine.service import SynthesizerServer

    return build_llm_deployment(
        llm_config(engine, synthesizer),
        deployment_cls=SynthesizerServer,
        bind_kwargs={"identity": identity_of(engine, synthesizer)},
        override_serve_options={"name": DEPLOYMENT},
    )


def build_app(engine: EngineConfig, synthesizer: Artifact) -> Application:
    """The service: an HTTP ingress in front of the engine replicas."""
    server = build_server(engine, synthesizer)
    from ray import serve
    from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
    from ray.serve.llm.ingress import make_fastapi_ingress

    from sbp_ray.engine.service import ENDPOINTS, SynthesizerIngress, http_app

    ingress = make_fastapi_ingress(SynthesizerIngress, endpoint_map=ENDPOINTS, app=http_app())
    card = to_model_metadata(MODEL_ID, llm_config(engine, synthesizer))
    card.owned_by = "sbp_ray"
    card.metadata["synthesizer"] = synthesizer.fingerprint()
    return serve.deployment(
        ingress,
        name="SynthesizerIngress",
        max_ongoing_requests=10_000,
        # No CPU of its own, like Serve's proxy: it only passes messages on.
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": quiet_environment()}},
    ).bind(llm_deployments={MODEL_ID: server}, model_cards={MODEL_ID: card})


def _require_model(synthesizer: Artifact) -> None:
    if not synthesizer.exists("model/config.json"):
        raise SbpError(f"{synthesizer.path('model')} holds no model: run jobs/tune.py first")


def _quiet_this_process() -> None:
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS", "TORCH_CPP_LOG_LEVEL"):
        os.environ.setdefault(name, quiet_environment()[name])
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


# For a batch job


@contextmanager
def running_synthesizer(engine: EngineConfig, synthesizer: Artifact, *, owner: str) -> Iterator[str]:
    """The name of a Serve application with this synthesizer: one that runs already, else one for as long as the block.

    Args:
        engine: how to serve it.
        synthesizer: the artifact with the checkpoint.
        owner: names the batch job, so that a rerun finds, uses and in the end stops what a killed driver left behind.

    Raises:
        SbpError: the engine cannot start; the message names the cause.
    """
    _require_model(synthesizer)
    from ray import serve

    own_name = f"synthesize-{hashlib.sha256(owner.encode()).hexdigest()[:12]}"
    found = _find(identity_of(engine, synthesizer), own_name)
    serve_runs = bool(serve.status().proxies) or found is not None
    try:
        yield found or _start(engine, synthesizer, own_name)
    finally:
        if found in (None, own_name):
            _stop(own_name, everything=not serve_runs)


def _find(identity: dict[str, Any], own_name: str) -> str | None:
    """A running application that draws from the same distribution."""
    from ray import serve

    for name, app in serve.status().applications.items():
        if app.status == "RUNNING" and DEPLOYMENT in app.deployments:
            handle = serve.get_deployment_handle(DEPLOYMENT, app_name=name)
            if handle.identity.remote().result(timeout_s=60) == identity:
                logger.info(f"synthesize | uses the engine that runs as {name!r}")
                return name
    return None


def _start(engine: EngineConfig, synthesizer: Artifact, name: str) -> str:
    from ray import serve

    start = time.monotonic()
    logger.info("synthesize | starting the engine")
    app = build_server(engine, synthesizer)
    log_config = {"log_level": "WARNING", "enable_access_log": False}
    # Requests go through deployment handles: a batch job opens no port.
    serve.start(proxy_location="Disabled", logging_config=log_config)
    serve.run_many(
        [serve.RunTarget(app, name=name, route_prefix=None, logging_config=log_config)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    _wait_until_running(name, start)
    logger.info(f"synthesize | engine is up after {duration(time.monotonic() - start)}")
    return name


def _wait_until_running(name: str, start: float) -> None:
    """Wait as long as there is hope (a cluster may have to bring up a machine), saying what is waited for."""
    from ray import serve

    reported = start
    while True:
        app = serve.status().applications.get(name)
        deployment = app.deployments.get(DEPLOYMENT) if app else None
        if app and app.status == "RUNNING":
            return
        if app and app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            message = deployment.message if deployment and deployment.message else app.message
            raise SbpError(f"the engine cannot start: {_cause(message)}: change the engine section, or the model")
        now = time.monotonic()
        if now - reported >= _REPORT_EVERY_S:
            reported = now
            states = dict(deployment.replica_states) if deployment else {}
            logger.info(f"synthesize | waiting for the engine since {duration(now - start)} | replicas {states}")
        time.sleep(0.2)


def _cause(message: str) -> str:
    """What a remote traceback says went wrong, in one line: its last line at the margin, and the one that explains it.

    Pydantic's errors, of which vLLM's settings have many, name the reason in the line after.
    """
    lines = [line for line in message.splitlines() if line.strip()]
    margins = [number for number, line in enumerate(lines) if not line[0].isspace()]
    if not margins:
        return "no cause is known, see the logs of Ray Serve"
    errors = [number for number in margins if re.match(r"[\w.]*(Error|Exception)\b", lines[number])]
    last = (errors or margins)[-1]
    return " ".join(line.strip() for line in lines[last : last + 2])[:400]


def _stop(name: str, *, everything: bool) -> None:
    from ray import serve

    if everything:
        serve.shutdown()
    elif name in serve.status().applications:
        serve.delete(name)
