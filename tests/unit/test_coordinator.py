"""Progress is shown, whatever happens to a report."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from sbp_ray.generation import coordinator
from sbp_ray.generation.coordinator import Reporter


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the actor holds; the clock; and the gauges that were set. An exception under `error` is raised by a read."""
    held: dict[str, Any] = {"counts": {}, "now": 0.0, "gauges": {}, "error": None}

    def read(_: Any) -> dict[str, int]:
        if held["error"]:
            raise held["error"]
        return dict(held["counts"])

    monkeypatch.setattr(coordinator.ray, "get", read)
    monkeypatch.setattr(coordinator.ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    monkeypatch.setattr(coordinator.time, "monotonic", lambda: held["now"])
    monkeypatch.setattr(coordinator.metrics, "gauge", lambda name, value, **_: held["gauges"].update({name: value}))
    return held


def reporter(done: int) -> Reporter:
    actor = SimpleNamespace(read=SimpleNamespace(remote=lambda: None))
    return Reporter(actor, 100, done=done, dollars_per_node_hour=36)


def test_a_report_that_fails_is_said_once_and_the_next_one_goes_on(
    counts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(coordinator.logger, "warning", said.append)
    one = reporter(done=10)
    counts["error"] = RuntimeError("no answer")
    for _ in range(3):
        one.report_or_warn()
    assert len(said) == 1
    assert "no answer" in said[0]
    counts |= {"error": None, "now": 10.0, "counts": {"documents": 40, "tokens": 1000}}
    one.report_or_warn()
    assert counts["gauges"]["sbp_progress"] == 0.5


def test_the_rate_is_over_a_minute_and_cost_over_all_time(counts: dict[str, Any]) -> None:
    """Committed in lumps: 6,000 tokens every 30 s are 200 a second, at whatever second one looks just after a lump."""
    one = reporter(done=0)
    logging.getLogger("sbp_ray").setLevel(logging.INFO)
    for second in range(2, 182, 2):
        counts["now"] = float(second)
        counts["counts"] = {"documents": second // 30, "tokens": 6000 * (second // 30)}
        one.report()
        if second >= 90:
            assert counts["gauges"]["sbp_tokens_per_s"] == pytest.approx(200, rel=0.04)
    # One live node at $36 an hour: a cent a second, $1.80 for 36,000 tokens.
    assert counts["gauges"]["sbp_dollars_per_billion_tokens"] == pytest.approx(1.80 / 36_000 * 1e9)
