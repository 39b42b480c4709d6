"""The whole loop on a few paragraphs of eight of the bundled articles, and much smaller: what tests of it share."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
SMALLER = [
    "ingest.num_shards=2",
    "ingest.vocab_size=1024",
    "ingest.validation_share=0.25",
    "neighbors.num_neighbors=5",
    "pair.min_cosine=0.4",
    "model.num_layers=2",
    "model.hidden_size=64",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.ffn_size=128",
    "pretrain.seq_len=256",
    "pretrain.batch_rows=4",
    "pretrain.resources.micro_batch_rows=2",
    "pretrain.total_tokens=40960",
    "pretrain.resources.checkpoint_every=5",
    "mixture.synthetic_share=0.01",
    "tune.batch_rows=2",
    "tune.resources.checkpoint_every=5",
    "tune.resources.export_check=transformers",
    "synthesize.num_documents=24",
    "synthesize.max_tokens=64",
    "synthesize.keep_unfinished=true",
    "eval.max_questions=40",
    "eval.max_validation_documents=10",
]


def small_loop(folder: Path, run_dir: str) -> list[str]:
    """The command that runs it; its input is written to `folder`."""
    source = folder / "docs.jsonl"
    with gzip.open(REPO / "data/squad48/docs.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    titles = sorted({row["title"] for row in rows})[:8]
    few = [row for row in rows if row["title"] in titles and row["para"] < 12]
    source.write_text("".join(json.dumps(row) + "\n" for row in few), encoding="utf-8")
    settings = [f"run_dir={run_dir}", f"ingest.input=[{source}]", *SMALLER]
    return [sys.executable, "jobs/pipeline.py", "--config", "configs/squad.yaml", *settings]


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=REPO, env=environment, stdout=output, stderr=output)
