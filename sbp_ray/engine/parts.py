"""What ray.llm and vLLM are given in place of parts of their own: the model's files, the process, the counters."""

import time
from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase, CallbackCtx
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from sbp_ray.artifacts import Artifact
from sbp_ray.engine.admission import Pace
from sbp_ray.errors import SbpError


class ModelFiles(CallbackBase):  # type: ignore[misc]  # Ray's classes are untyped
    """Brings the synthesizer's files to the replica's node, in place of ray.llm's downloader.

    That one runs a task on every node which imports vLLM again, 15 to 35 s on two cores, to find a local folder.
    """

    async def on_before_node_init(self) -> None:
        """Point the engine at a local copy of the model.

        Raises:
            SbpError: another model lies there by now: it would be served under the name of the one before.
        """
        artifact = Artifact(self.kwargs["artifact_name"], self.kwargs["artifact_url"])
        if artifact.fingerprint() != self.kwargs["fingerprint"]:
            raise SbpError(
                f"{artifact.url} was made anew since the service was deployed: deploy the service again to serve it"
            )
        self.llm_config.get_engine_config().hf_model_id = str(artifact.local_copy(self.kwargs["folder"]))
        self.ctx.run_init_node = False


class OneProcessEngine(VLLMEngine):  # type: ignore[misc]
    """A CPU engine whose worker lives in the engine's own process.

    vLLM's default is a process more: it waits for the other by spinning, which costs a core, holds 0.5 GiB, and imports
    vLLM once more at the start.
    """

    def _prepare_engine_config(self, callback_ctx: CallbackCtx) -> tuple[Any, Any, Any]:
        arguments, frontend, config = super()._prepare_engine_config(callback_ctx)
        config.parallel_config.distributed_executor_backend = "uni"
        return arguments, frontend, config


class EngineCounters(AggregateStatLoggerBase):  # type: ignore[misc]
    """What the engine's scheduler itself says is going on."""

    def __init__(self, vllm_config: Any = None, engine_indexes: list[int] | None = None) -> None:
        self.running = self.waiting = self.generated_tokens = self.steps = 0
        self.pace = Pace()

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Called by vLLM after every step."""
        self.steps += 1
        if scheduler_stats is not None:
            self.running, self.waiting = scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs
        self.pace.step(time.monotonic(), goes_on=self.running + self.waiting > 0)
        if iteration_stats is not None:
            self.generated_tokens += iteration_stats.num_generation_tokens

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
