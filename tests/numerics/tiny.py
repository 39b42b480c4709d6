"""Training runs so small that their numbers can be compared exactly."""

from __future__ import annotations

import random
from pathlib import Path

from sbp_ray.artifacts import Artifact
from sbp_ray.config import ModelConfig, PretrainConfig, TrainingResources
from sbp_ray.mixing import Mixture
from sbp_ray.text.packing import pack_examples
from sbp_ray.text.pair_format import Example, document_example
from sbp_ray.text.tokenizer import SpecialIds, special_ids, train_tokenizer
from sbp_ray.training.packed import packed_source
from sbp_ray.training.plan import TrainingPlan

SEQ_LEN = 32
MODEL = ModelConfig(
    num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=48, max_positions=64
)


def documents(number: int, seed: int = 0, vocab_size: int = 300) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, vocab_size) for _ in range(draw.randint(3, 28))] for _ in range(number)]


def write_rows(out: Artifact, source: str, shards: list[list[Example]]) -> None:
    for shard, examples in enumerate(shards):
        rows, stats = pack_examples(examples, SEQ_LEN)
        out.write_table(f"rows/{source}/part-{shard:05d}.parquet", rows, stats)


def tiny_plan(
    folder: Path, *, num_workers: int = 1, num_steps: int = 6, recompute: str = "none", **settings: object
) -> TrainingPlan:
    """A plan over two shards of random documents, 4 rows a step; the tokenizer lies in the artifact itself."""
    out = Artifact("base_lm", str(folder))
    tokenizer = train_tokenizer(["a few words"], 300)
    tokenizer.save_pretrained(out.path("tokenizer"))
    special = SpecialIds(*special_ids(tokenizer))
    for seed, source in enumerate(("real", "validation")):
        shards = [documents(30, seed=10 * seed + shard, vocab_size=len(tokenizer)) for shard in range(2)]
        write_rows(out, source, [[document_example(ids, special) for ids in shard] for shard in shards])
    config = PretrainConfig(
        seq_len=SEQ_LEN,
        batch_rows=4,
        micro_batch_rows=1,
        total_tokens=4 * SEQ_LEN * num_steps,
        peak_lr=1e-2,
        dtype="float32",
        resources=TrainingResources(num_workers=num_workers, num_threads=1, recompute=recompute),
    ).model_copy(update=settings)
    return TrainingPlan(
        stage="tiny",
        config=config,
        mixture=Mixture(packed_source(out, "real"), None, 4 * num_steps, 0, 0),
        num_steps=num_steps,
        out=out,
        validation=packed_source(out, "validation"),
        tokenizer=out,
        vocab_size=320,
        special=special,
        model=MODEL,
    )
