"""Trainings and scores of an experiment on a machine that has torch and transformers, and neither Ray nor vLLM."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.config import TrainingResources, TuneConfig
from sbp_ray.experiment.grid import Grid, plan_grid
from sbp_ray.experiment.settings import load_experiment
from sbp_ray.schema import DOCUMENT, PAIR
from sbp_ray.stages.tune import tune_synthesizer
from sbp_ray.text.tokenizer import encode_texts, load_tokenizer, train_tokenizer

JOBS = Path(__file__).parents[2] / "jobs"
ABSENT = ("ray", "vllm", "sentence_transformers", "scipy", "matplotlib", "jinja2")
"""Of what this project installs: torch, transformers, NumPy, PyArrow, Pydantic, PyYAML and psutil are left."""
BASE = {
    "model": {
        **{"num_layers": 1, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "ffn_size": 48},
        "max_positions": 64,
    },
    "pretrain": {
        **{"seq_len": 32, "batch_rows": 2, "total_tokens": 32 * 2 * 20, "peak_lr": 1e-2, "dtype": "float32"},
        "resources": {"num_threads": 1, "in_process": True, "checkpoint_every": 1},
    },
    "tune": {"seq_len": 64, "batch_rows": 2, "peak_lr": 1e-3},
    "engine": {"max_model_len": 64},
    "synthesize": {"max_tokens": 24},
}


def _write_corpus(made: Artifact, fingerprint: str) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(["sea", "sun", "sand", "salt", "swim", "surf"], k=20)) for _ in range(70)]
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.save_pretrained(made.path("tokenizer"))
    for split, part in (("train", range(50)), ("validation", range(50, 60)), ("development", range(60, 70))):
        ids = encode_texts(tokenizer, [texts[n] for n in part])
        rows = [
            {"doc_id": n.to_bytes(16, "big"), "group": str(n), "text": texts[n], "input_ids": own}
            for n, own in zip(part, ids, strict=True)
        ]
        made.write_table(f"{split}/part-00000.parquet", pa.Table.from_pylist(rows, schema=DOCUMENT))
    made.write_json(STARTED, {"fingerprint": fingerprint, "recipe": {"settings": {}, "inputs": {}}})
    made.write_json(MANIFEST, {"stats": {"train": {"documents": 50}, "drops": {}}, "wall_s": 1.0})


class Experiment:
    """An experiment of one seed, whose corpus is there."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._folder, self._file = folder, folder / "experiment.yaml"
        (folder / "docs.jsonl").write_text('{"text": "one"}\n')
        base = {**BASE, "ingest": {"input": [str(folder / "docs.jsonl")]}}
        tree: dict[str, Any] = {"run_dir": str(folder / "run"), "base": base, "seeds": [0]}
        self._file.write_text(json.dumps({**tree, "arms": {"repetition": {}}, **settings}))  # JSON is YAML
        [corpus] = [node for node in self.plan().nodes.values() if node.stage.job == "ingest"]
        self.corpus = corpus.artifact
        _write_corpus(self.corpus, corpus.fingerprint)
        (folder / "absent").mkdir()
        (folder / "absent" / "sitecustomize.py").write_text(
            f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))  # their import fails\n"
        )

    def plan(self) -> Grid:
        return plan_grid(load_experiment(str(self._file), []))

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": f"{self._folder / 'absent'}{os.pathsep}{JOBS.parent}"}
        command = [sys.executable, str(JOBS / "experiment.py"), "--config", str(self._file), "--in-process"]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=self._folder
        )

    def steps(self) -> list[int]:
        """Those recorded so far."""
        path = Path(self.model.path("metrics.jsonl"))
        return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def model(self) -> Artifact:
        return self.plan().trainings[0].model.artifact


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(tmp_path)


def test_a_training_is_made_in_pieces_and_scored_without_ray(experiment: Experiment) -> None:
    first = experiment.start()
    while len(experiment.steps()) < 3:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert first.returncode == 130
    assert not experiment.model.exists(MANIFEST)

    second = experiment.start()
    said, errors = second.communicate()
    assert second.returncode == 0, errors
    assert experiment.steps() == list(range(1, 21))  # each once, over both pieces
    [line] = [line for line in said.splitlines() if line.startswith("repetition seed 0: ")]
    assert float(line.split()[4]) == pytest.approx(_held_out_loss(experiment.model, corpus=experiment.corpus), abs=1e-3)


def test_a_sweep_an_ensemble_and_a_distilled_model_end_to_end(tmp_path: Path) -> None:
    """One setting with two values, so two trainings, of which repetition's is one; the better one's models of two seeds
    are averaged, and teach another."""
    of_two = {"of": "tuned", "members": 2}
    experiment = Experiment(
        tmp_path,
        arms={"repetition": {}, "tuned": {}, "ensemble": of_two, "distilled": of_two},
        sweep={"settings": {"pretrain.peak_lr": [1e-4]}},  # which learns next to nothing
    )
    running = experiment.start()
    said, errors = running.communicate()
    assert running.returncode == 0, errors
    grid = experiment.plan()
    losses = {sweep_loss(node.artifact): node.config.pretrain.peak_lr for node in grid.sweeps[0].trials}
    assert sorted(losses.values()) == [1e-4, 1e-2]
    assert grid.sweeps[0].chosen == {"pretrain.peak_lr": losses[min(losses)]} == {"pretrain.peak_lr": 1e-2}
    shown = {
        line.split(" seed ")[0]: float(line.split()[4]) for line in said.splitlines() if " seed 0: held-out " in line
    }
    of = {training.arm: training for training in grid.trainings}
    for arm in of:
        made = [node.artifact for node in of[arm].models]
        assert shown[arm] == pytest.approx(_held_out_loss(*made, corpus=experiment.corpus), abs=1e-3), arm
    assert shown["tuned"] == shown["repetition"]  # the sweep found the base's own
    alone = [_held_out_loss(node.artifact, corpus=experiment.corpus) for node in of["ensemble"].members]
    assert shown["ensemble"] < sum(alone) / 2  # the logarithm of a mean is above the mean of logarithms
    assert of["distilled"].model.stats["teacher_parameters"] == 2 * of["distilled"].model.stats["parameters"]
    assert shown["distilled"] != shown["tuned"]


def sweep_loss(trained: Artifact) -> float:
    rows = [json.loads(line) for line in Path(trained.path("metrics.jsonl")).read_text().splitlines()]
    return min(row["development_nats"] for row in rows if "development_nats" in row)


def _held_out_loss(*trained: Artifact, corpus: Artifact) -> float:
    """By transformers' own probabilities, their mean: <bos> text <eos>, every token but the first supervised."""
    models = [AutoModelForCausalLM.from_pretrained(made.path("model"), dtype=torch.float32) for made in trained]
    nll = tokens = 0.0
    for ids in corpus.read_table("validation/part-00000.parquet")["input_ids"].to_pylist():
        whole = torch.tensor([[models[0].config.bos_token_id, *ids, models[0].config.eos_token_id]])
        assert whole.shape[1] <= 32
        with torch.inference_mode():
            p_TV = torch.stack([lm(input_ids=whole).logits[0, :-1].softmax(dim=-1) for lm in models]).mean(dim=0)
        nll -= p_TV.gather(1, whole[0, 1:, None]).log().sum().item()
        tokens += whole.shape[1] - 1
    return nll / tokens


def _write_pairs(corpus: Artifact, pairs: Artifact) -> None:
    """Each document of a split with the next three."""
    for split in ("train", "validation", "development"):
        ids = corpus.read_table(f"{split}/part-00000.parquet")["doc_id"].to_pylist()
        rows = [
            {"d1_id": one, "d2_id": ids[(place + step) % len(ids)], "cosine": 0.8, "jaccard": 0.0}
            for place, one in enumerate(ids)
            for step in (1, 2, 3)
        ]
        pairs.write_table(f"{split}/part-00000.parquet", pa.Table.from_pylist(rows, schema=PAIR))


def test_the_control_without_d1_is_tuned_on_the_same_d2_for_as_many_steps(tmp_path: Path) -> None:
    """Every pair of 45 tokens or so takes a row of 64, in which two d2 of 22 have room."""
    corpus, pairs, base_lm = (Artifact(name, str(tmp_path / name)) for name in ("corpus", "pairs", "base_lm"))
    _write_corpus(corpus, "0" * 16)
    _write_pairs(corpus, pairs)
    shape = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(base_lm.path("model"))
    load_tokenizer(corpus.path("tokenizer")).save_pretrained(base_lm.path("model"))
    base_lm.write_json(STARTED, {"fingerprint": "0" * 16})
    resources = TrainingResources(num_threads=1, in_process=True)
    with_d1 = TuneConfig(seq_len=64, batch_rows=8, peak_lr=1e-3, dtype="float32", resources=resources)
    found = {}
    for cfg in (with_d1, with_d1.model_copy(update={"condition": "none"})):
        out = Artifact("synthesizer", str(tmp_path / cfg.condition))
        found[cfg.condition] = tune_synthesizer(cfg, corpus=corpus, pairs=pairs, base_lm=base_lm, out=out)
    related, alone = found["d1"], found["none"]
    assert related["packing"]["pairs"]["examples"] == alone["packing"]["pairs"]["examples"] == 3 * 50
    assert alone["packing"]["pairs"]["rows"] < related["packing"]["pairs"]["rows"]
    assert alone["steps"] == related["steps"] == -(-related["packing"]["pairs"]["rows"] // 8)
    assert alone["positions"] == related["positions"]
    assert (related["validation"]["pairs"], alone["validation"]["pairs"]) == (30, 0)
    assert all("development_nats" in stats["exported"] for stats in found.values())
