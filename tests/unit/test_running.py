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
from sbp_ray.errors import SbpError

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


def used(owner: str = "a job", **resources: Any) -> Any:
    engine = EngineConfig.model_validate({"resources": resources})
    return running_synthesizer(engine, None, owner=owner)  # type: ignore[arg-type]


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


def test_another_jobs_engines_are_not_used_since_they_go_with_that_job(fake: FakeServe) -> None:
    with used(owner="another job") as others:
        fake.apps[others] = (1, IDENTITY)
        with used() as name:
            assert name != others
        assert list(fake.apps) == [others]


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


def test_what_a_killed_driver_left_with_other_settings_is_stopped(
    fake: FakeServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with used() as first:
        left = fake.apps | {"another job's": (1, {"synthesizer": "v2"})}
    fake.apps = dict(left)
    with used(max_num_seqs=7) as name:
        assert name != first
        assert list(fake.apps) == ["another job's", name]
    fake.apps = dict(left)
    monkeypatch.setitem(IDENTITY, "synthesizer", "v3")
    with used() as name:
        assert list(fake.apps) == ["another job's", name]


def test_a_job_begins_with_the_engines_that_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four engines three come up, one in each look; the fourth has no room, and a minute later that is enough."""
    up, clock = iter([0, 1, 2]), iter(float(second) for second in range(0, 10_000, 10))

    def status() -> SimpleNamespace:
        deployment = SimpleNamespace(replica_states={"RUNNING": next(up, 3), "STARTING": 1})
        app = SimpleNamespace(status="DEPLOYING", deployments={DEPLOYMENT: deployment})
        return SimpleNamespace(applications={"ours": app})

    monkeypatch.setattr(serve, "status", status)
    times: list[float] = []
    monkeypatch.setattr(running.time, "monotonic", lambda: times.append(next(clock)) or times[-1])
    monkeypatch.setattr(running.time, "sleep", lambda _: None)
    engine = EngineConfig.model_validate({"resources": {"min_replicas": 2, "max_replicas": 4}})
    running._wait_until_running("ours", engine, 0.0)
    assert times[-1] == 30 + 60  # the fourth look, at 30 s, is the first that sees three


NODE_LOST = (
    "The deployment failed to start 1 times in a row. See controller logs for details. Error:\n"
    "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n"
    "\tclass_name: ServeReplica:a:SynthesizerServer\n"
    "The actor died because its node has died. Node Id: 0d.\n"
    "\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats\n"
)
"""As Ray 2.60 says it."""
WRONG = "The deployment failed to start 1 times in a row. Error:\nValueError: no such attention\n"


@pytest.mark.parametrize("left_behind", [False, True])
def test_an_engine_whose_node_vanishes_while_it_starts_is_started_anew(
    monkeypatch: pytest.MonkeyPatch, left_behind: bool
) -> None:
    """Serve does not begin anew with an application that has failed, nor with one that an earlier run left behind."""
    outcomes = [("DEPLOY_FAILED", NODE_LOST), ("DEPLOY_FAILED", NODE_LOST), ("RUNNING", "")]
    apps: dict[str, Any] = {"ours": None} if left_behind else {}
    log: list[str] = []

    def run_many(targets: list[serve.RunTarget], **_: Any) -> None:
        assert "ours" not in apps
        status, message = outcomes.pop(0)
        apps[targets[0].name] = SimpleNamespace(
            status=status, message="", deployments={DEPLOYMENT: SimpleNamespace(message=message)}
        )
        log.append(status)

    monkeypatch.setattr(running, "build_server", lambda *_: None)
    monkeypatch.setattr(running, "all_at_once", lambda engine: engine)
    monkeypatch.setattr(serve, "start", lambda **_: None)
    monkeypatch.setattr(serve, "run_many", run_many)
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=apps))
    monkeypatch.setattr(serve, "delete", apps.pop)
    assert running._start(EngineConfig(), None, "ours") == "ours"  # type: ignore[arg-type]
    assert log == ["DEPLOY_FAILED", "DEPLOY_FAILED", "RUNNING"]

    outcomes.append(("DEPLOY_FAILED", WRONG))
    with pytest.raises(SbpError, match=r"^the engine cannot start: ValueError: no such attention: change the engine"):
        running._start(EngineConfig(), None, "ours")  # type: ignore[arg-type]


def test_where_the_node_of_an_earlier_runs_engine_vanishes_another_engine_is_looked_for(
    fake: FakeServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any) -> None:
        raise running._NodeLostError

    fake.apps["another job's"] = (1, IDENTITY)
    applications = {"ours": SimpleNamespace(status="DEPLOYING", deployments={}), **fake.status().applications}
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=applications, proxies={}))
    monkeypatch.setattr(running, "_wait_until_running", lose)
    assert running._find(IDENTITY, "ours", EngineConfig()) == "another job's"
