"""What the tests share."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from worked_on import WorkedOn, WorkHandler

from sbp_ray.artifacts import Artifact
from sbp_ray.shards import working_here


def pytest_configure() -> None:
    """A shell starts what it runs in the background with interrupts ignored, and so would be what the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_SHARED = {"service": "ray", "local_ray": "ray", "cluster": "cluster"}
"""What takes seconds to start and is there once for all tests, and the group of those tests."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests, and say which of them belong in one process when there are two (pytest-xdist).

    Tests that share a Ray stay together, the others go by their file. The longest groups come first, beside the many
    short files of tests. Tests of the service come last in their group: its engine holds cores of `local_ray` that Ray
    Train would count as free.
    """
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        uses = [name for name in _SHARED if name in getattr(item, "fixturenames", ())]
        group = _SHARED[uses[0]] if uses else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
        groups.setdefault(group, []).append(item)
    groups.get("ray", []).sort(key=lambda item: "service" in item.fixturenames)  # type: ignore[attr-defined]
    longest_first = sorted(groups, key=lambda group: (group not in _SHARED.values(), "/unit/" in group))
    items[:] = [item for group in longest_first for item in groups[group]]


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray for all tests that need a cluster in this process."""
    import ray

    # Without a dashboard of its own, Ray Train's watchers would find that of another Ray on the machine, be told that
    # their run is not alive, and end it.
    nowhere = {"env_vars": {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}}
    with pytest.MonkeyPatch.context() as environment:  # which Ray's processes keep
        environment.setenv("SBP_RAY_API_KEYS", "a-key-of-the-environment-of-ray-start")
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
def in_process() -> Iterator[WorkedOn]:
    """What the stages that a test calls work on, in this process although tests before it may have joined a Ray."""
    worked_on = WorkedOn()
    runner, handler = logging.getLogger("sbp_ray.shards"), WorkHandler(worked_on)
    level = runner.level
    runner.addHandler(handler)
    runner.setLevel(logging.DEBUG)
    with working_here():
        yield worked_on
    runner.removeHandler(handler)
    runner.setLevel(level)
