"""The whole loop on a few paragraphs of eight of the bundled articles, and much smaller: what tests of it share."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from sbp_ray.artifacts import Artifact
from sbp_ray.object_stores import open_file_system
from sbp_ray.schema import SPLITS
from sbp_ray.stage_table import FOLDERS

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
    "synthesize.num_documents=24",
    "synthesize.max_tokens=64",
    "synthesize.keep_unfinished=true",
    "eval.max_questions=40",
    "eval.max_validation_documents=10",
]


ON_ONE_CPU = [
    "embed.resources.num_workers=3",
    "embed.resources.num_cpus=1",
    "embed.resources.num_threads=1",
    "neighbors.resources.num_cpus=1",
    "pair.resources.num_cpus=1",
    "engine.resources.num_cpus=1",
]
"""For a cluster whose nodes have no more; the result is the same."""
OF_ROWS = ("1_corpus", "2_embeddings", "3_neighbors", "4_pairs", "7_synthetic")
"""Artifacts whose rows are compared; of the trainings the weights are."""


def small_loop(folder: Path, run_dir: str, source: str = "", *settings: str) -> list[str]:
    """The command that runs it; its input is written to `folder`, and may then be read from elsewhere."""
    file = folder / "docs.jsonl"
    with gzip.open(REPO / "data/squad48/docs.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    titles = sorted({row["title"] for row in rows})[:8]
    few = [row for row in rows if row["title"] in titles and row["para"] < 12]
    file.write_text("".join(json.dumps(row) + "\n" for row in few), encoding="utf-8")
    places = [f"run_dir={run_dir}", f"ingest.input=[{source or file}]"]
    return [sys.executable, "jobs/pipeline.py", "--config", "configs/squad.yaml", *places, *SMALLER, *settings]


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with log.open("ab") as output:
        return subprocess.Popen(command, cwd=REPO, env=environment, stdout=output, stderr=output)


def committed(run_dir: str) -> set[str]:
    """Names of the files that lie in the run directory."""
    fs, path = open_file_system(run_dir)
    infos = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return {info.path for info in infos if info.type == pafs.FileType.File and "/.tmp-" not in info.path}


def made(run_dir: str) -> dict[str, Any]:
    """What a run's result consists of: rows, and weights."""
    found: dict[str, Any] = {}
    for noun, name in FOLDERS.items():
        artifact = Artifact(noun, f"{run_dir}/{name}")
        assert artifact.manifest() is not None, name
        if name in OF_ROWS:
            files = [file for part in ("", *SPLITS) for file in artifact.files(part, ".parquet")]
            for file in files:
                table = artifact.read_table(file)
                # The synthesizer's fingerprint names the input file, which may lie elsewhere.
                kept = [column for column in table.column_names if column != "synthesizer"]
                found[f"{name}/{file}"] = table.select(kept)
        else:
            files = artifact.files("model", ".safetensors")
            found |= {f"{name}/{file}": artifact.read_bytes(file) for file in files}
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
