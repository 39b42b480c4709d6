"""The endpoint on its own machine: where a first token's time goes, what a kill costs, and how it takes a crowd.

    python benchmarks/endpoint.py --parts first-token               # one table each; about three minutes
    python benchmarks/endpoint.py --parts kills --replicas 2
    python benchmarks/endpoint.py --parts load
    python benchmarks/endpoint.py --parts messages

The model has the size of that of configs/squad.yaml and random weights. Tables come as Markdown, with the hardware.

`first_token` climbs a ladder: what one rung takes more than the one below is what lies between them. The rungs are
measured in turn, so their differences hold on a busy machine too, as shares of the whole. `kills` kills one process
after the other under four clients, half of which stream. `load` has two phases in turn: as many clients as there is
room for, and 400 of them. `messages` packs and unpacks what travels between ingress and replica, without either.
"""

from __future__ import annotations

import argparse
import asyncio
import pickle
import socket
import statistics
import tempfile
import time
import timeit
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgpack
import psutil
from harness import hardware
from prometheus_client.parser import text_string_to_metric_families
from synthesis_work import ENGINE, Work, prepare, settle, start_ray

from sbp_ray.config import ServiceConfig
from sbp_ray.engine.bodies import CompletionRequest
from sbp_ray.engine.deploy import build_app
from sbp_ray.engine.messages import DEPLOYMENT, Delta

PARTS = ("messages", "first-token", "kills", "load")
CAPACITY = 16
CROWD = 400
OPENING_S = 20
LOAD_S = 60
ANSWERED_AGAIN = 5
WITHIN_S = 300
_PROMPT_TOKENS = 400  # at most, so that there is room for the answer
NAMES = {
    "engine": "EngineCore",
    "replica": f"ServeReplica:bench:{DEPLOYMENT}",
    "ingress": "ServeReplica:bench:SynthesizerIngress",
    "proxy": "ProxyActor",
    "controller": "ServeController",
}


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints a table for each part.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--replicas", type=int, default=1, help="engines, and processes before them")
    parser.add_argument("--rounds", type=int, default=100, help="of the ladder")
    arguments = parser.parse_args()
    settle(2)
    print(f"{hardware()}; load average {psutil.getloadavg()[0]:.1f}\n")
    if "messages" in arguments.parts:
        messages()
    if arguments.parts == ["messages"]:
        return
    with tempfile.TemporaryDirectory() as name:
        work = prepare(Path(name), 32)
        work = work._replace(prompts=[prompt[:_PROMPT_TOKENS] for prompt in work.prompts])
        with served(work, arguments.replicas) as url:
            if "first-token" in arguments.parts:
                asyncio.run(first_token(work, url, arguments.rounds))
            if "load" in arguments.parts:
                asyncio.run(load(work, url))
            if "kills" in arguments.parts:
                asyncio.run(kills(work, url))


@contextmanager
def served(work: Work, replicas: int) -> Iterator[str]:
    """The service under a URL, in a Ray of its own."""
    import ray
    from ray import serve

    start_ray()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"})
    changed = {"num_cpus": 1, "max_num_seqs": CAPACITY, "min_replicas": replicas, "max_replicas": replicas}
    engine = ENGINE.model_copy(update={"resources": ENGINE.resources.model_copy(update=changed)})
    app = build_app(engine, work.synthesizer, ServiceConfig(num_ingresses=replicas))
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.run(app, name="bench", logging_config=quiet)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def messages() -> None:
    """A request with a prompt of 2,000 characters, and four pieces of text: pickled as Ray does it, and by msgpack."""
    body = {"model": "synthesizer", "prompt": "the river " * 200, "max_tokens": 64, "stream": True, "seed": 5}
    request = CompletionRequest.model_validate(body)
    deltas = [Delta(index, "some text of a piece", 8) for index in range(4)]
    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "a request": (
            lambda: pickle.loads(pickle.dumps(request, 5)),  # noqa: S301  (our own)
            lambda: CompletionRequest.model_validate(
                msgpack.unpackb(msgpack.packb(request.model_dump(exclude_unset=True)))
            ),
        ),
        "four pieces of text": (
            lambda: pickle.loads(pickle.dumps(deltas, 5)),  # noqa: S301  (our own)
            lambda: [Delta(**one) for one in msgpack.unpackb(msgpack.packb([asdict(delta) for delta in deltas]))],
        ),
    }
    print("| message | pickled, ms | by msgpack, ms |\n|---|---|---|")
    for name, ways in cases.items():
        pickled, packed = (min(timeit.repeat(way, number=3000, repeat=5)) / 3 for way in ways)
        print(f"| {name} | {pickled:.3f} | {packed:.3f} |")
    print()


# Where a first token's time goes


async def first_token(work: Work, url: str, rounds: int) -> None:
    """Medians of the rungs, and what the engine says itself of its part."""
    from ray import serve

    handle = serve.get_deployment_handle(DEPLOYMENT, app_name="bench").options(stream=True)
    body = {"model": "synthesizer", "prompt": work.prompts[0], "max_tokens": 2, "stream": True}
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def whole(ask: Awaitable[Any]) -> float:
            start = time.perf_counter()
            await ask
            return time.perf_counter() - start

        async def first(pieces: AsyncIterator[Any], start: float) -> float:
            """The rest is taken in too: a client that goes away makes work, which the next rung would meet."""
            await anext(pieces)
            took = time.perf_counter() - start
            async for _ in pieces:
                pass
            return took

        async def write() -> float:
            start = time.perf_counter()
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                return await first(answer.aiter_lines(), start)

        def from_replica() -> Awaitable[float]:
            start = time.perf_counter()
            return first(aiter(handle.write.remote(CompletionRequest.model_validate(body))), start)

        rungs: dict[str, Callable[[], Awaitable[float]]] = {
            "proxy and ingress answer (`/health/live`)": lambda: whole(client.get("/health/live")),
            "… and the replica (`/detokenize`)": lambda: whole(client.post("/detokenize", json={"tokens": [5]})),
            "the first text of a replica, asked through its handle": from_replica,
            "the first text over HTTP": write,
        }
        taken: dict[str, list[float]] = {name: [] for name in rungs}
        engine_before = await _engine_s(client)
        for _ in range(rounds + 5):
            for name, ask in rungs.items():
                taken[name].append(await ask())
        await asyncio.sleep(15)  # until Ray's agents have the engine's last numbers
        engine = [after - before for after, before in zip(await _engine_s(client), engine_before, strict=True)]
    print("| rung | ms, median | quarter below | quarter above |\n|---|---|---|---|")
    for name, seconds in taken.items():
        low, middle, high = (1000 * value for value in statistics.quantiles(seconds[5:], n=4))
        print(f"| {name} | {middle:.1f} | {low:.1f} | {high:.1f} |")
    print(f"| in the engine, as vLLM counts it (mean of {engine[1]:.0f}) | {1000 * engine[0] / engine[1]:.1f} | | |\n")


async def _engine_s(client: httpx.AsyncClient) -> tuple[float, float]:
    """Seconds until the first token of all requests so far, and how many they were."""
    page = (await client.get("/metrics")).text
    samples = {
        sample.name: sample.value for family in text_string_to_metric_families(page) for sample in family.samples
    }
    name = "vllm:time_to_first_token_seconds"
    return samples.get(f"{name}_sum", 0.0), samples.get(f"{name}_count", 0.0)


# What a kill costs


class Asked(NamedTuple):
    """What became of one request."""

    sent: float
    ended: float
    outcome: str
    had_begun: bool
    """Whether text had come, so that nobody else could have gone on with it."""


class Clients:
    """Ask one thing after the other, until they are told to stop."""

    def __init__(self, work: Work, url: str) -> None:
        self.asked: list[Asked] = []
        self._work, self._url, self._stops = work, url, False

    async def keep_asking(self, number: int) -> None:
        body = {
            "model": "synthesizer",
            "prompt": self._work.prompts[number],
            "max_tokens": 64,
            "stream": number % 2 == 1,
        }
        while not self._stops:
            self.asked.append(await self._ask(body))

    async def _ask(self, body: dict[str, Any]) -> Asked:
        sent, text = time.monotonic(), ""
        try:
            async with (
                httpx.AsyncClient(timeout=WITHIN_S) as client,
                client.stream("POST", f"{self._url}/v1/completions", json=body) as answer,
            ):
                status = answer.status_code
                async for part in answer.aiter_text():
                    text += part
        except httpx.HTTPError as error:
            await asyncio.sleep(0.1)
            return Asked(sent, time.monotonic(), type(error).__name__, "data: " in text)
        is_whole = status == 200 and (not body["stream"] or text.endswith("data: [DONE]\n\n"))
        return Asked(sent, time.monotonic(), "answered" if is_whole else str(status), '"choices"' in text)

    def stop(self) -> None:
        """After their present requests."""
        self._stops = True


async def kills(work: Work, url: str) -> None:
    """One process of each kind, one after the other."""
    print("| killed | answered again after, s | failed, not begun | cut streams | answered meanwhile | what failed |")
    print("|---|---|---|---|---|---|")
    for kind in NAMES:
        clients = Clients(work, url)
        running = [asyncio.create_task(clients.keep_asking(number)) for number in range(4)]
        await _until(lambda: sum(one.outcome == "answered" for one in clients.asked) >= ANSWERED_AGAIN)  # noqa: B023
        killed = _processes(kind)[0]
        killed.kill()
        at = time.monotonic()

        def again() -> list[Asked]:
            return [one for one in clients.asked if one.sent > at and one.outcome == "answered"]  # noqa: B023

        await _until(lambda: len(again()) >= ANSWERED_AGAIN and _is_replaced(kind, killed))  # noqa: B023
        clients.stop()
        await asyncio.gather(*running)
        failed = [one for one in clients.asked if one.ended > at and one.outcome != "answered"]
        cut = sum(one.had_begun for one in failed)
        outcomes = ", ".join(f"{number} × {name}" for name, number in Counter(one.outcome for one in failed).items())
        first = min(one.ended for one in again()) - at
        print(f"| {kind} | {first:.1f} | {len(failed) - cut} | {cut} | {len(again())} | {outcomes} |", flush=True)
    print()


def _processes(kind: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if NAMES[kind] in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _is_replaced(kind: str, killed: psutil.Process) -> bool:
    return any(process.create_time() > killed.create_time() + 1 for process in _processes(kind))


async def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {WITHIN_S} s")
        await asyncio.sleep(0.1)


# How it takes a crowd

Taken = dict[int, list[float]]
"""By status, how long each answer took."""


async def load(work: Work, url: str) -> None:
    """As many clients as there is room for, the crowd, and again as many.

    A crowd's first seconds stand by themselves: all its clients connect at one moment.
    """
    print("| clients | answered | refused | other | answered, s: p50, p99 | refused, s: p50, p99 | MiB before, after |")
    print("|---|---|---|---|---|---|---|")
    for clients in (CAPACITY, CROWD, CAPACITY):
        before = _memory_mib()
        first, later = await _crowd(work, url, clients)
        await asyncio.sleep(5)
        memory = f"{before:,.0f}, {_memory_mib():,.0f}"
        if clients == CROWD:
            print(f"| {clients}, its first {OPENING_S} s | {_counts_and_times(first)} | |")
            print(f"| {clients}, {LOAD_S} s later on | {_counts_and_times(later)} | {memory} |", flush=True)
        else:
            print(f"| {clients}, {LOAD_S} s | {_counts_and_times(later)} | {memory} |", flush=True)
    print()


async def _crowd(work: Work, url: str, clients: int) -> tuple[Taken, Taken]:
    """What was asked in the opening, and later."""
    opening: Taken = {}
    later: Taken = {}
    start = time.monotonic()

    async def keep_asking(client: httpx.AsyncClient, number: int) -> None:
        body = {"model": "synthesizer", "prompt": work.prompts[number % len(work.prompts)], "max_tokens": 64}
        while (asked := time.monotonic()) < start + OPENING_S + LOAD_S:
            answer = await client.post(f"{url}/v1/completions", json=body)
            taken = opening if asked < start + OPENING_S else later
            taken.setdefault(answer.status_code, []).append(time.monotonic() - asked)
            await asyncio.sleep(float(answer.headers.get("retry-after", 0)))

    async with httpx.AsyncClient(timeout=WITHIN_S, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*[keep_asking(client, number) for number in range(clients)])
    return opening, later


def _counts_and_times(taken: Taken) -> str:
    other = sum(len(seconds) for status, seconds in taken.items() if status not in (200, 429))
    answered, refused = (taken.get(status, []) for status in (200, 429))
    return f"{len(answered)} | {len(refused)} | {other} | {_p50_and_p99(answered)} | {_p50_and_p99(refused)}"


def _p50_and_p99(seconds: list[float]) -> str:
    if len(seconds) < 2:
        return "–"
    return f"{statistics.median(seconds):.2f}, {statistics.quantiles(seconds, n=100)[98]:.2f}"


def _memory_mib() -> float:
    """Of all processes of this Ray; shared pages count once."""
    return sum(process.memory_full_info().uss for process in psutil.Process().children(recursive=True)) / 2**20


if __name__ == "__main__":
    main()
