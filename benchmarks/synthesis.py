"""The synthesize job and the HTTP endpoint beside bare vLLM and Ray Data's LLM processor: same model and draws.

    python benchmarks/synthesis.py --quick                  # a few minutes on two cores
    python benchmarks/synthesis.py --parts rates ray-data   # some of it; others are `first-tokens` and `scoring`

Each draw has a seed of its own; peers draw with vLLM's sampler, ours on a CPU with sbp_ray/engine/seeded.py. Cases are
measured in turn, and each is the median of its rounds. Engines are warm: the clock of the job and of Ray Data's
processor runs from the first request in an actor to the last result, so neither Ray's start nor vLLM's is in it. The
job does more in that time: it judges each document, writes and syncs segments, and merges them.

No engine keeps prefixes: prompts are the same in each round, and else all but the first would be spared the prefill.

On a CPU the job's engine has one thread, as in configs/squad.yaml: the processes around it need the other core. Bare
vLLM has two, which is faster by 15 % where nothing else runs, and runs in the caller's process, its fastest form there:
by default it adds two processes, which wait for one another by spinning. Ray Data's processor, whose actor holds an
engine of its own, is told the same, two threads among it. It comes last, when the other engines have gone. A case whose
peer fails is told without it.

The model, the prompts and bare vLLM are in synthesis_work.py, the two other peers in synthesis_ray_data.py and
synthesis_first_tokens.py. What single settings of an engine give is in engine_settings.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from harness import alternate, emit
from synthesis_first_tokens import first_tokens
from synthesis_ray_data import BATCH, ray_data_apart
from synthesis_work import (
    CFG,
    CORES,
    ENGINE,
    WITHOUT_PREFIXES,
    Work,
    bare_engine,
    bare_rate,
    prepare,
    request_body,
    settle,
    start_ray,
    told,
)

from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, ServiceConfig
from sbp_ray.engine import deploy
from sbp_ray.engine.deploy import build_app
from sbp_ray.errors import Outcome
from sbp_ray.generation.coordinator import coordinator_class
from sbp_ray.generation.scores import SampleScorer
from sbp_ray.generation.shard_worker import Inputs, ShardWorker

PARTS = ("rates", "first-tokens", "scoring", "ray-data")
CLIENTS = 64


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints one line of JSON for each comparison.")
    parser.add_argument("--quick", action="store_true", help=f"{BATCH} documents, 1 round")
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    settle(CORES)
    documents, rounds = (BATCH, 1) if arguments.quick else (arguments.documents, arguments.rounds)
    with tempfile.TemporaryDirectory() as name:
        work = prepare(Path(name), BATCH * math.ceil(documents / BATCH))
        run(work, rounds, arguments.parts)


def run(work: Work, rounds: int, parts: Sequence[str]) -> None:
    """Measure all cases; each comparison is printed as soon as it is known."""
    compare = partial(emit, "synthesis", metric="generated tokens", unit="1/s", higher_is_better=True)
    job = math.nan
    with served(work) as url:
        if "rates" in parts or "ray-data" in parts:
            measured = rates(work, url, rounds, ("bare", "job", "http") if "rates" in parts else ("job",))
            job = measured["job"]
            for case, name in (("job", "job"), (f"HTTP, {CLIENTS} clients", "http")) if "rates" in parts else ():
                compare(case=case, ours=measured[name], peer_name="vllm.LLM.generate", peer=measured["bare"])
        if "scoring" in parts:
            measured = rates(work, url, rounds, ("job", "scored job"))
            compare(case="job that scores samples", ours=measured["scored job"], peer_name="job", peer=measured["job"])
        if "first-tokens" in parts:
            first_tokens(work, url, rounds)
    if "ray-data" in parts and (peers := ray_data_apart(work, rounds)):
        compare(case="job", ours=job, peer_name="ray.data.llm", peer=statistics.median(peers))


def rates(work: Work, url: str, rounds: int, names: Sequence[str]) -> dict[str, float]:
    """Tokens a second of these cases: medians of rounds in turn, after one round that warms."""
    from ray import serve

    bare = bare_engine(work) if "bare" in names else None  # while the service starts
    while serve.status().applications["bench"].status == "DEPLOYING":
        time.sleep(0.2)
    cases: dict[str, Callable[[], float]] = {
        "bare": partial(bare_rate, work, bare),
        "job": partial(job_rate, work),
        "scored job": partial(job_rate, work, is_scored=True),
        "http": partial(http_rate, work, url),
    }
    shown = {name: partial(told, name, cases[name]) for name in names}
    for measure in shown.values():
        measure()  # warm
    measured = {name: statistics.median(values) for name, values in alternate(shown, rounds).items()}
    if bare is not None:
        bare.llm_engine.engine_core.shutdown()
        os.environ.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
    return measured


@contextmanager
def served(work: Work) -> Iterator[str]:
    """The service under a URL, in a Ray of its own."""
    import ray
    from ray import serve

    start_ray()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "WARNING"})
    kept = deploy._engine_kwargs
    deploy._engine_kwargs = lambda engine: kept(engine) | WITHOUT_PREFIXES  # no setting of ours: it is for this alone
    app = build_app(ENGINE, work.synthesizer, ServiceConfig(max_tokens_in_flight=10**9))
    deploy._engine_kwargs = kept
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    target = serve.RunTarget(app, name="bench", logging_config=quiet)
    serve.run_many([target], wait_for_applications_running=False)
    yield f"http://127.0.0.1:{port}/v1/completions"
    serve.shutdown()
    ray.shutdown()


class TimedWorker(ShardWorker):
    """The job's worker, with a clock."""

    async def __call__(self, item: dict[str, int]) -> dict[str, Any]:
        """Adds the seconds that the shard took."""
        start = time.monotonic()
        return {**await super().__call__(item), "seconds": time.monotonic() - start}


def job_rate(work: Work, *, is_scored: bool = False) -> float:
    """The stage's worker in Ray Data, from reading the shard to the merged one; with scores of its samples."""
    import ray

    with tempfile.TemporaryDirectory() as folder:
        out = Artifact("synthetic", folder)
        coordinator = ray.remote(num_cpus=0)(coordinator_class()).remote({}, 1, 1)
        made_from = (work.corpus, work.synthesizer, out, "bench", 10**9, coordinator)
        rows = ray.data.from_items([{"shard": 0, "quota": len(work.prompts)}]).map(
            TimedWorker,
            fn_constructor_args=(Inputs(CFG, ENGINE, DecontaminateConfig(), 13, *made_from),),
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=0.5,
        )
        [row] = rows.take_all()
        seconds = row["seconds"] + (seconds_to_score(work, out) if is_scored else 0.0)
    return Outcome(*json.loads(row["outcome"])).get()["tokens_generated"] / seconds


def seconds_to_score(work: Work, out: Artifact) -> float:
    """Of a warm worker, for all samples of the merged shard."""
    scorer = SampleScorer(CFG.model_copy(update={"keep_best": 1}), work.corpus, work.synthesizer, out)
    start = time.monotonic()
    scorer({"shard": 0})
    return time.monotonic() - start


def http_rate(work: Work, url: str) -> float:
    """All prompts, `CLIENTS` requests at a time."""

    async def measure() -> float:
        slots = asyncio.Semaphore(CLIENTS)
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:

            async def ask(number: int) -> int:
                async with slots:
                    answer = (await client.post(url, json=request_body(work, number))).raise_for_status()
                return answer.json()["usage"]["completion_tokens"]

            start = time.monotonic()
            written = await asyncio.gather(*[ask(number) for number in range(len(work.prompts))])
            return sum(written) / (time.monotonic() - start)

    return asyncio.run(measure())


if __name__ == "__main__":
    main()
