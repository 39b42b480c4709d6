"""The synthesize job and the HTTP endpoint beside bare vLLM and Ray Data's LLM processor: same model and draws.

    python benchmarks/synthesis.py --quick                  # a few minutes on two cores
    python benchmarks/synthesis.py --parts rates ray-data   # some of it; others are `first-tokens` and `scoring`

The model has the demo's size and random weights. Each prompt is a bundled document cut so that what the window leaves
to write varies 10 : 1, and each draw has a seed of its own; peers draw with vLLM's sampler, ours on a CPU with
sbp_ray/engine/seeded.py. Cases are measured in turn, and each is the median of its rounds. Engines are warm: the clock
of the job and of Ray Data's processor runs from the first request in an actor to the last result, so neither Ray's
start nor vLLM's is in it. The job does more in that time: it judges each document, writes and syncs segments, and
merges them.

No engine keeps prefixes: prompts are the same in each round, and else all but the first would be spared the prefill.

On a CPU the job's engine has one thread, as in configs/squad.yaml: the processes around it need the other core. Bare
vLLM has two, which is faster by 15 % where nothing else runs, and runs in the caller's process, its fastest form there:
by default it adds two processes, which wait for one another by spinning. Ray Data's processor, whose actor holds an
engine of its own, is told the same, two threads among it. It comes last and in a process of its own with a deadline,
when the other engines have gone: it cannot hold up, or slow down, what has been measured. A case whose peer fails is
told without it. What single settings of an engine give is in engine_settings.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pyarrow as pa
from embed import read_texts
from harness import alternate, emit

from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.config import (
    DecontaminateConfig,
    EngineConfig,
    EngineResources,
    ModelConfig,
    ServiceConfig,
    SynthesizeConfig,
    SynthesizeResources,
)
from sbp_ray.engine import deploy
from sbp_ray.engine.deploy import build_app, llm_config, quiet_environment
from sbp_ray.engine.messages import sample_seed
from sbp_ray.errors import Outcome
from sbp_ray.generation.coordinator import coordinator_class
from sbp_ray.generation.scores import SampleScorer
from sbp_ray.generation.shard_worker import Inputs, ShardWorker
from sbp_ray.schema import DOC_ID, DOCUMENT, SIGNATURE_BYTES
from sbp_ray.shards import shard_name
from sbp_ray.text.minhash import document_signature
from sbp_ray.text.pair_format import prompt_ids

PARTS = ("rates", "first-tokens", "scoring", "ray-data")
CORES = 2
CLIENTS = 64
WINDOW = 512
FIRST_TOKENS = 64  # times to the first token in a round, at any number of clients
BATCH = 32  # rows, Ray Data's default; documents come in multiples of it, so that its blocks are batches
RAY_DATA_DEADLINE_S = 600
ROOM = (24, 240)  # shortest and longest text to write
BUNDLED = Path(__file__).parents[1] / "data/squad48/docs.jsonl.gz"
ENGINE = EngineConfig(
    dtype="float32",
    max_model_len=WINDOW,
    resources=EngineResources(enforce_eager=True, num_cpus=CORES, num_threads=1, max_num_seqs=64, kv_cache_gib=0.3),
)
WITHOUT_PREFIXES = {"enable_prefix_caching": False}
CFG = SynthesizeConfig(
    max_tokens=ROOM[1], min_tokens=2, top_p=1.0, keep_unfinished=True, resources=SynthesizeResources(commit_every_s=5)
)


class Work(NamedTuple):
    """What all cases write."""

    corpus: Artifact
    embeddings: Artifact
    synthesizer: Artifact
    doc_ids: list[bytes]
    prompts: list[list[int]]

    def max_tokens(self, prompt: list[int]) -> int:
        """What the window leaves, and the job asks for."""
        return min(ROOM[1], WINDOW - len(prompt))


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints one line of JSON for each comparison.")
    parser.add_argument("--quick", action="store_true", help=f"{BATCH} documents, 1 round")
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--ray-data-only", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settle(CORES)
    documents, rounds = (BATCH, 1) if arguments.quick else (arguments.documents, arguments.rounds)
    if arguments.ray_data_only:
        folder = Path(arguments.ray_data_only)
        print(json.dumps({"rates": ray_data_rates(work_in(folder), rounds)}), flush=True)
        return
    with tempfile.TemporaryDirectory() as name:
        work = prepare(Path(name), BATCH * math.ceil(documents / BATCH))
        run(work, rounds, arguments.parts)


def settle(threads: int) -> None:
    """Keep this process, and all that it starts, on the cores that are measured, engines with so many threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    vllm = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    os.environ.update(quiet_environment() | vllm)


def prepare(folder: Path, num_documents: int) -> Work:
    """A model of the demo's size, and a corpus of one shard whose documents leave 24 to 240 tokens of the window."""
    from sbp_ray.model import build_model
    from sbp_ray.text.tokenizer import encode_texts, special_ids, train_tokenizer

    texts = read_texts(BUNDLED, None)
    tokenizer = train_tokenizer(texts, 4096)
    special = special_ids(tokenizer)
    model = ModelConfig(num_layers=4, hidden_size=128, num_heads=4, num_kv_heads=2, head_dim=32, ffn_size=384)
    work = Work(*(Artifact(name, str(folder / name)) for name in ("corpus", "embeddings", "synthesizer")), [], [])
    tokenizer.save_pretrained(work.synthesizer.path("model"))
    build_model(model, len(tokenizer), special, seed=0).save_pretrained(work.synthesizer.path("model"))
    work.synthesizer.write_json(STARTED, {"fingerprint": "0123456789abcdef"})
    ids = [token for text in encode_texts(tokenizer, texts) for token in text]
    rows, place = [], 0
    for number in range(num_documents):
        room = ROOM[0] + (ROOM[1] - ROOM[0]) * (number * 7919 % num_documents) // num_documents
        own = [ids[(place + offset) % len(ids)] for offset in range(WINDOW - 2 - room)]
        place += len(own)
        rows.append({"doc_id": number.to_bytes(16, "big"), "group": "", "text": "", "input_ids": own})
    work.corpus.write_table(shard_name("train", 0), pa.Table.from_pylist(rows, DOCUMENT))
    signed_schema = pa.schema([("doc_id", DOC_ID), ("signature", pa.binary(SIGNATURE_BYTES))])
    signed = [
        {"doc_id": row["doc_id"], "signature": document_signature(row["doc_id"].hex(), 13)[0].tobytes()} for row in rows
    ]
    work.embeddings.write_table(shard_name("train", 0), pa.Table.from_pylist(signed, signed_schema))
    prompts = [prompt_ids(row["input_ids"], special) for row in rows]
    return work._replace(doc_ids=[row["doc_id"] for row in rows], prompts=prompts)


def work_in(folder: Path) -> Work:
    """What `prepare` has written there."""
    from sbp_ray.text.tokenizer import load_tokenizer, special_ids

    made = [Artifact(name, str(folder / name)) for name in ("corpus", "embeddings", "synthesizer")]
    special = special_ids(load_tokenizer(made[2].path("model")))
    rows = made[0].read_table(shard_name("train", 0)).to_pylist()
    return Work(*made, [row["doc_id"] for row in rows], [prompt_ids(row["input_ids"], special) for row in rows])


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
    told = {name: partial(_told, name, cases[name]) for name in names}
    for measure in told.values():
        measure()  # warm
    measured = {name: statistics.median(values) for name, values in alternate(told, rounds).items()}
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


def start_ray() -> None:
    """On this machine, and quiet."""
    import ray

    os.environ.update(RAY_worker_niceness="0")  # its default of 15 lets all else on the machine go first, bare vLLM too
    ray.init(address="local", num_cpus=4 * CORES, include_dashboard=False, logging_level="WARNING")
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def ray_data_apart(work: Work, rounds: int) -> list[float]:
    """Ray Data's rates, measured in another process; none, and a line on standard error, where it fails or hangs."""
    folder = Path(work.corpus.url).parent
    command = [sys.executable, __file__, "--ray-data-only", str(folder), "--rounds", str(rounds)]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, start_new_session=True)  # noqa: S603  ourselves
        try:
            process.wait(RAY_DATA_DEADLINE_S)
        except subprocess.TimeoutExpired:
            print(f"ray data: not done within {RAY_DATA_DEADLINE_S} s, ended", file=sys.stderr, flush=True)
        finally:  # with all that it has started
            for left in (
                [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
            ):
                left.kill()
            process.wait()
        output.seek(0)
        lines = [json.loads(line) for line in output.read().splitlines() if line.startswith(b'{"rates"')]
    if not lines:
        print(f"ray data: no result, exit status {process.returncode}", file=sys.stderr, flush=True)
    return lines[0]["rates"] if lines else []


def _told(name: str, measure: Callable[[], float]) -> float:
    """The measurement, shown on standard error as it comes."""
    value = measure()
    print(f"{name}: {value:,.1f} tokens/s", file=sys.stderr, flush=True)
    return value


# Generated tokens a second


def engine_settings(work: Work) -> dict[str, Any]:
    """Of our replicas, for all cases; but the sampler is vLLM's."""
    settings = llm_config(ENGINE, work.synthesizer, ServiceConfig()).engine_kwargs | WITHOUT_PREFIXES
    return {name: value for name, value in settings.items() if name != "logits_processors"}


def bare_engine(work: Work, **changed: Any) -> Any:
    """`vllm.LLM` with the settings of our replicas, in this process."""
    from vllm import LLM

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    settings = engine_settings(work) | changed
    return LLM(model=work.synthesizer.path("model"), distributed_executor_backend="uni", **settings)


def sampling(work: Work, number: int) -> dict[str, Any]:
    """What the job asks for document `number`."""
    seed = sample_seed(CFG.seed, work.doc_ids[number], 0)
    return {"temperature": 1.0, "seed": seed, "max_tokens": work.max_tokens(work.prompts[number])}


def bare_rate(work: Work, engine: Any, change: Callable[[Any], None] = lambda parameters: None) -> float:
    """All prompts in one call; `change` may change their sampling parameters."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": prompt} for prompt in work.prompts]
    parameters = [SamplingParams(**sampling(work, number), detokenize=False) for number in range(len(prompts))]
    for one in parameters:
        change(one)
    start = time.monotonic()
    outputs = engine.generate(prompts, parameters, use_tqdm=False)
    elapsed_s = time.monotonic() - start
    return sum(len(output.outputs[0].token_ids) for output in outputs) / elapsed_s


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


def ray_data_rates(work: Work, rounds: int) -> list[float]:
    """Ray Data's LLM processor with its default batches; neither the engine's start nor its first steps count.

    A processor starts its engine when its data set runs, and ends it after. The first batch warms it; the others are
    held back until that is done, and the clock runs from the first of their rows to the last.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    start_ray()
    # As our replicas: the engine in the actor's own process, and its worker with it.
    variables = quiet_environment() | {"OMP_NUM_THREADS": str(CORES), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    ray.data.DataContext.get_current().wait_for_min_actors_s = 300
    config = vLLMEngineProcessorConfig(
        model_source=work.synthesizer.path("model"),
        engine_kwargs=engine_settings(work) | {"distributed_executor_backend": "uni"},
        concurrency=1,
        batch_size=BATCH,
        max_concurrent_batches=8,
        accelerator_type=None,
        placement_group_config={"bundles": [{"CPU": CORES}]},
        runtime_env={"env_vars": variables | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    rates = []
    for number in range(rounds):
        warm = str(Path(work.corpus.url).parent / f"warm-{number}")
        processor = build_processor(config, preprocess=partial(_held_back, warm), postprocess=partial(_timed, warm))
        rows = [{"prompt": prompt, "sampling": sampling(work, place)} for place, prompt in enumerate(work.prompts)]
        first = [{"prompt": row["prompt"], "sampling": row["sampling"] | {"max_tokens": 8}} for row in rows[:BATCH]]
        items = [{**row, "warms": True} for row in first] + [{**row, "warms": False} for row in rows]
        done = processor(ray.data.from_items(items, override_num_blocks=math.ceil(len(items) / BATCH))).take_all()
        measured = [row for row in done if not row["warms"]]
        seconds = max(row["end"] for row in measured) - min(row["end"] - row["took"] for row in measured)
        rates.append(sum(row["tokens"] for row in measured) / seconds)
        print(f"ray data: {rates[-1]:,.1f} tokens/s", file=sys.stderr, flush=True)
    return rates


def _held_back(warm: str, row: dict[str, Any]) -> dict[str, Any]:
    while not row["warms"] and not Path(warm).exists():
        time.sleep(0.01)
    return {"tokenized_prompt": row["prompt"], "prompt": "", "sampling_params": row["sampling"], "warms": row["warms"]}


def _timed(warm: str, row: dict[str, Any]) -> dict[str, Any]:
    if row["warms"]:
        Path(warm).touch()
    end = time.monotonic()
    return {"tokens": len(row["generated_tokens"]), "end": end, "took": row["time_taken_llm"], "warms": row["warms"]}


def _body(work: Work, number: int, **more: Any) -> dict[str, Any]:
    return {"model": "synthesizer", "prompt": work.prompts[number], **sampling(work, number), **more}


def http_rate(work: Work, url: str) -> float:
    """All prompts, `CLIENTS` requests at a time."""

    async def measure() -> float:
        slots = asyncio.Semaphore(CLIENTS)
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:

            async def ask(number: int) -> int:
                async with slots:
                    answer = (await client.post(url, json=_body(work, number))).raise_for_status()
                return answer.json()["usage"]["completion_tokens"]

            start = time.monotonic()
            written = await asyncio.gather(*[ask(number) for number in range(len(work.prompts))])
            return sum(written) / (time.monotonic() - start)

    return asyncio.run(measure())


# Time to first token


def first_tokens(work: Work, url: str, rounds: int) -> None:
    """Median milliseconds until the first token, at 1 and 16 clients, beside an `AsyncLLM` in the client's process."""
    from ray import serve
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor.abstract import Executor

    async def measure() -> None:
        settings = engine_settings(work)
        config = AsyncEngineArgs(model=work.synthesizer.path("model"), **settings).create_engine_config()
        config.parallel_config.distributed_executor_backend = "uni"  # as our replicas have it
        engine = AsyncLLM(vllm_config=config, executor_class=Executor.get_class(config), log_stats=False)
        while serve.status().applications["bench"].status == "DEPLOYING":
            await asyncio.sleep(0.2)
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
            for clients in (1, 16):
                cases = {"bare": partial(_bare_first, work, engine), "http": partial(_http_first, work, client, url)}
                times: dict[str, list[float]] = {name: [] for name in cases}
                for _ in range(rounds + 1):
                    for name, ask in cases.items():
                        times[name] += await _rounds(ask, clients)
                # The first round warms. Each other has FIRST_TOKENS of them.
                ours, peer = (1000 * statistics.median(times[name][FIRST_TOKENS:]) for name in ("http", "bare"))
                emit(
                    "synthesis", f"HTTP, {clients} clients", "time to first token", "ms", ours, "AsyncLLM", peer,
                    higher_is_better=False,
                )  # fmt: skip
        engine.shutdown()

    asyncio.run(measure())


async def _rounds(ask: Callable[[int], Any], clients: int) -> list[float]:
    times = []
    for start in range(0, FIRST_TOKENS, clients):
        times += await asyncio.gather(*[ask(start + offset) for offset in range(clients)])
    return times


async def _bare_first(work: Work, engine: Any, number: int) -> float:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    number %= len(work.prompts)
    parameters = SamplingParams(**(sampling(work, number) | {"max_tokens": 8}), output_kind=RequestOutputKind.DELTA)
    start, first = time.monotonic(), 0.0
    prompt = {"prompt_token_ids": work.prompts[number]}
    async for _ in engine.generate(prompt, parameters, f"{number}-{start}"):
        first = first or time.monotonic() - start
    return first


async def _http_first(work: Work, client: httpx.AsyncClient, url: str, number: int) -> float:
    number %= len(work.prompts)
    start, first = time.monotonic(), 0.0
    async with client.stream("POST", url, json=_body(work, number, max_tokens=8, stream=True)) as answer:
        async for _ in answer.aiter_lines():
            first = first or time.monotonic() - start
    return first


if __name__ == "__main__":
    main()
