"""The training loop beside Hugging Face's Trainer and a plain PyTorch loop; on a GPU, its speed alone.

    make bench NAME=train ARGS=--quick     # some minutes on two cores
    make bench NAME=train                  # both windows, both types, 3 rounds, and Ray Train around the loop

On a CPU: a model of 7 M parameters, the bundled corpus (its real lengths), 2 cores. All train the same architecture
from the same weights with AdamW and clipping, in turn; a measurement is the median step of a round, its first step left
out, and a result the median of the rounds. What counts is text: padding is no token. Our loop is measured as it is by
default, and with `resources.compile: true`, whose first step, of half a minute and more, is the one that is left out.

    padded     transformers.Trainer as one finds it in tutorials: batches of documents, cut to the window and padded
    packed     what one writes by hand over our packed rows: transformers' model with position_ids that start again (it
               masks the documents apart), its own loss, AdamW
    loop       our loop without Ray, beside which Ray Train around it is measured

A GPU's steps are measured by `gpu.py`, piece `train`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import alternate, emit

from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.config import Dtype, ModelConfig, PretrainConfig, TrainingResources
from sbp_ray.mixing import Mixture, Source
from sbp_ray.model import build_model, num_parameters
from sbp_ray.shards import shard_name
from sbp_ray.text.pair_format import document_example
from sbp_ray.text.tokenizer import encode_texts, special_ids, train_tokenizer
from sbp_ray.training.batches import Batch
from sbp_ray.training.build import build_sharded_model
from sbp_ray.training.optim import build_optimizer
from sbp_ray.training.packed import read_packed, write_shard
from sbp_ray.training.rows import RowReader, assign_rows
from sbp_ray.training.sharding import process_group
from sbp_ray.training.step import update
from sbp_ray.training.training_plan import TrainingPlan, rows_folder

CORES = 2
VOCAB_SIZE = 4096
BUNDLED = Path(__file__).parents[1] / "data/squad48/docs.jsonl.gz"
SEVEN_MILLION = ModelConfig(
    num_layers=8, hidden_size=256, num_heads=4, num_kv_heads=2, head_dim=64, ffn_size=704, max_positions=4096
)
NOTHING = Source("nothing", ())
"""Held-out rows of a training that is not evaluated."""


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints one line of JSON for each case.")
    parser.add_argument("--quick", action="store_true", help="one window, one type, fewer steps, without Ray")
    parser.add_argument("--windows", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--ray", action=argparse.BooleanOptionalAction, default=True, help="measure Ray Train, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a round, beside the first")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.set_num_threads(CORES)
    if arguments.quick:
        arguments.windows, arguments.dtypes, arguments.steps, arguments.ray = [2048], ["float32"], 4, False
        arguments.rounds = min(arguments.rounds, 2)
    for number, seq_len in enumerate(arguments.windows):
        with tempfile.TemporaryDirectory() as folder:
            corpus = Corpus(Path(folder), seq_len)
            for dtype in arguments.dtypes:
                compare(corpus, dtype, arguments.rounds, arguments.steps)
            if arguments.ray and number == 0:
                compare_with_ray(corpus, arguments.rounds)


class Corpus:
    """The bundled corpus: documents as tokens, and packed rows in a plan of one long run."""

    def __init__(self, folder: Path, seq_len: int, text_positions: int = 4096) -> None:
        texts = [json.loads(line)["text"] for line in gzip.decompress(BUNDLED.read_bytes()).splitlines()]
        tokenizer = train_tokenizer(texts, VOCAB_SIZE)
        special = special_ids(tokenizer)
        examples = [document_example(ids, special) for ids in encode_texts(tokenizer, texts)]
        self.documents = [example.input_ids.tolist() for example in examples]
        out = Artifact("base_lm", str(folder))
        tokenizer.save_pretrained(out.path("tokenizer"))
        for source, number in {"real": len(examples), "validation": 4 * seq_len // 150}.items():
            length_D = np.array([len(example.input_ids) for example in examples[:number]], np.int64)
            write_shard(
                out,
                shard_name(rows_folder(source), 0),
                length_D=length_D,
                first_supervised_D=np.ones_like(length_D),
                tokens_of=lambda document: examples[document].input_ids,
                seq_len=seq_len,
                vocab_size=VOCAB_SIZE,
            )
        out.write_json(STARTED, {"fingerprint": "0" * 16})
        num_steps, batch_rows = 48, text_positions // seq_len
        config = PretrainConfig(
            seq_len=seq_len,
            batch_rows=batch_rows,
            total_tokens=num_steps * text_positions,
            peak_lr=1e-3,
            checkpoint="last",
            resources=TrainingResources(num_cpus=CORES, num_threads=CORES, micro_batch_rows=batch_rows),
        )
        self.name = f"bundled corpus, window {seq_len}"
        self.plan = TrainingPlan(
            stage="benchmark",
            config=config,
            mixture=Mixture(read_packed(out, "real").source, None, num_steps * batch_rows, 0, 0),
            num_steps=num_steps,
            out=out,
            validation=read_packed(out, "validation").source,
            development=NOTHING,
            tokenizer=out,
            vocab_size=VOCAB_SIZE,
            special=special,
            model=SEVEN_MILLION,
        )

    def plan_with(self, *, dtype: Dtype, compiled: bool = False) -> TrainingPlan:
        """The plan with another number type, compiled or not."""
        resources = self.plan.config.resources.model_copy(update={"compile": compiled})
        return replace(self.plan, config=self.plan.config.model_copy(update={"dtype": dtype, "resources": resources}))


def compare(corpus: Corpus, dtype: Dtype, rounds: int, steps: int) -> None:
    """Ours, compiled and not, beside both peers."""
    plan, compiled = (corpus.plan_with(dtype=dtype, compiled=is_compiled) for is_compiled in (False, True))
    measured = alternate(
        {
            "ours": partial(ours, plan, steps),
            "ours, compiled": partial(ours, compiled, steps),
            "packed": partial(packed, plan, steps),
            "padded": partial(padded, corpus.documents, plan, steps),
        },
        rounds,
    )
    median = {name: statistics.median(values) for name, values in measured.items()}
    peers = {"padded": "transformers.Trainer, padded", "packed": "plain PyTorch loop, same packed rows"}
    for loop in ("ours, compiled", "ours"):
        size = f"{num_parameters(SEVEN_MILLION, VOCAB_SIZE) / 1e6:.1f} M parameters"
        what = f"{corpus.name}, {size}, {dtype}{loop.removeprefix('ours')}"
        for case, peer in peers.items():
            emit("train", what, "text tokens", "1/s", median[loop], peer, median[case], higher_is_better=True)


def _tokens_per_s(step: Callable[[int], int], steps: int) -> float:
    """Of the median step; `step` trains and returns its number of tokens."""
    rates = []
    for number in range(1, steps + 2):
        start = time.perf_counter()
        num_tokens = step(number)
        rates.append(num_tokens / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def ours(plan: TrainingPlan, steps: int) -> float:
    """Text tokens a second."""
    device = torch.device("cpu")
    batches = _batches(plan, steps)
    torch.compiler.reset()  # no limit to what earlier rounds have compiled
    with process_group(plan.config.resources):
        model = build_sharded_model(plan, device)
        optimizer = build_optimizer(model, plan.config)
        return _tokens_per_s(lambda step: update(plan, model, optimizer, [batches[step]], step, device).tokens, steps)


def packed(plan: TrainingPlan, steps: int) -> float:
    """The same of a loop written by hand."""
    lm = build_model(SEVEN_MILLION, VOCAB_SIZE, plan.special, plan.config.seed).train()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=plan.config.peak_lr)
    batches = _batches(plan, steps)
    is_mixed = plan.config.dtype == "bfloat16"

    def step(number: int) -> int:
        batch = batches[number]
        labels_BT = torch.full_like(batch.input_ids_BT, -100)
        labels_BT[batch.targets.row_S, batch.targets.position_S + 1] = batch.targets.token_S
        with torch.autocast("cpu", torch.bfloat16) if is_mixed else nullcontext():
            loss = lm(
                input_ids=batch.input_ids_BT,
                position_ids=batch.documents.positions_BT,
                labels=labels_BT,
                use_cache=False,
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), plan.config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return batch.num_tokens

    return _tokens_per_s(step, steps)


def _batches(plan: TrainingPlan, steps: int) -> dict[int, Batch]:
    reader = RowReader(plan.out, plan.config)
    rows = plan.config.batch_rows
    return {step: reader.batch(assign_rows(plan.mixture, step, rows, 0, 1)) for step in range(1, steps + 2)}


def padded(documents: list[list[int]], plan: TrainingPlan, steps: int) -> float:
    """The same of transformers' Trainer; as many documents in a batch as have a packed batch's tokens on average."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    seq_len = plan.config.seq_len
    cut = [ids[:seq_len] for ids in documents]
    average = sum(map(len, cut)) / len(cut)
    rates: list[float] = []
    num_tokens = 0

    def collate(members: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        nonlocal num_tokens
        rows = [member["input_ids"] for member in members]
        num_tokens = sum(map(len, rows))
        longest = max(map(len, rows))
        input_ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {
            "input_ids": input_ids_BT,
            "attention_mask": mask_BT,
            "labels": input_ids_BT.masked_fill(mask_BT == 0, -100),
        }

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start, self.tokens = time.perf_counter(), num_tokens

        def on_step_end(self, *_: Any, **__: Any) -> None:
            rates.append(self.tokens / (time.perf_counter() - self.start))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=round(plan.config.batch_rows * seq_len / average),
            max_steps=steps + 1,
            learning_rate=plan.config.peak_lr,
            bf16=plan.config.dtype == "bfloat16",
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        lm = build_model(SEVEN_MILLION, VOCAB_SIZE, plan.special, plan.config.seed)
        data = [{"input_ids": ids} for ids in cut]
        trainer = Trainer(lm, arguments, train_dataset=data, data_collator=collate, callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)  # standard output is for the results
        trainer.train()
    return statistics.median(rates[1:])


# What Ray Train costs


def compare_with_ray(corpus: Corpus, rounds: int) -> None:
    """The whole loop, checkpoints and metrics included, with and without Ray Train around it."""
    import ray

    from sbp_ray.training.launch import fit
    from sbp_ray.training.loop import train

    nowhere = {"env_vars": {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}}
    quiet = {"include_dashboard": False, "logging_level": "WARNING", "log_to_driver": False}
    ray.init(address="local", num_cpus=2 * CORES, runtime_env=nowhere, **quiet)
    num_steps = 24
    rows = num_steps * corpus.plan.config.batch_rows
    mixture = replace(corpus.plan.mixture, total_rows=rows)
    plan = replace(corpus.plan_with(dtype="float32"), mixture=mixture, num_steps=num_steps)

    def bare(plan: TrainingPlan) -> None:
        torch.set_num_threads(CORES)
        train(plan)

    task = ray.remote(num_cpus=CORES, max_calls=1)(bare)
    measured = alternate(
        {
            "ours": partial(_whole_run, plan, fit),
            "loop": partial(_whole_run, plan, lambda plan: ray.get(task.remote(plan))),
        },
        rounds,
    )
    median = {name: statistics.median(values) for name, values in measured.items()}
    what = f"{corpus.name}, Ray Train around the loop, float32"
    emit("train", what, "text tokens", "1/s", median["ours"], "the loop alone", median["loop"], higher_is_better=True)
    ray.shutdown()


def _whole_run(plan: TrainingPlan, run: Callable[[TrainingPlan], None]) -> float:
    """Text tokens a second of the median step, from `metrics.jsonl`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Artifact("base_lm", folder)
        Path(folder, "rows").symlink_to(plan.out.path("rows"))
        run(replace(plan, out=out))
        rows = [json.loads(line) for line in out.read_bytes("metrics.jsonl").splitlines()]
    return statistics.median(row["tokens_per_s"] for row in rows[1:])


if __name__ == "__main__":
    main()
