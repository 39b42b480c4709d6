"""jobs/pretrain.py on a few made-up documents, as a process of its own on a cluster of the test's."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from ray_head import Head, wait_for

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.schema import DOCUMENT
from sbp_ray.stage_table import FOLDERS
from sbp_ray.text.tokenizer import encode_texts, train_tokenizer

REPO = Path(__file__).parents[2]
LIMIT_S = 400.0
PRETRAIN: dict[str, Any] = {"seq_len": 64, "batch_rows": 2, "peak_lr": 1e-3, "dtype": "float32"}
PRETRAIN |= {"checkpoint": "last"}
MODEL = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "ffn_size": 48}


def write_corpus(corpus: Artifact) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["river", "king", "stone", "light", "of", "the"], k=20)) for _ in range(40)]
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.save_pretrained(corpus.path("tokenizer"))
    ids = encode_texts(tokenizer, texts)
    for split, chosen in {"train": range(32), "validation": range(32, 40)}.items():
        rows = [{"doc_id": n.to_bytes(16, "big"), "group": "", "text": texts[n], "input_ids": ids[n]} for n in chosen]
        corpus.write_table(f"{split}/part-00000.parquet", pa.Table.from_pylist(rows, DOCUMENT))
    corpus.write_json(STARTED, {"fingerprint": "00c0ffee00c0ffee"})
    corpus.write_json(MANIFEST, {"stats": {}})


class Job:
    """jobs/pretrain.py on the cluster."""

    def __init__(self, folder: Path, log: Path, head: Head, **settings: Any) -> None:
        self.out, self.log = Artifact("base_lm", str(folder / FOLDERS["base_lm"])), log
        corpus = Artifact("corpus", str(folder / FOLDERS["corpus"]))
        write_corpus(corpus)
        config = yaml.safe_load((REPO / "tests/unit/small.yaml").read_text())
        config |= {"run_dir": str(folder), "model": MODEL, "pretrain": PRETRAIN | settings}
        config["artifacts"] = {"corpus": corpus.url}  # made by hand, so not as the settings have it
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        self._command = [sys.executable, "jobs/pretrain.py", "--config", str(folder / "config.yaml")]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self._environment = kept | head.environment | {"RAY_ADDRESS": head.address}

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self._command, cwd=REPO, env=self._environment, stdout=log, stderr=log)

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Its driver, which does not outlive the block."""
        driver = self._start()
        try:
            yield driver
        finally:
            driver.kill()
            driver.wait()

    def expect_error(self, driver: subprocess.Popen[bytes]) -> str:
        """It ends by itself; its one line."""
        assert driver.wait(LIMIT_S) == 1, self.log.read_text()
        [said] = [line for line in self.log.read_text().splitlines() if line.startswith("error: ")]
        return said

    def expect_success(self, driver: subprocess.Popen[bytes]) -> None:
        assert driver.wait(LIMIT_S) == 0, self.log.read_text()

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_bytes(name).splitlines()] if self.out.exists(name) else []

    def await_step(self, step: int) -> None:
        wait_for(lambda: len(self.rows("metrics.jsonl")) >= step, f"step {step}", LIMIT_S)
