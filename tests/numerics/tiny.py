"""Training runs so small that their numbers can be compared exactly."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from packed_rows import write_examples
from safetensors.torch import load_file

from sbp_ray.artifacts import Artifact
from sbp_ray.config import ModelConfig, PretrainConfig, TrainingResources
from sbp_ray.mixing import Mixture
from sbp_ray.text.pair_format import document_example
from sbp_ray.text.tokenizer import SpecialIds, special_ids, train_tokenizer
from sbp_ray.training.packed import read_packed
from sbp_ray.training.training_plan import TrainingPlan

SEQ_LEN = 32
MODEL = ModelConfig(
    num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=48, max_positions=64
)


def documents(number: int, seed: int = 0, vocab_size: int = 300) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, vocab_size) for _ in range(draw.randint(3, 28))] for _ in range(number)]


def tiny_plan(folder: Path, *, num_workers: int = 1, num_steps: int = 6, **settings: Any) -> TrainingPlan:
    """A plan over two shards of random documents, 4 rows a step; the tokenizer lies in the artifact itself."""
    out = Artifact("base_lm", str(folder))
    tokenizer = train_tokenizer(["a few words"], 300)
    tokenizer.save_pretrained(out.path("tokenizer"))
    special = SpecialIds(*special_ids(tokenizer))
    for seed, source in enumerate(("real", "validation")):
        for shard in range(2):
            texts = documents(30, seed=10 * seed + shard, vocab_size=len(tokenizer))
            write_examples(out, source, [document_example(ids, special) for ids in texts], SEQ_LEN, shard=shard)
    of_resources = {key: settings.pop(key) for key in settings.keys() & TrainingResources.model_fields.keys()}
    config = PretrainConfig(
        seq_len=SEQ_LEN,
        batch_rows=4,
        total_tokens=4 * SEQ_LEN * num_steps,
        peak_lr=1e-2,
        dtype="float32",
        resources=TrainingResources(num_workers=num_workers, num_threads=1, **of_resources),
    ).model_copy(update=settings)
    return TrainingPlan(
        stage="tiny",
        config=config,
        mixture=Mixture(read_packed(out, "real").source, None, 4 * num_steps, 0, 0),
        num_steps=num_steps,
        out=out,
        validation=read_packed(out, "validation").source,
        development=read_packed(out, "development").source,
        tokenizer=out,
        vocab_size=320,
        special=special,
        model=MODEL,
    )


def weights_of(plan: TrainingPlan) -> dict[str, torch.Tensor]:
    """Those that were exported."""
    return load_file(plan.out.path("model/model.safetensors"))


def rows_of(plan: TrainingPlan) -> list[dict[str, float]]:
    """Of each step, as the journal has it."""
    return [json.loads(line) for line in Path(plan.out.path("metrics.jsonl")).read_text().splitlines()]


def losses_of(plan: TrainingPlan) -> list[float]:
    return [row["loss_nats"] for row in rows_of(plan)]
