"""What the tests share."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worked_on import WorkedOn, WorkHandler

from sbp_ray.artifacts import Artifact
from sbp_ray.steps import working_here


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts what it runs in the background with interrupts ignored, and so would be what the tests start.

    Tests that are not about GPUs see none: their ranks would share one, and their numbers would be its.
    """
    if config.getoption("markexpr", "") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@functools.cache
def _unit_of(file: str) -> tuple[int, str]:
    """Tests of one unit run in one process, since they share what is slow to start; long units begin first."""
    text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
    if re.search(r"\blocal_ray\b|\bservice: Service\b", text):
        return 0, "local Ray"
    if re.search(r"\bcluster: Cluster\b", text):
        return 1, "cluster"
    return 2 if file.startswith(("tests/integration/", "tests/chaos/")) else 3, file


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with Ray come first, and those of the service last among those of its Ray.

    The engine of the service holds cores of `local_ray` that Ray Train would count as free.
    """
    items.sort(key=lambda item: (_unit_of(_file_of(item.nodeid))[0], "service" in getattr(item, "fixturenames", ())))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process takes the next unit when it has done one."""
    from xdist.scheduler import LoadScopeScheduling

    class UnitScheduling(LoadScopeScheduling):  # type: ignore[misc]  # untyped
        def _split_scope(self, nodeid: str) -> str:
            return _unit_of(_file_of(nodeid))[1]

    return UnitScheduling(config, log)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A job that runs in this process sets up the package's logging, and pytest lets go of the stream that it found."""
    ours = logging.getLogger("sbp_ray")
    handlers, level, propagate = list(ours.handlers), ours.level, ours.propagate
    yield
    ours.handlers, ours.propagate = handlers, propagate
    ours.setLevel(level)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that need a cluster in this process."""
    import ray

    # Without a dashboard of its own, Ray Train's watchers would find that of another Ray on the machine, be told that
    # their run is not alive, and end it.
    nowhere = {"env_vars": {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}}
    with pytest.MonkeyPatch.context() as environment:  # which Ray's processes keep
        environment.setenv("SBP_RAY_API_KEYS", "a-key-of-the-environment-of-ray-start")
        environment.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how often it looks, else every 2 s
        environment.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # on a busy machine; else 5 s
        ray.init(address="local", num_cpus=4, include_dashboard=False, runtime_env=nowhere)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_synthesizer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A synthesizer artifact with random weights: 0.1 M parameters, a vocabulary of 320.

    So small a vocabulary makes it end about every 320th token by chance.
    """
    from sbp_ray.artifacts import STARTED
    from sbp_ray.config import ModelConfig
    from sbp_ray.model import build_model
    from sbp_ray.text.tokenizer import special_ids, train_tokenizer

    artifact = Artifact("synthesizer", str(tmp_path_factory.mktemp("run") / "6_synthesizer"))
    tokenizer = train_tokenizer([Path(__file__).read_text(encoding="utf-8")], 320)
    assert len(tokenizer) == 320  # every id that the model draws is a token
    config = ModelConfig(
        num_layers=2,
        hidden_size=64,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        ffn_size=128,
        vocab_size=320,
        max_positions=256,
    )
    folder = artifact.path("model")
    tokenizer.save_pretrained(folder)
    build_model(config, 320, special_ids(tokenizer), seed=0).save_pretrained(folder)
    artifact.write_json(STARTED, {"fingerprint": "00c0ffee00c0ffee"})
    return artifact


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_synthesizer: Artifact) -> Path:
    """The Hugging Face folder inside `tiny_synthesizer`."""
    return Path(tiny_synthesizer.path("model"))


@pytest.fixture
def new_artifact(tmp_path: Path):
    """Make an empty artifact by name."""
    return lambda name: Artifact(name, str(tmp_path / name))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which a test sets."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def in_process() -> Iterator[WorkedOn]:
    """What the stages that a test calls work on, in this process although tests before it may have joined a Ray."""
    worked_on = WorkedOn()
    runner, handler = logging.getLogger("sbp_ray.steps"), WorkHandler(worked_on)
    level = runner.level
    runner.addHandler(handler)
    runner.setLevel(logging.DEBUG)
    with working_here():
        yield worked_on
    runner.removeHandler(handler)
    runner.setLevel(level)
