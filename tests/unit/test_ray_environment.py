"""Temporary folders that sockets cannot lie in, and proxies."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from sbp_ray import ray_environment
from sbp_ray.errors import SbpError
from sbp_ray.ray_environment import drop_chatter, go_around_proxies, shorten_temporary_folder

PROXY_NAMES = [name for proxy in ("http_proxy", "https_proxy", "all_proxy") for name in (proxy, proxy.upper())]


@pytest.fixture
def short_place(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where links go, instead of /tmp."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="l-") as name:
        monkeypatch.setattr(ray_environment, "_SHORT_PLACES", (name,))
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)


@pytest.mark.parametrize("name", ["a" * 81, "two words", "Größe"])
def test_a_folder_that_sockets_cannot_lie_in_is_named_by_a_short_link(
    short_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    shorten_temporary_folder()
    link = Path(os.environ["TMPDIR"])
    assert link.parent == short_place and link.resolve() == folder
    assert tempfile.gettempdir() == str(link) and str(link).isascii()
    monkeypatch.setenv("TMPDIR", str(folder))
    shorten_temporary_folder()  # another job of the same user
    assert list(short_place.iterdir()) == [link]


def test_a_short_folder_stays_as_it_is(short_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(short_place))
    shorten_temporary_folder()
    assert os.environ["TMPDIR"] == str(short_place) and not list(short_place.iterdir())


def test_a_link_that_leads_elsewhere_is_not_followed(
    short_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("a" * 81)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    shorten_temporary_folder()
    [link] = short_place.iterdir()
    link.unlink()
    link.symlink_to(tmp_path)
    monkeypatch.setenv("TMPDIR", str(folder))
    with pytest.raises(SbpError, match=r"^TMPDIR='/.*' cannot hold Ray's sockets: set it to a folder of at most 38"):
        shorten_temporary_folder()


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*PROXY_NAMES, "no_proxy", "NO_PROXY"]:
        monkeypatch.setenv(name, "")  # so that what is set in the test is taken back after it
        monkeypatch.delenv(name)


def test_the_addresses_of_the_cluster_are_kept_off_a_proxy(no_proxies: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert requests.utils.get_environ_proxies("http://10.1.2.3:8265")  # what would happen
    workers = go_around_proxies("10.1.2.3:6379")
    spared = os.environ["NO_PROXY"].split(",")
    assert {"example.org", "10.1.2.3", "127.0.0.1", "localhost"} <= set(spared)
    assert workers == {"NO_PROXY": os.environ["NO_PROXY"], "no_proxy": os.environ["NO_PROXY"]}
    for url in ("http://10.1.2.3:8265", "http://127.0.0.1:8265"):
        assert requests.utils.get_environ_proxies(url) == {}
    assert requests.utils.get_environ_proxies("http://huggingface.co")  # which a proxy may be the only way to


def test_without_a_proxy_the_environment_stays_as_it_is(no_proxies: None) -> None:
    assert go_around_proxies(None) == {} and "NO_PROXY" not in os.environ


def test_lines_of_every_run_are_left_out_and_errors_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's own reader of the variable, on lines of a run of the demo."""
    from ray._private.ray_logging import LogDeduplicator

    monkeypatch.setenv("RAY_DEDUP_LOGS_SKIP_REGEX", "")
    monkeypatch.delenv("RAY_DEDUP_LOGS_SKIP_REGEX")
    drop_chatter()
    every_run = [
        "[2026-11-29 21:15:31,104 E 24526 24553] core_worker.cc:2465: Actor with class name: 'Watcher' and ID: "
        "'99' has constructor arguments in the object store and max_restarts > 0. If the arguments",
        "/venv/ray/execution_options.py:436: RayDeprecationWarning: `ExecutionOptions.exclude_resources` is deprecated",
        "  self.exclude_resources = exclude_resources",
        "[W1129 21:17:45.764504055 utils.cpp:68] Warning: NUMA binding: Using MEMBIND policy for memory allocation on",
        "Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]",
        "INFO 2026-11-29 21:18:23,013 a_SynthesizerServer 8uqtl4cw -- Started vLLM engine.",
        "Task ServeController.graceful_shutdown failed. There are infinite retries remaining, so the task will be "
        "retried. Error: The actor is dead because it was killed by `ray.kill`.",
        "Failed to query Ray Train Controller actor state. State API may be temporarily unavailable. Continuing to "
        "monitor.",
    ]
    errors = [
        "[2026-11-29 21:15:31,104 E 24526 24553] core_worker.cc:719: Exiting because this node manager has died",
        "Task train failed. There are infinite retries remaining, so the task will be retried. Error: out of memory",
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
        "21:19:15 E the engine died: its replica ends with it, to be replaced",
        "Failed to clean up placement group: it is not there",
        "Detected that the Ray Train controller actor (9f2) is dead. Cleaning up placement group = [1] created by this "
        "run.",
    ]
    reader = LogDeduplicator(5, None, os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"])
    batches = reader.deduplicate({"ip": "a", "pid": 1, "lines": [*every_run, *errors]})
    assert [line for batch in batches for line in batch["lines"]] == errors
