"""Engines come and go: from zero by load and back, and a new synthesizer takes over while requests run."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from impatient_proxy import impatient_proxy
from running_service import KEYS, Service, eventually, read_events

from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.config import EngineConfig, EngineResources, ServiceConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def engine(min_replicas: int, max_replicas: int) -> EngineConfig:
    resources = EngineResources(
        num_cpus=0.5,
        num_threads=1,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        max_num_seqs=4,
        enforce_eager=True,
        kv_cache_gib=0.05,
        upscale_delay_s=0,
        downscale_delay_s=2,
    )
    return EngineConfig(dtype="float32", max_model_len=256, resources=resources)


class App:
    """An application beside the service, under a route of its own."""

    def __init__(self, service: Service) -> None:
        self._root = f"{service.url}/scaled"
        self._url = f"{self._root}/v1/synthesize"
        self._limits = ServiceConfig(keys_file=str(service.keys_file), deadline_s=200, num_ingresses=1)

    def deploy(self, config: EngineConfig, synthesizer: Artifact) -> None:
        from ray import serve

        from sbp_ray.engine.deploy import build_app

        app = build_app(config, synthesizer, self._limits)
        serve.run_many(
            [serve.RunTarget(app, name="scaled", route_prefix="/scaled")], wait_for_applications_running=False
        )

    def ask(self, **more: Any) -> requests.Response:
        body = {"document": "the kings", "max_tokens": 100, **more}
        headers = {"authorization": f"Bearer {KEYS[0]}"}
        return requests.post(self._url, json=body, headers=headers, timeout=250)

    def health(self) -> dict[str, str]:
        """As a load balancer asks for it: without a key."""
        return requests.get(f"{self._root}/health", timeout=240).json()

    def status(self) -> str:
        from ray import serve

        return serve.status().applications["scaled"].status

    def engines(self) -> int:
        from ray import serve

        return serve.status().applications["scaled"].deployments["SynthesizerServer"].replica_states.get("RUNNING", 0)


async def ask_until(condition: Callable[[], bool], app: App, clients: int) -> list[requests.Response]:
    """Answers to clients that ask one thing after the other, until the condition is met."""
    stop = asyncio.Event()
    answers: list[requests.Response] = []

    async def client(number: int) -> None:
        while not stop.is_set():
            answer = await asyncio.to_thread(app.ask, n=2, stream=number % 2 == 1)
            answers.append(answer)
            if answer.status_code == 429:
                await asyncio.sleep(int(answer.headers["retry-after"]))

    running = [asyncio.create_task(client(number)) for number in range(clients)]
    end = time.monotonic() + 500
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, "not within 500 s"
        await asyncio.sleep(0.2)
    stop.set()
    await asyncio.gather(*running)
    return answers


def versions(answer: requests.Response) -> set[str]:
    """Of every part of an answer; none of a stream that waited for room, had begun by then, and was refused."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return {answer.json()["synthesizer"]}
    events = read_events(answer.text.splitlines())
    if events[-1] != "[DONE]":
        assert json.loads(events[-1])["error"]["code"] == 429
        return set()
    return {json.loads(event)["synthesizer"] for event in events[:-1]}


@pytest.mark.parametrize("most", [1, pytest.param(2, marks=pytest.mark.long)])
def test_engines_come_from_zero_by_load_and_go_again_and_a_new_synthesizer_takes_over_without_a_failed_request(
    service: Service, tiny_synthesizer: Artifact, tmp_path: Path, most: int
) -> None:
    from ray import serve

    newer = Artifact("synthesizer", str(tmp_path / "6_synthesizer"))
    newer.commit_folder(Path(tiny_synthesizer.path("model")), "model")
    newer.write_json(STARTED, {"fingerprint": "11111111deadbeef"})
    app = App(service)
    try:
        app.deploy(engine(0, most), tiny_synthesizer)
        eventually(lambda: app.status() == "RUNNING", "the application is there", timeout_s=120)
        assert app.engines() == 0
        assert app.health() == {"status": "asleep"}
        with impatient_proxy(service.url, idle_s=5) as address:  # the first of them wakes for a stream
            client = openai.OpenAI(base_url=f"{address}/scaled/v1", api_key=KEYS[0], max_retries=0)
            stream = client.completions.create(model="synthesizer", prompt="the", max_tokens=9, stream=True)
            assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
        scaled = asyncio.run(ask_until(lambda: app.engines() == most, app, clients=12))
        assert {answer.status_code for answer in scaled} <= {200, 429}
        assert any(answer.status_code == 200 for answer in scaled)

        deployed: list[bool] = []

        def new_one_answers() -> bool:
            if not deployed:
                app.deploy(engine(0, most), newer)
                deployed.append(True)
            answer = app.ask()
            return answer.status_code == 200 and versions(answer) == {"11111111deadbeef"}

        answers = asyncio.run(ask_until(new_one_answers, app, clients=3))
        assert {answer.status_code for answer in answers} <= {200, 429}
        seen = [versions(answer) for answer in answers if answer.status_code == 200]
        assert all(len(one) <= 1 for one in seen)  # no answer mixes two
        assert {"00c0ffee00c0ffee"} in seen
        eventually(lambda: app.engines() == 0, "idle engines leave", timeout_s=200)
    finally:
        serve.delete("scaled")
