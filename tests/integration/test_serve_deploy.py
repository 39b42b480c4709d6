"""The endpoint as its users start it, on a Ray of its own: `ray start` with the token, a start that looks first, and
`serve deploy`."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import requests
import yaml
from jobs_cluster import REPO, Cluster
from processes import command_line, is_engine
from ray_head import free_ports, wait_for
from running_service import read_events

from sbp_ray.artifacts import STARTED, Artifact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

KEY = "a-key-of-the-tests-of-serve-deploy"
NEWER = "22222222deadbeef"
ENGINE = {
    "dtype": "float32",
    "max_model_len": 256,
    "resources": {"num_cpus": 0.5, "num_threads": 1, "max_num_seqs": 4, "enforce_eager": True, "kv_cache_gib": 0.05},
}


class Deployed(NamedTuple):
    cluster: Cluster
    url: str
    folder: Path
    port: int

    def config(self, synthesizer: Artifact, host: str = "127.0.0.1", **service: Any) -> Path:
        args = {"model": synthesizer.path("model"), "engine": ENGINE, "service": service}
        app = {"name": "synthesizer", "route_prefix": "/", "import_path": "serve_apps.synthesizer:app", "args": args}
        http = {"host": host, "port": self.port}
        file = self.folder / f"{host}.yaml"
        file.write_text(yaml.safe_dump({"proxy_location": "HeadOnly", "http_options": http, "applications": [app]}))
        return file

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of the environment, in this checkout, as a user of this cluster."""
        environment = self.cluster.head.environment | {"RAY_DASHBOARD_ADDRESS": self.cluster.head.dashboard_url}
        return subprocess.run(words, env=environment, cwd=REPO, capture_output=True, text=True, timeout=900)

    def start(self, config: Path) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "serve_apps.start", config)

    def serve(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run(Path(sys.executable).parent / "serve", *words)

    def ask(self, **more: Any) -> requests.Response:
        body = {"document": "the kings", "max_tokens": 8, **more}
        headers = {"authorization": f"Bearer {KEY}"}
        return requests.post(f"{self.url}/v1/synthesize", json=body, headers=headers, timeout=240)

    def version(self, stream: bool) -> str:
        """Which synthesizer has written all of an answer, or what came in place of one."""
        answer = self.ask(stream=stream)
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text}"
        if not stream:
            return answer.json()["synthesizer"]
        events = read_events(answer.text.splitlines())
        [version] = {json.loads(event)["synthesizer"] for event in events[:-1]}
        return version if events[-1] == "[DONE]" else answer.text

    def health(self) -> int:
        return requests.get(f"{self.url}/health", timeout=240).status_code

    def processes(self, name: str) -> list[psutil.Process]:
        return [one for one in self.cluster.head.processes() if name in command_line(one)]

    @contextmanager
    def asked_all_the_while(self) -> Iterator[Counter[Any]]:
        """What health and two clients were answered during the block."""
        answers, stop = Counter[Any](), threading.Event()

        def keep(ask: Callable[[], Any]) -> None:
            while not stop.is_set():
                answers[ask()] += 1
                time.sleep(0.05)

        asked = (self.health, partial(self.version, False), partial(self.version, True))
        threads = [threading.Thread(target=keep, args=[ask]) for ask in asked]
        for thread in threads:
            thread.start()
        try:
            yield answers
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@pytest.fixture(scope="module")
def place(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Where an endpoint may be deployed."""
    [port] = free_ports(1)
    deployed = Deployed(cluster, f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("deployed"), port)
    yield deployed
    assert deployed.serve("shutdown", "-y").returncode == 0


def test_an_address_that_strangers_reach_is_refused_without_a_key_before_an_engine_starts(
    place: Deployed, tiny_synthesizer: Artifact
) -> None:
    done = place.start(place.config(tiny_synthesizer, "0.0.0.0"))
    assert done.returncode == 1, done.stderr
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: synthesizer cannot start: http_options.host=0.0.0.0 is reachable from other")
    assert "Traceback" not in done.stderr
    assert not [one for one in place.cluster.head.processes() if is_engine(one)]
    # Serve is bound there now, and says that it will not bind elsewhere before it has ended.
    again = place.start(place.config(tiny_synthesizer))
    assert f"Serve listens on 0.0.0.0:{place.port} until it ends" in again.stderr
    assert place.serve("shutdown", "-y").returncode == 0


@pytest.fixture(scope="module")
def deployed(place: Deployed, tiny_synthesizer: Artifact) -> Deployed:
    """A running endpoint, with a spare ingress."""
    (place.folder / "keys").write_text(KEY)
    config = place.config(tiny_synthesizer, keys_file=str(place.folder / "keys"), num_ingresses=2)
    done = place.start(config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"serve | ready at {place.url}" in done.stdout + done.stderr
    assert place.health() == 200  # no loop around it: that is what ready means
    return place


def test_beyond_loopback_only_ray_itself_listens_and_what_it_does_asks_for_the_token(deployed: Deployed) -> None:
    """As the kernel says it. Metrics ask for none: docs/security.md."""
    listening = set()
    for process in deployed.cluster.head.processes():
        for socket in process.net_connections("tcp"):
            if socket.status == psutil.CONN_LISTEN and not socket.laddr.ip.startswith(("127.", "::1", "::ffff:127.")):
                listening.add(socket.laddr.port)
    assert deployed.port not in listening
    assert int(deployed.cluster.head.dashboard_url.rpartition(":")[2]) not in listening
    assert int(deployed.cluster.head.address.rpartition(":")[2]) in listening  # there is something to ask for the token


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_driver_without_the_token_is_refused(cluster: Cluster, mode: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in cluster.head.environment.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": mode, "HOME": str(tmp_path), "RAY_ADDRESS": cluster.head.address}
    if mode == "token":
        environment["RAY_AUTH_TOKEN"] = "not-the-token-of-this-cluster"
    driver = "import ray; ray.init(); print(ray.get(ray.remote(lambda: 'it ran').remote()))"
    done = subprocess.run(
        [sys.executable, "-c", driver], env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode != 0
    assert "it ran" not in done.stdout
    assert "nauthenticated" in done.stderr or "uthentication" in done.stderr, done.stderr[-2000:]


def test_a_dead_controller_is_seen_by_nobody(deployed: Deployed) -> None:
    [controller] = deployed.processes("ray::ServeController")
    assert {deployed.health() for _ in range(20)} == {200}  # of both ingresses
    with deployed.asked_all_the_while() as answers:
        controller.kill()
        wait_for(
            lambda: [one for one in deployed.processes("ray::ServeController") if one != controller], "a new one", 300
        )
        before = answers["00c0ffee00c0ffee"]
        wait_for(lambda: answers["00c0ffee00c0ffee"] > before + 5, "texts are written", 300)
    assert set(answers) == {200, "00c0ffee00c0ffee"}


def test_with_a_spare_ingress_nobody_notices_that_one_dies(deployed: Deployed) -> None:
    first, spare = deployed.processes("ray::ServeReplica:synthesizer:SynthesizerIngress")
    first.kill()
    wait_for(lambda: not first.is_running(), "it is dead", 60)
    asked = Counter(deployed.health() for _ in range(20))
    asked.update(deployed.ask().status_code for _ in range(5))
    assert asked == {200: 25}
    assert spare.is_running()


def test_a_new_synthesizer_takes_over_without_a_failed_request_and_health_stays_good(
    deployed: Deployed, tiny_synthesizer: Artifact, tmp_path: Path
) -> None:
    """Through `serve deploy`, which builds the application first: Serve then lists no deployments of it."""
    newer = Artifact("synthesizer", str(tmp_path / "6_synthesizer"))
    newer.commit_folder(Path(tiny_synthesizer.path("model")), "model")
    newer.write_json(STARTED, {"fingerprint": NEWER})
    with deployed.asked_all_the_while() as answers:
        config = deployed.config(newer, keys_file=str(deployed.folder / "keys"), num_ingresses=2)
        assert deployed.serve("deploy", config).returncode == 0
        wait_for(lambda: answers[NEWER] > 5, "the new one writes", 600)
    assert set(answers) == {200, "00c0ffee00c0ffee", NEWER}
