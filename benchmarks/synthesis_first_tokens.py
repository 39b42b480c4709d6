"""Time to the first token over HTTP, beside an `AsyncLLM` in the client's process."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
from harness import emit
from synthesis_work import Work, engine_settings, request_body, sampling

FIRST_TOKENS = 64
"""Times to the first token in a round, at any number of clients."""


def first_tokens(work: Work, url: str, rounds: int) -> None:
    """Median milliseconds until the first token, at 1 and 16 clients, beside an `AsyncLLM` in the client's process."""
    from ray import serve
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor.abstract import Executor

    async def measure() -> None:
        settings = engine_settings(work)
        config = AsyncEngineArgs(model=work.synthesizer.path("model"), **settings).create_engine_config()
        config.parallel_config.distributed_executor_backend = "uni"  # as our replicas have it
        engine = AsyncLLM(vllm_config=config, executor_class=Executor.get_class(config), log_stats=False)
        while serve.status().applications["bench"].status == "DEPLOYING":
            await asyncio.sleep(0.2)
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
            for clients in (1, 16):
                cases = {"bare": partial(_bare_first, work, engine), "http": partial(_http_first, work, client, url)}
                times: dict[str, list[float]] = {name: [] for name in cases}
                for _ in range(rounds + 1):
                    for name, ask in cases.items():
                        times[name] += await _rounds(ask, clients)
                # The first round warms. Each other has FIRST_TOKENS of them.
                ours, peer = (1000 * statistics.median(times[name][FIRST_TOKENS:]) for name in ("http", "bare"))
                emit(
                    "synthesis", f"HTTP, {clients} clients", "time to first token", "ms", ours, "AsyncLLM", peer,
                    higher_is_better=False,
                )  # fmt: skip
        engine.shutdown()

    asyncio.run(measure())


async def _rounds(ask: Callable[[int], Any], clients: int) -> list[float]:
    times = []
    for start in range(0, FIRST_TOKENS, clients):
        times += await asyncio.gather(*[ask(start + offset) for offset in range(clients)])
    return times


async def _bare_first(work: Work, engine: Any, number: int) -> float:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    number %= len(work.prompts)
    parameters = SamplingParams(**(sampling(work, number) | {"max_tokens": 8}), output_kind=RequestOutputKind.DELTA)
    start, first = time.monotonic(), 0.0
    prompt = {"prompt_token_ids": work.prompts[number]}
    async for _ in engine.generate(prompt, parameters, f"{number}-{start}"):
        first = first or time.monotonic() - start
    return first


async def _http_first(work: Work, client: httpx.AsyncClient, url: str, number: int) -> float:
    number %= len(work.prompts)
    start, first = time.monotonic(), 0.0
    async with client.stream("POST", url, json=request_body(work, number, max_tokens=8, stream=True)) as answer:
        async for _ in answer.aiter_lines():
            first = first or time.monotonic() - start
    return first
