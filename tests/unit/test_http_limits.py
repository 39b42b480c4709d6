"""The endpoint's middleware, without Serve: who comes in, and how much they may send."""

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from sbp_ray.engine.access import KEYS_VARIABLE
from sbp_ray.engine.http_limits import BodyLimit, Doorkeeper

KEY = "k" * 16


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def client(keys_file: str | None, host: str = "10.0.0.5") -> TestClient:
    paths = ("/health", "/v1/models", "/health/")
    app = Starlette(routes=[Route(path, echo, methods=["GET", "POST"]) for path in paths])
    app.add_middleware(BodyLimit, max_bytes=10)
    app.add_middleware(Doorkeeper, keys_file=keys_file)
    return TestClient(app, client=(host, 1))


@pytest.fixture
def keys_file(tmp_path: Path) -> str:
    (tmp_path / "keys").write_text(KEY)
    return str(tmp_path / "keys")


def test_with_keys_only_health_is_open(keys_file: str) -> None:
    asked = client(keys_file)
    assert asked.get("/health").status_code == 200
    assert asked.get("/v1/models").status_code == 401
    assert asked.get("/health/").status_code == 401
    assert asked.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_two_authorization_headers_are_refused(keys_file: str) -> None:
    headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")]
    assert client(keys_file).get("/v1/models", headers=headers).status_code == 401


def test_without_keys_only_this_machine_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    assert client(None, "127.0.0.1").get("/v1/models").status_code == 200
    assert client(None, "10.0.0.5").get("/v1/models").status_code == 401


@pytest.mark.parametrize("told", [True, False])
def test_the_body_limit_holds_to_the_byte(keys_file: str, told: bool) -> None:
    def post(size: int) -> int:
        body = b"x" * size
        content = body if told else iter([body[:3], body[3:]])
        headers = {"Authorization": f"Bearer {KEY}"}
        return client(keys_file).post("/v1/models", content=content, headers=headers).status_code

    assert post(10) == 200
    assert post(11) == 413
