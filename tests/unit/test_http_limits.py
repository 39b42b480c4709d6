"""The endpoint's middleware, without Serve: who comes in, and how much they may send."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from sbp_ray.engine import health
from sbp_ray.engine.access import KEYS_VARIABLE
from sbp_ray.engine.health import Health, UnknownStatusError, status_of
from sbp_ray.engine.http_limits import BodyLimit, Doorkeeper

KEY = "k" * 16


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def client(keys_file: str | None, host: str = "10.0.0.5") -> TestClient:
    paths = ("/health", "/v1/models", "/health/")
    app = Starlette(routes=[Route(path, echo, methods=["GET", "POST"]) for path in paths])
    app.add_middleware(BodyLimit, max_bytes=10, within_s=60)
    app.add_middleware(Doorkeeper, keys_file=keys_file)
    return TestClient(app, base_url="http://localhost", client=(host, 1))


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


def test_a_body_that_does_not_come_ends_with_408() -> None:
    """The headers and the first three bytes, and then nothing."""
    sent: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": b"xxx", "more_body": True}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def never(*_: Any) -> None:
        raise AssertionError("a body that has not come was passed on")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(BodyLimit(never, max_bytes=10, within_s=0.05)(scope, receive, send))
    assert sent[0]["status"] == 408
    assert b"within 0.05 s" in sent[1]["body"]


def test_under_a_prefix_health_is_open_too_and_nothing_else_is(keys_file: str) -> None:
    """As Serve mounts an application under a route: its path holds the prefix, which `root_path` names."""
    asked = TestClient(client(keys_file).app, base_url="http://localhost", root_path="/synthesizer")
    assert asked.get("/synthesizer/health").status_code == 200
    assert asked.get("/synthesizer/v1/models").status_code == 401


async def silent() -> bool:
    """An engine that does not answer."""
    await asyncio.sleep(60)
    raise AssertionError("it was waited for")


def test_a_crowd_that_asks_for_health_is_one_question_to_the_controller() -> None:
    asked: list[float] = []

    def fetch() -> str:
        asked.append(time.monotonic())
        time.sleep(0.05)
        return "ready"

    async def crowd() -> list[str]:
        health = Health(fetch, silent)
        return await asyncio.gather(*[health.status() for _ in range(100)])

    assert asyncio.run(crowd()) == ["ready"] * 100
    assert len(asked) == 1


def test_while_the_controller_is_silent_or_does_not_know_the_last_answer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_HOLDS_FOR_S", -1)
    answers: list[Any] = ["ready", UnknownStatusError(), "silent", "asleep"]
    released = threading.Event()

    def fetch() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer == "silent":
            released.wait(60)
            raise UnknownStatusError
        return str(answer)

    async def ask() -> list[str]:
        checked = Health(fetch, silent, answers_within_s=0.05)
        heard = [await checked.status() for _ in range(4)]  # the silent one is asked once, not at each call
        released.set()
        while answers:
            heard.append(await checked.status())
        return heard

    assert asyncio.run(ask())[:4] == ["ready"] * 4
    assert not answers


def test_a_new_controller_that_has_not_heard_from_the_replicas_does_not_know() -> None:
    assert status_of("UPDATING", {"RUNNING": 1, "STARTING": 1}) == "ready"
    assert status_of("UPDATING", {"STARTING": 1}) == "starting"
    assert status_of("HEALTHY", {}) == "asleep"
    with pytest.raises(UnknownStatusError):
        status_of("UPDATING", {"RECOVERING": 1})


@pytest.mark.parametrize(("answers", "status"), [(True, "ready"), (False, "starting")])
def test_before_the_controller_has_said_anything_the_engine_itself_is_asked(answers: bool, status: str) -> None:
    """An ingress may start while a new configuration is built, and Serve then lists no deployments."""

    def fetch() -> str:
        raise UnknownStatusError

    async def engine_answers() -> bool:
        return answers

    assert asyncio.run(Health(fetch, engine_answers).status()) == status


def test_before_anybody_has_said_anything_the_engine_is_starting() -> None:
    def fetch() -> str:
        raise UnknownStatusError

    assert asyncio.run(Health(fetch, silent, answers_within_s=0.05).status()) == "starting"


def test_an_answer_that_is_too_old_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_HOLDS_FOR_S", -1)
    answers = ["ready"]

    def fetch() -> str:
        if not answers:
            raise UnknownStatusError
        return answers.pop()

    async def ask() -> list[str]:
        checked = Health(fetch, silent, answers_within_s=0.05)
        heard = [await checked.status(), await checked.status()]
        monkeypatch.setattr(health, "_REMEMBERED_FOR_S", 0)
        return [*heard, await checked.status()]

    assert asyncio.run(ask()) == ["ready", "ready", "starting"]


def test_where_the_controller_stays_silent_an_engine_that_was_ready_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for a crowd; and what it has said then holds as long as what the controller says."""
    monkeypatch.setattr(health, "_HOLDS_FOR_S", -1)
    answers, asked = ["ready"], []

    def fetch() -> str:
        if not answers:
            raise UnknownStatusError
        return answers.pop()

    async def answer() -> bool:
        asked.append(True)
        await asyncio.sleep(0.05)
        return len(asked) == 1

    async def ask() -> list[str]:
        checked = Health(fetch, answer)
        await checked.status()
        checked._known_at -= 61
        heard = await asyncio.gather(*[checked.status() for _ in range(100)])
        checked._known_at -= 61
        return [*heard, await checked.status()]

    assert asyncio.run(ask()) == ["ready"] * 100 + ["starting"]
    assert len(asked) == 2
