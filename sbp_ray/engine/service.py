"""The Serve deployments: engine replicas, and the HTTP ingress in front of them.

Both extend Ray Serve LLM's own, so that its OpenAI endpoints, routing, autoscaling and metrics hold for ours too.
"""

import asyncio
import json
import logging
import os
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from ray.llm._internal.common.callbacks.base import CallbackBase, CallbackCtx
from ray.llm._internal.serve.core.ingress.ingress import init as ray_llm_app
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.ingress import OpenAiIngress
from starlette.responses import JSONResponse, Response, StreamingResponse
from vllm import SamplingParams
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from sbp_ray.artifacts import Artifact
from sbp_ray.engine.messages import (
    Draw,
    Drawn,
    Refusal,
    SynthesizedDocument,
    SynthesizeRequest,
    SynthesizeResponse,
    Usage,
    sample_seed,
)
from sbp_ray.logs import set_up_logging
from sbp_ray.text.pair_format import prompt_ids
from sbp_ray.text.tokenizer import encode_texts, load_tokenizer, special_ids

logger = logging.getLogger(__name__)

_ENGINE_CHECK_S = 0.5


class ModelFiles(CallbackBase):  # type: ignore[misc]  # Ray's classes are untyped
    """Brings the synthesizer's files to the replica's node, in place of ray.llm's downloader.

    That one runs a task on every node which imports vLLM again, 15 to 35 s on two cores, to find a local folder.
    """

    async def on_before_node_init(self) -> None:
        """Point the engine at a local copy of the model."""
        artifact = Artifact(self.kwargs["artifact_name"], self.kwargs["artifact_url"])
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


class SynthesizerServer(LLMServer):  # type: ignore[misc]
    """A replica: one vLLM engine that completes prompts, and knows the pair format."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, llm_config: LLMConfig, *, identity: dict[str, Any]
    ) -> None:
        set_up_logging()
        on_one_cpu = (
            llm_config.accelerator_config.kind == "cpu" and llm_config.engine_kwargs["tensor_parallel_size"] == 1
        )
        await super().__init__(llm_config, engine_cls=OneProcessEngine if on_one_cpu else VLLMEngine)
        self._identity = identity
        self._engine_client = self.engine._engine_client
        self._tokenizer = load_tokenizer(llm_config.get_engine_config().hf_model_id)
        self._special = special_ids(self._tokenizer)
        self._window: int = llm_config.engine_kwargs["max_model_len"]
        self._watch = asyncio.create_task(self._die_with_the_engine())

    async def _die_with_the_engine(self) -> None:
        """End this process once the engine is dead: Serve replaces it, and what was in flight fails at once.

        Serve's own health check takes three failures, half a minute in which a replica without an engine gets requests.
        """
        while not self._engine_client.errored:
            await asyncio.sleep(_ENGINE_CHECK_S)
        logger.error("the engine died: its replica ends with it, to be replaced")
        os._exit(1)

    async def identity(self) -> dict[str, Any]:
        """Checkpoint and engine settings: replicas with equal ones draw from the same distribution."""
        return self._identity

    # Inside the cluster: tokens in, tokens out

    async def draw(self, draw: Draw) -> Drawn:
        """Draw one document."""
        async for output in self._outputs(draw, RequestOutputKind.FINAL_ONLY):
            final = output.outputs[0]
        return Drawn(self._without_end(final.token_ids), final.finish_reason)

    def _outputs(self, draw: Draw, kind: RequestOutputKind) -> AsyncGenerator[RequestOutput, None]:
        sampling = SamplingParams(
            temperature=draw.temperature,
            top_p=draw.top_p,
            seed=draw.seed,
            max_tokens=draw.max_tokens,
            stop_token_ids=[self._special.eos],
            detokenize=kind is RequestOutputKind.DELTA,
            output_kind=kind,
        )
        return self._engine_client.generate(tokens_input(draw.prompt_ids), sampling, uuid.uuid4().hex)

    def _without_end(self, token_ids: list[int]) -> list[int]:
        ids = list(token_ids)
        return ids[:-1] if ids and ids[-1] == self._special.eos else ids

    # From the ingress: text in, text out

    async def synthesize(self, request: SynthesizeRequest) -> SynthesizeResponse | Refusal:
        """Draw `request.n` documents together; the engine's prefix cache makes them share their prompt."""
        draws = self._draws(request)
        if isinstance(draws, Refusal):
            return draws
        drawn = await asyncio.gather(*[self.draw(draw) for draw in draws])
        documents = [
            SynthesizedDocument(
                index=index,
                text=self._tokenizer.decode(one.input_ids, skip_special_tokens=True),
                finish_reason=one.finish_reason,
                num_tokens=len(one.input_ids),
                seed=draw.seed,
            )
            for index, (draw, one) in enumerate(zip(draws, drawn, strict=True))
        ]
        return self._response(documents, request, _usage(draws[0], documents))

    async def synthesize_stream(self, request: SynthesizeRequest) -> AsyncGenerator[SynthesizeResponse | Refusal, None]:
        """Like `synthesize`, piece by piece; the last answer has no documents, and the usage."""
        draws = self._draws(request)
        if isinstance(draws, Refusal):
            yield draws
            return
        finished: list[SynthesizedDocument] = []
        head = self._response([], request)
        pieces: asyncio.Queue[SynthesizedDocument | BaseException] = asyncio.Queue()
        writers = [asyncio.create_task(self._write(i, draw, pieces)) for i, draw in enumerate(draws)]
        try:
            while len(finished) < len(draws):
                piece = await pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield head.model_copy(update={"documents": [piece]})
                if piece.finish_reason:
                    finished.append(piece)
            yield head.model_copy(update={"usage": _usage(draws[0], finished)})
        finally:  # also when the client has left: cancelled writers free their slots in the engine
            for writer in writers:
                writer.cancel()

    async def _write(self, index: int, draw: Draw, pieces: asyncio.Queue) -> None:
        num_tokens = 0
        try:
            async for output in self._outputs(draw, RequestOutputKind.DELTA):
                [new] = output.outputs
                num_tokens += len(self._without_end(new.token_ids))
                piece = SynthesizedDocument(index=index, text=new.text)
                if new.finish_reason:
                    piece.finish_reason, piece.num_tokens, piece.seed = new.finish_reason, num_tokens, draw.seed
                pieces.put_nowait(piece)
        except Exception as error:  # noqa: BLE001 (raised again by the reader of the queue)
            pieces.put_nowait(error)

    def _draws(self, request: SynthesizeRequest) -> list[Draw] | Refusal:
        """The draws that the request asks for; fixes its seed where it names none."""
        if request.seed is None:
            request.seed = secrets.randbits(63)
        [d1_ids] = encode_texts(self._tokenizer, [request.document])
        prompt = prompt_ids(d1_ids, self._special)
        room = self._window - len(prompt)
        if room < (request.max_tokens or 1):
            return Refusal(
                422,
                f"the document takes {len(prompt)} tokens of the window of {self._window}, which leaves {max(room, 0)} "
                f"for max_tokens={request.max_tokens or 1}: send a shorter document or a smaller max_tokens",
            )
        return [
            Draw(
                prompt_ids=prompt,
                seed=sample_seed(request.seed, index),
                max_tokens=request.max_tokens or room,
                temperature=request.temperature,
                top_p=request.top_p,
            )
            for index in range(request.n)
        ]

    def _response(
        self, documents: list[SynthesizedDocument], request: SynthesizeRequest, usage: Usage | None = None
    ) -> SynthesizeResponse:
        assert request.seed is not None
        return SynthesizeResponse(
            id=f"syn-{uuid.uuid4().hex}",
            model=self._llm_config.model_id,
            synthesizer=self._identity["synthesizer"],
            seed=request.seed,
            documents=documents,
            usage=usage,
        )


def _usage(draw: Draw, documents: list[SynthesizedDocument]) -> Usage:
    written = sum(document.num_tokens or 0 for document in documents)
    prompt = len(draw.prompt_ids)
    return Usage(prompt_tokens=prompt, completion_tokens=written, total_tokens=prompt + written)


class SynthesizerIngress(OpenAiIngress):  # type: ignore[misc]
    """HTTP in front of the replicas: OpenAI's completions and models, and our synthesize."""

    async def synthesize(self, body: SynthesizeRequest) -> Response:
        """Write documents that are related to the one sent."""
        [handle] = self._default_serve_handles.values()
        if body.stream:
            answers = handle.options(stream=True).synthesize_stream.remote(body)
            first = await anext(answers)
            if isinstance(first, Refusal):
                return _error(first.status, first.message)
            return StreamingResponse(_events(first, answers), media_type="text/event-stream")
        answer = await handle.synthesize.remote(body)
        if isinstance(answer, Refusal):
            return _error(answer.status, answer.message)
        return JSONResponse(answer.model_dump(exclude_none=True))


ENDPOINTS = {
    "models": lambda app: app.get("/v1/models"),
    "model_data": lambda app: app.get("/v1/models/{model:path}"),
    "completions": lambda app: app.post("/v1/completions"),
    "synthesize": lambda app: app.post(
        "/v1/synthesize", response_model=SynthesizeResponse, responses={200: {"content": {"text/event-stream": {}}}}
    ),
}


def http_app() -> FastAPI:
    """Ray Serve LLM's FastAPI app with its metrics and request ids, and our answers to malformed requests.

    Its wildcard CORS goes: a page open in the user's browser must not reach a service that listens on loopback.
    """
    app = ray_llm_app()
    app.title = "SBP synthesizer"
    app.user_middleware = [m for m in app.user_middleware if m.cls is not CORSMiddleware]
    app.add_exception_handler(RequestValidationError, _refuse_malformed)
    return app


async def _refuse_malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = first["msg"].removeprefix("Value error, ")
    return _error(422, f"{where}: {message}" if where else message)


def _error(status: int, message: str) -> JSONResponse:
    """An error as OpenAI's clients expect it. The offending value is not repeated: it may be huge, or not be JSON."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": status}}
    return JSONResponse(body, status_code=status)


async def _events(first: SynthesizeResponse, rest: AsyncIterator[SynthesizeResponse]) -> AsyncGenerator[str, None]:
    yield _event(first)
    async for answer in rest:
        yield _event(answer)
    yield "data: [DONE]\n\n"


def _event(answer: SynthesizeResponse) -> str:
    return f"data: {json.dumps(answer.model_dump(exclude_none=True), ensure_ascii=False)}\n\n"
