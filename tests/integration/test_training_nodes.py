"""A training on a cluster whose nodes are taken back, with notice and without."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import yaml
from ray_head import Head, free_ports, ray_head, wait_for

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.job import FOLDERS
from sbp_ray.schema import DOCUMENT
from sbp_ray.text.tokenizer import encode_texts, train_tokenizer
from sbp_ray.training.checkpoint import complete_checkpoints

pytestmark = pytest.mark.slow

REPO = Path(__file__).parents[2]
NUM_STEPS = 800
LIMIT_S = 300.0
PRETRAIN = {
    "seq_len": 64,
    "batch_rows": 2,
    "total_tokens": 2 * 64 * NUM_STEPS,
    "peak_lr": 1e-3,
    "dtype": "float32",
    "checkpoint_every": NUM_STEPS,  # but for the notice there would be none on the way
    "resources": {"num_workers": 2, "num_cpus": 1, "num_threads": 1, "max_failures": 0, "max_preemptions": 1},
}
MODEL = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "ffn_size": 48}


@pytest.fixture
def head() -> Iterator[Head]:
    """A cluster whose head has no CPUs: all ranks are on other nodes."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        environment = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
        [gcs_port] = free_ports(1)
        with ray_head(Path(name), environment=environment, gcs_port=gcs_port, num_cpus=0) as running:
            yield running


class Node:
    """A node of the cluster with room for two ranks, as processes of this machine; the head's fixture ends them."""

    def __init__(self, head: Head, name: str) -> None:
        self.name = name
        ports = free_ports(4)
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={head.address}", "--block",
            "--num-cpus=2", f"--node-name={name}", "--object-store-memory=100000000",
            f"--dashboard-agent-grpc-port={ports[0]}", f"--dashboard-agent-listen-port={ports[1]}",
            f"--metrics-export-port={ports[2]}", f"--runtime-env-agent-port={ports[3]}",
        ]  # fmt: skip
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=head.environment, start_new_session=True, **silent)

    def ranks(self) -> list[psutil.Process]:
        return [process for process in self._family() if "RayTrainWorker" in " ".join(process.cmdline())]

    def take_back(self) -> None:
        """As the cloud does: everything on it ends at once."""
        family = self._family()
        for process in [psutil.Process(self._process.pid), *family]:
            process.kill()
        psutil.wait_procs(family, timeout=30)
        self._process.wait()

    def _family(self) -> list[psutil.Process]:
        found = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def write_corpus(corpus: Artifact) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["river", "king", "stone", "light", "of", "the"], k=20)) for _ in range(40)]
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.save_pretrained(corpus.path("tokenizer"))
    ids = encode_texts(tokenizer, texts)
    for split, chosen in {"train": range(32), "validation": range(32, 40)}.items():
        rows = [{"doc_id": f"{n:032x}", "group": "", "text": texts[n], "input_ids": ids[n]} for n in chosen]
        corpus.write_table(f"{split}/part-00000.parquet", pa.Table.from_pylist(rows, DOCUMENT))
    corpus.write_json(STARTED, {"fingerprint": "00c0ffee00c0ffee"})
    corpus.write_json(MANIFEST, {"stats": {}})


class Job:
    """jobs/pretrain.py on the cluster."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.out, self.log = Artifact("base_lm", str(folder / FOLDERS["base_lm"])), folder / "log.txt"
        write_corpus(Artifact("corpus", str(folder / FOLDERS["corpus"])))
        config = yaml.safe_load((REPO / "tests/unit/small.yaml").read_text())
        config |= {"run_dir": str(folder), "model": MODEL, "pretrain": PRETRAIN}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        self._command = [sys.executable, "jobs/pretrain.py", "--config", str(folder / "config.yaml")]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self._environment = kept | head.environment | {"RAY_ADDRESS": head.address}

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self._command, cwd=REPO, env=self._environment, stdout=log, stderr=log)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_bytes(name).splitlines()] if self.out.exists(name) else []

    def await_step(self, step: int) -> None:
        wait_for(lambda: len(self.rows("metrics.jsonl")) >= step, f"step {step}", LIMIT_S)


def announce(head: Head, node: Node) -> None:
    """The cloud's notice that it takes the node back, as Ray is told of it."""
    from ray._raylet import GcsClient

    known = GcsClient(address=head.address).get_all_node_info()
    [node_id] = [id_ for id_, info in known.items() if info.node_name == node.name]
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={head.address}",
        f"--node-id={node_id.hex()}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
        f"--deadline-remaining-seconds={LIMIT_S:.0f}",
    ]  # fmt: skip
    subprocess.run(command, env=head.environment, check=True, capture_output=True)


def test_a_notice_saves_the_work_and_what_takes_nodes_and_what_kills_workers_have_budgets_of_their_own(
    head: Head, tmp_path: Path
) -> None:
    nodes = [Node(head, "first"), Node(head, "second")]
    job = Job(tmp_path, head)
    driver = job.start()
    job.await_step(1)
    [taken] = [node for node in nodes if node.ranks()]
    [left] = [node for node in nodes if node is not taken]
    announce(head, taken)
    wait_for(lambda: complete_checkpoints(job.out), "the checkpoint that the notice asks for", LIMIT_S)
    [(saved, _)] = complete_checkpoints(job.out)
    assert saved < NUM_STEPS
    job.await_step(saved + 3)  # it does not wait for the end
    taken.take_back()
    wait_for(lambda: len(job.rows("attempts.jsonl")) == 2, "the training goes on elsewhere", LIMIT_S)
    assert job.rows("attempts.jsonl")[1]["resumed_step"] == saved
    job.await_step(saved + 1)

    left.ranks()[0].kill()  # no failure was left, nor was one paid for the node
    assert driver.wait(LIMIT_S) == 1, job.log.read_text()
    said = [line for line in job.log.read_text().splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "pretrain-repetition: workers died more often than resources.max_failures=0 allows" in said[0]

    assert job.start().wait(LIMIT_S) == 0, job.log.read_text()
    assert [row["step"] for row in job.rows("metrics.jsonl")] == list(range(1, NUM_STEPS + 1))
    manifest = job.out.manifest()
    assert manifest is not None
    assert manifest["stats"]["attempts"] == 3
    assert manifest["stats"]["wasted_steps"] == sum(row["wasted_steps"] for row in job.rows("attempts.jsonl")) > 0
