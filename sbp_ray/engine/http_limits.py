"""ASGI middleware of the endpoint: who comes in, and how much they may send."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sbp_ray.engine.access import Keys, is_forwarded, is_from_another_site, is_loopback
from sbp_ray.engine.bodies import ErrorDetail, ErrorResponse

OPEN_PATHS = ("/health", "/health/live", "/ping")
"""Served without a key: they tell a load balancer no more than that the service is there."""

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


def error_body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients expect it; `param` is the field to blame.

    Offending values are not repeated: they may be huge, or not be JSON.
    """
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return ErrorResponse(error=ErrorDetail(message=message, type=kind, param=param, code=status)).model_dump()


def error_answer(
    status: int, message: str, headers: dict[str, str] | None = None, param: str | None = None
) -> JSONResponse:
    """The same as a whole answer."""
    return JSONResponse(error_body(status, message, param), status_code=status, headers=headers)


class Doorkeeper:
    """Asks for a bearer key; where there is none to ask for, lets in only programs on this machine: no proxy's clients,
    and no page that a browser on it shows."""

    def __init__(self, app: ASGIApp, keys_file: str | None) -> None:
        self._app = app
        self._keys = Keys(keys_file)  # here, since Starlette makes middleware in the process that serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        refusal = None if scope["type"] != "http" or path in OPEN_PATHS else self._refusal(scope)
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = scope["headers"]
        if self._keys.are_needed:
            given = [value for name, value in headers if name.lower() == b"authorization"]
            may_enter = len(given) == 1 and self._keys.admit(given[0])
        else:
            client = scope.get("client")
            may_enter = client is not None and is_loopback(client[0]) and not is_forwarded(headers)
            if may_enter and is_from_another_site(headers):
                return error_answer(403, _ANOTHER_SITE)
        return None if may_enter else error_answer(401, "unauthorized", {"WWW-Authenticate": "Bearer"})


_ANOTHER_SITE = "without keys only programs on this machine are served, by the name localhost or a loopback address"


class BodyLimit:
    """Answers 413 to larger bodies, before they are parsed, and 408 to those that do not come: a request's own deadline
    begins only once it is read."""

    def __init__(self, app: ASGIApp, max_bytes: int, within_s: float) -> None:
        self._app, self._max_bytes, self._within_s = app, max_bytes, within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
        body = None
        if not (declared and declared[0].isdigit() and int(declared[0]) > self._max_bytes):
            try:
                async with asyncio.timeout(self._within_s):
                    body = await self._read(receive)
            except TimeoutError:
                answer = error_answer(408, f"the body did not come within {self._within_s:g} s: send it again")
                await answer(scope, receive, send)
                return
        if body is None:
            answer = error_answer(413, f"the body has more than {self._max_bytes} bytes: send a shorter text")
            await answer(scope, receive, send)
            return
        await self._app(scope, _Replayed(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, at most `max_bytes` of it in memory; None where it is longer."""
        parts, size = [], 0
        while True:
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_bytes:
                return None
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


class _Replayed:
    """`receive` for an app whose body has been read already; what follows is the client's leaving."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
