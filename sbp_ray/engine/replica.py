"""A replica: one vLLM engine that knows the pair format, takes on a budget of tokens, and ends with its engine.

Extends Ray Serve LLM's server, so that its placement, autoscaling and engine metrics hold for ours too.
"""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from ray import serve
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from vllm import SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from sbp_ray.artifacts import Artifact
from sbp_ray.config import ServiceConfig
from sbp_ray.engine import seeded
from sbp_ray.engine.admission import TokenBudget
from sbp_ray.engine.bodies import CompletionRequest, SynthesizeRequest
from sbp_ray.engine.deltas import merged
from sbp_ray.engine.health import StallWatch
from sbp_ray.engine.messages import (
    Accepted,
    Alive,
    Delta,
    EngineLostError,
    OtherModelError,
    Refusal,
    RefusedSample,
    SampledDocument,
    SampleRequest,
    Sampling,
    ScoredToken,
    sample_seed,
)
from sbp_ray.engine.parts import EngineCounters, OneProcessEngine
from sbp_ray.engine.planning import Plan, plan_request
from sbp_ray.engine.start_check import check_engine
from sbp_ray.engine.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
    detokenize,
    tokenize,
)
from sbp_ray.errors import one_line
from sbp_ray.logs import set_up_logging
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

logger = logging.getLogger(__name__)

_ENGINE_CHECK_S = 0.2
_ALIVE_EVERY_S = 10.0
_WHOLE = RequestOutputKind.FINAL_ONLY
_SOUND_ENDS = (None, "stop", "length")  # None while it writes
_REFUSALS = (ValueError, VLLMClientError)  # how vLLM says that it will not take a request


class SynthesizerServer(LLMServer):  # type: ignore[misc]
    """The deployment of the replicas."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        llm_config: LLMConfig,
        *,
        identity: dict[str, Any],
        service: ServiceConfig,
        stalled_after_s: float,
        synthesizer: Artifact | None = None,
        has_metrics: bool = True,
    ) -> None:
        """
        Args:
            synthesizer: what the engine is checked by at its start; None for no check.

        Raises:
            SbpError: it does not give held-out tokens what the trained model gave them.
        """
        set_up_logging()
        self._is_on_cpu: bool = llm_config.accelerator_config.kind == "cpu"
        on_one_cpu = self._is_on_cpu and llm_config.engine_kwargs["tensor_parallel_size"] == 1
        await super().__init__(llm_config, engine_cls=OneProcessEngine if on_one_cpu else VLLMEngine)
        self._identity = identity
        self._name: str = serve.get_replica_context().replica_id.unique_id
        self._engine_client = self.engine._engine_client
        self._counters = EngineCounters()
        loggers = self._engine_client.logger_manager.stat_loggers
        loggers[:] = [*(loggers if has_metrics else ()), self._counters]
        self._tokenizer = load_tokenizer(llm_config.get_engine_config().hf_model_id)
        self._special = special_ids(self._tokenizer)
        self._vocab_size: int = self._engine_client.model_config.get_vocab_size()
        self._window: int = llm_config.engine_kwargs["max_model_len"]
        cache = self._engine_client.vllm_config.cache_config
        self._budget = TokenBudget(
            service.max_tokens_in_flight or cache.num_gpu_blocks * cache.block_size,
            llm_config.engine_kwargs["max_num_seqs"],
            pace=self._counters.pace,
        )
        self._watch = asyncio.create_task(self._die_with_the_engine(stalled_after_s))
        if synthesizer is not None:
            await check_engine(synthesizer, identity, self._window, self._score)

    async def __del__(self) -> None:
        """Called by Serve when the replica is to leave: the engine goes first.

        Otherwise Ray kills it with the process, and vLLM takes its end for a crash.
        """
        if (watch := getattr(self, "_watch", None)) is not None:
            watch.cancel()
            self._engine_client.shutdown()
        await super().__del__()

    async def _die_with_the_engine(self, stalled_after_s: float) -> None:
        """End this process once the engine is dead, or stands still: Serve replaces it, and what was in flight fails.

        Serve's own health check takes three failures, half a minute in which a replica without an engine gets requests;
        and an engine that stands still passes it.
        """
        watch = StallWatch(stalled_after_s, time.monotonic())
        while not self._engine_client.errored:
            await asyncio.sleep(_ENGINE_CHECK_S)
            has_work = self._engine_client.output_processor.has_unfinished_requests()
            if watch.is_stalled(steps=self._counters.steps, has_work=has_work, now=time.monotonic()):
                logger.error(
                    f"the engine has work and made no step for {stalled_after_s:g} s: its replica ends with it"
                )
                os._exit(1)
        logger.error("the engine died: its replica ends with it, to be replaced")
        os._exit(1)

    async def identity(self) -> dict[str, Any]:
        """Checkpoint and engine settings: replicas with equal ones sample from the same distribution."""
        return self._identity

    async def load(self) -> dict[str, int]:
        """The engine's own counters, and what this replica has taken on."""
        return {
            "pid": os.getpid(),
            "running": self._counters.running,
            "waiting": self._counters.waiting,
            "generated_tokens": self._counters.generated_tokens,
            "tokens_in_flight": self._budget.tokens,
            "sequences_in_flight": self._budget.sequences,
            "max_tokens_in_flight": self._budget.max_tokens,
        }

    async def _score(self, ids: list[int]) -> list[float]:
        """NLL of each token of a document in nats; 0 for the first."""
        sampling = Sampling(max_tokens=1, temperature=0.0, top_p=1.0, prompt_logprobs=0)
        async for output in self._outputs(ids, sampling, 0, _WHOLE):
            places = output.prompt_logprobs
        return [0.0, *(-place[token].logprob for token, place in zip(ids[1:], places[1:], strict=True))]

    # For the batch job: tokens in, tokens out

    async def sample(
        self, request: SampleRequest, not_on: Sequence[str] = ()
    ) -> AsyncGenerator[Alive | SampledDocument | RefusedSample, None]:
        """Write the samples of one prompt together, and give each out when it is done.

        In between, say that the engine goes forward, as long as it does. `not_on` is for the router.

        Raises:
            OtherModelError: other engines were meant than this one.
        """
        if request.identity != self._identity:
            raise OtherModelError
        cost = len(request.seeds) * request.sampling.max_tokens + len(request.prompt_ids)
        with self._budget.held(cost, len(request.seeds), request.sampling.max_tokens):
            left = {asyncio.create_task(self._sample(request, number, seed)) for number, seed in request.seeds.items()}
            steps = -1
            try:
                yield Alive(self._name)
                while left:
                    done, left = await asyncio.wait(left, timeout=_ALIVE_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield task.result()
                    if not done and steps != self._counters.steps:
                        yield Alive(self._name)
                    steps = self._counters.steps
            finally:
                for task in left:
                    task.cancel()

    async def _sample(self, request: SampleRequest, sample: int, seed: int) -> SampledDocument | RefusedSample:
        try:
            async for output in self._outputs(request.prompt_ids, request.sampling, seed, _WHOLE):
                last = output
        except _REFUSALS as error:
            return RefusedSample(sample, one_line(error)[:300])
        [final] = last.outputs
        return SampledDocument(
            sample, self._text_ids(final, request.sampling), final.finish_reason, last.num_cached_tokens or 0
        )

    async def _outputs(
        self, prompt: list[int], sampling: Sampling, seed: int, kind: RequestOutputKind, *, as_text: bool = False
    ) -> AsyncGenerator[RequestOutput, None]:
        """What the engine writes, which ends at a stop or at a limit.

        An engine that is told to leave ends what it has begun as if it were done, and says so in the reason alone.

        Raises:
            EngineLostError: the engine ended otherwise.
        """
        parameters = self._parameters(sampling, seed, kind, as_text=as_text)
        try:
            async for output in self._engine_client.generate(tokens_input(prompt), parameters, uuid.uuid4().hex):
                for one in output.outputs:
                    if one.finish_reason not in _SOUND_ENDS:
                        raise EngineLostError(one.finish_reason)
                yield output
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineLostError(type(error).__name__) from None

    def _parameters(self, sampling: Sampling, seed: int, kind: RequestOutputKind, *, as_text: bool) -> SamplingParams:
        """In vLLM's words.

        Raises:
            ValueError: it does not take them.
        """
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop),
            stop_token_ids=[*sampling.stop_token_ids, *([] if sampling.ignore_eos else [self._special.eos])],
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            repetition_penalty=sampling.repetition_penalty,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            min_tokens=sampling.min_tokens,
            ignore_eos=sampling.ignore_eos,
            logit_bias=dict(sampling.logit_bias) or None,
            logprobs=sampling.logprobs,
            prompt_logprobs=sampling.prompt_logprobs,
            detokenize=as_text,
            output_kind=kind,
        )
        if self._is_on_cpu:
            seeded.sample_here(parameters)
        return parameters

    def _text_ids(self, new: CompletionOutput, sampling: Sampling) -> list[int]:
        """Without the <eos> that ended the text; one that it was told to pass over is a token like others."""
        ids = list(new.token_ids)
        is_ended = new.finish_reason == "stop" and not sampling.ignore_eos
        return ids[:-1] if is_ended and ids and ids[-1] == self._special.eos else ids

    # For the ingress: text in, text out

    async def write(
        self, request: SynthesizeRequest | CompletionRequest, not_on: Sequence[str] = ()
    ) -> AsyncGenerator[Refusal | Accepted | list[Delta], None]:
        """First a refusal, or with the first text what is known of the request; then its text, delta by delta. `not_on`
        is for the router.

        Cancelling it, as Serve does when the client has left, frees its slots in the engine.
        """
        plan = await self._plan(request, is_first_asked=not not_on)
        if isinstance(plan, Refusal):
            yield plan
            return
        with self._budget.held(plan.cost, plan.sequences, plan.sampling.max_tokens) as lease:
            # Each delta is a message, which on a CPU costs the engine's own cores: only who reads along gets them.
            kind = RequestOutputKind.DELTA if request.stream else _WHOLE
            samples = [
                self._deltas(plan, prompt, number * plan.n + sample, kind)
                for number, prompt in enumerate(plan.prompts)
                for sample in range(plan.n)
            ]
            is_first = True
            async for deltas in merged(samples):
                for delta in deltas:
                    if delta.finish_reason:
                        self._budget.give_back(lease, plan.sampling.max_tokens, 1)
                if is_first:
                    yield Accepted(plan.prompt_tokens, plan.seed, self._identity["synthesizer"], deltas)
                    is_first = False
                else:
                    yield deltas

    async def tokens_of(self, request: TokenizeRequest) -> TokenizeResponse:
        """Of `/tokenize`."""
        return await asyncio.to_thread(tokenize, request, self._tokenizer, self._window)

    async def text_of(self, request: DetokenizeRequest) -> DetokenizeResponse | Refusal:
        """Of `/detokenize`."""
        return await asyncio.to_thread(detokenize, request, self._tokenizer, self._vocab_size)

    async def _plan(self, request: SynthesizeRequest | CompletionRequest, *, is_first_asked: bool) -> Plan | Refusal:
        """What the request comes to, if it is something that the engine can do."""
        # In a thread: long texts must not stall the others' streams.
        plan = await asyncio.to_thread(plan_request, request, self._tokenizer, self._window, self._vocab_size)
        if isinstance(plan, Refusal):
            return plan
        try:  # before the request is taken on: where vLLM's limits are narrower than ours, that is no failure
            parameters = self._parameters(plan.sampling, 0, RequestOutputKind.DELTA, as_text=True)
            engine = self._engine_client.vllm_config
            parameters.verify(engine.model_config, engine.speculative_config, engine.structured_outputs_config, None)
        except _REFUSALS as error:
            return Refusal(400, one_line(error))
        return self._refusal(plan, is_first_asked=is_first_asked) or plan

    def _refusal(self, plan: Plan, *, is_first_asked: bool) -> Refusal | None:
        budget = self._budget
        if plan.cost > budget.max_tokens or plan.sequences > budget.max_sequences:
            return Refusal(
                400,
                f"the request may take {plan.cost} tokens in {plan.sequences} sequences, the service has room for "
                f"{budget.max_tokens} in {budget.max_sequences}: ask for fewer or shorter texts",
                param="n",
            )
        retry_after_s = budget.retry_after_s(
            plan.cost, plan.sequences, plan.sampling.max_tokens, is_expected_back=is_first_asked
        )
        if retry_after_s is None:
            return None
        return Refusal(429, f"the service is full: ask again in {retry_after_s} s", retry_after_s, self._name)

    async def _deltas(self, plan: Plan, prompt: list[int], index: int, kind: RequestOutputKind) -> AsyncIterator[Delta]:
        """One sample, as the engine writes it, or whole."""
        seed = sample_seed(plan.seed, index)
        num_tokens = 0
        echoed = plan.echoed[index // plan.n] if plan.echoed else None
        async for output in self._outputs(prompt, plan.sampling, seed, kind, as_text=True):
            [new] = output.outputs
            ids = [] if plan.only_prompts else self._text_ids(new, plan.sampling)
            text = "" if plan.only_prompts else new.text
            tokens = self._scored(ids, new.logprobs) if plan.with_tokens else ()
            if echoed:
                text = echoed.text + text
                if plan.with_tokens:
                    tokens = self._scored(prompt, output.prompt_logprobs)[echoed.from_token :] + tokens
                echoed = None
            num_tokens += len(ids)
            yield Delta(index, text, num_tokens, new.finish_reason, seed if new.finish_reason else None, tokens)

    def _scored(self, ids: list[int], scores: list[dict[int, Any] | None] | None) -> tuple[ScoredToken, ...]:
        """Tokens with what vLLM says of their places: by token id, log-probability and text."""
        scored = []
        for token_id, place in zip(ids, scores or [None] * len(ids), strict=False):
            if place is None:
                scored.append(ScoredToken(token_id, self._tokenizer.decode([token_id])))
            else:
                top = {one.decoded_token: one.logprob for one in place.values()}
                scored.append(ScoredToken(token_id, place[token_id].decoded_token, place[token_id].logprob, top))
        return tuple(scored)
