"""What the benchmarks of generation write: a model of the demo's size, a corpus, its prompts, and bare vLLM for it.

The model has random weights. Each prompt is a bundled document, cut so that what the window leaves to write varies
10 : 1, and each draw has a seed of its own.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from embed import read_texts

from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.config import (
    EngineConfig,
    EngineResources,
    ModelConfig,
    ServiceConfig,
    SynthesizeConfig,
    SynthesizeResources,
)
from sbp_ray.engine.deploy import llm_config, quiet_environment
from sbp_ray.engine.messages import sample_seed
from sbp_ray.schema import DOC_ID, DOCUMENT, SIGNATURE_BYTES
from sbp_ray.shards import shard_name
from sbp_ray.text.minhash import document_signature
from sbp_ray.text.pair_format import prompt_ids

CORES = 2
WINDOW = 512
ROOM = (24, 240)
"""Shortest and longest text to write."""
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


def start_ray() -> None:
    """On this machine, and quiet."""
    import ray

    os.environ.update(RAY_worker_niceness="0")  # its default of 15 lets all else on the machine go first, bare vLLM too
    ray.init(address="local", num_cpus=4 * CORES, include_dashboard=False, logging_level="WARNING")
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


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


def request_body(work: Work, number: int, **more: Any) -> dict[str, Any]:
    """The same for the endpoint."""
    return {"model": "synthesizer", "prompt": work.prompts[number], **sampling(work, number), **more}


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


def told(name: str, measure: Callable[[], float]) -> float:
    """The measurement, shown on standard error as it comes."""
    value = measure()
    print(f"{name}: {value:,.1f} tokens/s", file=sys.stderr, flush=True)
    return value
