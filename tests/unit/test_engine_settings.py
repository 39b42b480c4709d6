"""Engine settings in the words of Serve and vLLM, and errors in one line."""

from sbp_ray.config import EngineConfig, EngineResources, ServiceConfig, SynthesizeConfig
from sbp_ray.engine.deploy import _cpu_environment, _cpu_kwargs, _deployment_options
from sbp_ray.engine.running import cause_of
from sbp_ray.generation.shard_worker import max_in_flight

SERVICE = ServiceConfig()


def test_a_window_fits_one_step_on_cpu() -> None:
    """Prompts are never prefilled in parts there, so a step must hold the longest."""
    assert _cpu_kwargs(EngineConfig(max_model_len=20_000))["max_num_batched_tokens"] == 20_000
    assert not _cpu_kwargs(EngineConfig())["enable_chunked_prefill"]


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
