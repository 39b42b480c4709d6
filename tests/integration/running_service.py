"""The service with a real engine and a tiny model: what the tests of the endpoint and of the batch stage share."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import requests
from ray_head import free_ports

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EngineConfig, EngineResources, ServiceConfig

WINDOW = 256
SLOTS = 16
ENGINE = EngineConfig(
    dtype="float32",
    max_model_len=WINDOW,
    resources=EngineResources(enforce_eager=True, num_cpus=2, max_num_seqs=SLOTS, kv_cache_gib=0.1),
)
MAX_BODY = 20_000
KEYS = ("the-first-key-of-these-tests", "the-second-key-of-these-tests")


class Service(NamedTuple):
    url: str
    synthesizer: Artifact
    keys_file: Path

    def post(self, path: str, data: Any, key: str | None = KEYS[0], **options: Any) -> requests.Response:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        body = data if isinstance(data, str | bytes) else json.dumps(data)
        return requests.post(f"{self.url}{path}", data=body, headers=headers, timeout=240, **options)

    def get(self, path: str, key: str | None = KEYS[0]) -> requests.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return requests.get(f"{self.url}{path}", headers=headers, timeout=240)

    def synthesize(self, **body: Any) -> requests.Response:
        return self.post("/v1/synthesize", body)

    def client(self, key: str = KEYS[0]) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def load(self) -> dict[str, int]:
        """The engine's own counters."""
        from ray import serve

        handle = serve.get_deployment_handle("SynthesizerServer", app_name="synthesizer")
        return handle.load.remote().result(timeout_s=240)


@contextlib.contextmanager
def running_service(synthesizer: Artifact, folder: Path) -> Iterator[Service]:
    from ray import serve

    from sbp_ray.engine.deploy import build_app

    keys_file = folder / "keys.txt"
    keys_file.write_text("\n".join(KEYS))
    [port] = free_ports(1)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    limits = ServiceConfig(keys_file=str(keys_file), max_body_bytes=MAX_BODY, deadline_s=240, num_ingresses=1)
    serve.run(build_app(ENGINE, synthesizer, limits), name="synthesizer")
    yield Service(f"http://127.0.0.1:{port}", synthesizer, keys_file)
    serve.shutdown()


def read_events(lines: Iterable[str]) -> list[str]:
    """Of a stream: what its events hold, without the comments that say that it is alive."""
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 240) -> Any:
    """What `condition()` returns once that is true.

    Raises:
        TimeoutError: it did not become true; names `what`.
    """
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.05)
    return found
