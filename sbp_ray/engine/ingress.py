"""HTTP in front of the replicas: OpenAI's completions and models, synthesize, vLLM's small endpoints, and health.

`SynthesizerIngress` has a method for each path of `ENDPOINTS`; those that write go through `_answer`, which decides
between an error, a whole answer and a stream. `http_app` puts the middleware around them, and says errors our way.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.llm.ingress import OpenAiIngress
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from vllm.version import __version__ as vllm_version

from sbp_ray import __version__
from sbp_ray.config import ServiceConfig
from sbp_ray.engine.access import check_door_of_serve
from sbp_ray.engine.answers import CompletionAnswer, SynthesizeAnswer
from sbp_ray.engine.bodies import CompletionRequest, ErrorResponse, SynthesizeRequest, SynthesizeResponse, first_fault
from sbp_ray.engine.health import Health, UnknownStatusError, status_of
from sbp_ray.engine.http_limits import BodyLimit, Doorkeeper, error_answer
from sbp_ray.engine.messages import DEPLOYMENT, MODEL_ID, EngineLostError, Refusal
from sbp_ray.engine.metrics_page import CONTENT_TYPE, metrics_page
from sbp_ray.engine.router import write_where_there_is_room
from sbp_ray.engine.streams import HEADERS, LOST, OURS, events_of
from sbp_ray.engine.tokenization import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from sbp_ray.logs import set_up_logging

_STATUS_WITHIN_S = 2.5

NO_SUCH_MODEL = f"there is no such model: the only one here is {MODEL_ID!r}"


class SynthesizerIngress(OpenAiIngress):  # type: ignore[misc]
    """The endpoints. Whatever they answer, they hold no state: any of them may die."""

    def __init__(self, *, service: ServiceConfig, **parts: Any) -> None:
        super().__init__(**parts)
        set_up_logging()
        check_door_of_serve(service.keys_file)
        [handle] = self._default_serve_handles.values()
        self._replicas, self._stream = handle, handle.options(stream=True)
        self._service = service
        self._health = Health(partial(_engine_status, serve.get_replica_context().app_name), self._engine_answers)

    async def synthesize(self, body: Annotated[SynthesizeRequest, Body()]) -> Response:
        """Write documents that are related to the one sent."""
        return await self._answer(body, SynthesizeAnswer(body))

    async def completions(self, body: Annotated[CompletionRequest, Body()]) -> Response:
        """Go on with a text, as OpenAI's endpoint of the same name does."""
        if body.model != MODEL_ID:
            return error_answer(404, NO_SUCH_MODEL, param="model")
        return await self._answer(body, CompletionAnswer(body))

    async def models(self) -> dict[str, Any]:
        """What is served."""
        return {"object": "list", "data": list(self._model_cards.values())}

    async def model_data(self, model: str) -> Any:
        """What is served under a name."""
        if model not in self._model_cards:
            return error_answer(404, NO_SUCH_MODEL, param="model")
        return self._model_cards[model]

    async def tokenize(self, body: Annotated[TokenizeRequest, Body()]) -> Response:
        """Which tokens a text is, as a prompt."""
        return await self._asked(body.model, self._replicas.tokens_of.remote, body)

    async def detokenize(self, body: Annotated[DetokenizeRequest, Body()]) -> Response:
        """Which text tokens are."""
        return await self._asked(body.model, self._replicas.text_of.remote, body)

    async def version(self) -> dict[str, str]:
        """The engine's version, as vLLM says it, and this service's."""
        return {"version": vllm_version, "sbp_ray": __version__}

    async def metrics(self) -> PlainTextResponse:
        """What the engines, Serve and the pipeline count, for Prometheus."""
        return PlainTextResponse(await metrics_page(), media_type=CONTENT_TYPE)

    async def check_health(self) -> None:
        """Serve calls this every few seconds: so each of several ingresses knows the engines' status, asked or not."""
        await self._health.status()

    async def alive(self) -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "alive"}

    async def ready(self) -> JSONResponse:
        """200 when an engine can take requests, or wakes with the first of them; 503 while none can."""
        status = await self._health.status()
        return JSONResponse({"status": status}, status_code=503 if status == "starting" else 200)

    async def _engine_answers(self) -> bool:
        """Whether a replica does, which the router finds without the controller."""
        try:
            await self._replicas.identity.remote()
        except (RayError, RayServeException):
            return False
        return True

    async def _asked(self, model: str, ask: Callable[..., Awaitable[BaseModel | Refusal]], body: BaseModel) -> Response:
        """What any replica says to a question that takes no engine."""
        if model != MODEL_ID:
            return error_answer(404, NO_SUCH_MODEL, param="model")
        try:
            async with asyncio.timeout(self._service.deadline_s):
                said = await ask(body)
        except TimeoutError:
            return error_answer(504, f"no engine came up within {self._service.deadline_s:g} s: ask again")
        except (RayActorError, RayServeException):
            return error_answer(503, LOST, {"Retry-After": "1"})
        if isinstance(said, Refusal):
            return error_answer(said.status, said.message, param=said.param)
        return JSONResponse(said.model_dump())

    async def _answer(
        self, body: SynthesizeRequest | CompletionRequest, answer: SynthesizeAnswer | CompletionAnswer
    ) -> Response:
        seconds = min(body.timeout_s or self._service.deadline_s, self._service.deadline_s)
        deadline = time.monotonic() + seconds
        too_late = f"not done within {seconds:g} s: ask for less, or give it longer (timeout_s, service.deadline_s)"
        coming = asyncio.ensure_future(write_where_there_is_room(self._stream.write.remote, body))
        # Whether a request is taken on is decided at once, unless an engine must wake first. A stream then begins
        # without it: whoever stands between would cut a connection on which nothing comes.
        try:
            if body.stream:
                await asyncio.wait([coming], timeout=min(_STATUS_WITHIN_S, seconds))
                if not coming.done():
                    return _stream(events_of(coming, answer, deadline, too_late))
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                deltas, first = await coming
                if isinstance(first, Refusal):
                    headers = {"Retry-After": str(first.retry_after_s)} if first.retry_after_s else None
                    return error_answer(first.status, first.message, headers, first.param)
                if body.stream:
                    return _stream(events_of(coming, answer, deadline, too_late))
                answer.begin(first)
                async with aclosing(deltas):
                    answer.add(first.deltas)
                    async for new in deltas:
                        answer.add(new)
                return JSONResponse(answer.whole())
        except TimeoutError:
            return error_answer(504, too_late)
        except EngineLostError:
            return error_answer(503, LOST, {"Retry-After": "1"})
        except asyncio.CancelledError:  # the client has left
            coming.cancel()
            raise


def _stream(events: AsyncGenerator[str, None]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS)


def _engine_status(app_name: str) -> str:
    """`ready`, `asleep` (scaled to zero, the first request wakes one) or `starting`."""
    try:
        # Serve lists no deployments of an application while it builds a new configuration of it.
        deployment = serve.status().applications[app_name].deployments[DEPLOYMENT]
    except (RayError, RayServeException, TimeoutError, KeyError):
        raise UnknownStatusError from None
    return status_of(deployment.status, deployment.replica_states)


# The FastAPI app around them

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The body is not JSON, a field is wrong, or the text does not fit into the window.",
        401: "No key, or not one of ours.",
        404: "There is no such model.",
        408: "The body did not come in time.",
        413: "The body is too long.",
        429: "The service is full; Retry-After says when to ask again.",
        503: "The engine died; the same request can be sent again.",
        504: "Not done before the deadline.",
    }.items()
}
# Described in place of FastAPI's own 422, which is never sent.
_ERRORS["default"] = {"model": ErrorResponse, "description": "Any other error."}
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_DENIED: dict[int | str, dict[str, Any]] = {401: _ERRORS[401]}


def _at_each(app: FastAPI, *paths: str) -> Callable[..., Any]:
    """GET at several paths, one of which is what SageMaker asks, as of vLLM."""

    def route(function: Any) -> Any:
        for path in paths:
            function = app.get(path, responses={503: {"description": "No engine can take requests yet."}})(function)
        return function

    return route


ENDPOINTS = {
    "models": lambda app: app.get("/v1/models", responses=_DENIED),
    "model_data": lambda app: app.get("/v1/models/{model:path}", responses={**_DENIED, 404: _ERRORS[404]}),
    "completions": lambda app: app.post("/v1/completions", responses={**_ERRORS, **_STREAM}),
    "synthesize": lambda app: app.post(
        "/v1/synthesize", response_model=SynthesizeResponse, responses={**_ERRORS, **_STREAM}
    ),
    "tokenize": lambda app: app.post("/tokenize", response_model=TokenizeResponse, responses=_ERRORS),
    "detokenize": lambda app: app.post("/detokenize", response_model=DetokenizeResponse, responses=_ERRORS),
    "version": lambda app: app.get("/version", responses=_DENIED),
    "metrics": lambda app: app.get("/metrics", response_class=PlainTextResponse, responses=_DENIED),
    "alive": lambda app: app.get("/health/live"),
    "ready": lambda app: _at_each(app, "/health", "/ping"),
}


def http_app(service: ServiceConfig) -> FastAPI:
    """The app that Serve sends to the ingress process; it holds no secret."""
    app = FastAPI(title="SBP synthesizer", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=service.max_body_bytes, within_s=service.deadline_s)
    app.add_middleware(Doorkeeper, keys_file=service.keys_file)  # added last: asked first
    app.add_exception_handler(RequestValidationError, _refuse_malformed)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(Exception, _say_that_it_is_ours)
    return app


async def _say_that_it_is_ours(request: Request, error: Exception) -> JSONResponse:
    """Starlette raises the error again once this is sent, and Serve logs it."""
    return error_answer(500, OURS)


async def _refuse_malformed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if not request.headers.get("content-type", "").lower().startswith("application/json"):
        return error_answer(400, "send JSON, and say so with the header Content-Type: application/json")
    message, field = first_fault(error.errors())
    return error_answer(400, message, param=field)


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    message = str(error.detail)
    if error.status_code == 400:
        message = "the body is not JSON"  # all that FastAPI answers with 400 itself
    elif error.status_code == 404:
        message = f"there is no {request.url.path[:100]} here: this service has /v1/completions and /v1/synthesize"
        if request.url.path.endswith("/chat/completions"):
            message += "; its model was not tuned for chats"
    return error_answer(error.status_code, message, headers)
