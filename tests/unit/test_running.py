"""Which application a batch job uses, and what it stops at its end."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException

from sbp_ray.config import EngineConfig
from sbp_ray.engine import running
from sbp_ray.engine.messages import DEPLOYMENT
from sbp_ray.engine.running import running_synthesizer

IDENTITY = {"synthesizer": "v1"}


class FakeServe:
    """Applications by name: how many engines run, and what one answers when asked who it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.apps: dict[str, tuple[int, Any]] = {}
        self.proxies: dict[str, str] = {}
        self.asked: list[str] = []
        self.is_down = False
        for name in ("status", "get_deployment_handle", "delete", "shutdown"):
            monkeypatch.setattr(serve, name, getattr(self, name))
        monkeypatch.setattr(running, "_start", self._start)
        monkeypatch.setattr(running, "identity_of", lambda *_: IDENTITY)
        monkeypatch.setattr(running, "require_model", lambda *_: None)

    def _start(self, engine: Any, synthesizer: Any, name: str) -> str:
        self.apps[name] = (1, IDENTITY)
        return name

    def status(self) -> SimpleNamespace:
        apps = {
            name: SimpleNamespace(
                status="RUNNING", deployments={DEPLOYMENT: SimpleNamespace(replica_states={"RUNNING": engines})}
            )
            for name, (engines, _) in self.apps.items()
        }
        return SimpleNamespace(applications=apps, proxies=self.proxies)

    def get_deployment_handle(self, deployment: str, app_name: str) -> Any:
        def result(timeout_s: float) -> Any:
            self.asked.append(app_name)
            answer = self.apps[app_name][1]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return SimpleNamespace(identity=SimpleNamespace(remote=lambda: SimpleNamespace(result=result)))

    def delete(self, name: str) -> None:
        del self.apps[name]

    def shutdown(self) -> None:
        self.is_down = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    return FakeServe(monkeypatch)


def used(owner: str = "a job") -> Any:
    return running_synthesizer(EngineConfig(), None, owner=owner)  # type: ignore[arg-type]


def test_the_last_job_takes_serve_down(fake: FakeServe) -> None:
    with used() as name:
        assert name in fake.apps
    assert fake.apps == {}
    assert fake.is_down


def test_what_others_started_meanwhile_stays_up(fake: FakeServe) -> None:
    with used():
        fake.apps["another job's"] = (1, {"synthesizer": "v2"})
    assert list(fake.apps) == ["another job's"]
    assert not fake.is_down


def test_a_serve_that_listens_for_http_stays_up_without_applications(fake: FakeServe) -> None:
    with used():
        fake.proxies["node"] = "HEALTHY"
    assert not fake.is_down


def test_a_service_with_the_same_synthesizer_is_used_and_left(fake: FakeServe) -> None:
    fake.apps = {"other": (1, {"synthesizer": "v2"}), "service": (2, IDENTITY)}
    with used() as name:
        assert name == "service"
    assert list(fake.apps) == ["other", "service"]


def test_a_service_asleep_at_zero_engines_is_not_woken(fake: FakeServe) -> None:
    fake.apps["service"] = (0, IDENTITY)
    with used() as name:
        assert name.startswith("synthesize-")
    assert fake.asked == []
    assert list(fake.apps) == ["service"]


@pytest.mark.parametrize("error", [TimeoutError(), RayServeException("gone")])
def test_a_service_that_does_not_answer_is_not_used(fake: FakeServe, error: Exception) -> None:
    fake.apps["service"] = (1, error)
    with used() as name:
        assert name.startswith("synthesize-")
    assert fake.asked == ["service"]


def test_what_a_killed_driver_left_is_used_and_stopped(fake: FakeServe) -> None:
    with used() as first:
        left = dict(fake.apps)
    fake.apps = left
    with used() as name:
        assert name == first
        assert fake.asked == []
    assert fake.apps == {}
