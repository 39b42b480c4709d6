"""One checkpoint asked one benchmark by lm-eval. Imports it, which takes seconds: import this module late.

Legend: B rows, T tokens a row, G graded tokens, D hidden width, V vocabulary, Q requests.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from sbp_ray.evaluation.benchmarks.own_tasks import load_own_task
from sbp_ray.evaluation.benchmarks.question_sets import Asked, subject_of

_ROWS_GENERATED = 64  # at once
_LOGITS_AT_ONCE = 2**25  # 128 MiB of float32
_FEWSHOT_SEED = 1234  # lm-eval's own default
_LIKELIHOOD = "|likelihood"

Record = dict[str, float]
"""One question's numbers: `acc`, `acc_norm`, `exact_match`, `nll` in nats of the right answer, `bytes`, `words`."""


class PackedLM(HFLM):  # type: ignore[misc]
    """lm-eval's Hugging Face model with the same numbers at less work.

    Batches hold so many tokens instead of so many rows, requests that differ in their last token only share a row, and
    logits are made for the graded positions alone.
    """

    def __init__(self, folder: str, *, max_length: int, device: str, batch_tokens: int) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
        # Every training document began with <bos>, which a tokenizer trained here adds only when it is asked to.
        tokenizer = AutoTokenizer.from_pretrained(folder, add_bos_token=True)
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=_ROWS_GENERATED,
            max_length=max_length,
            add_bos_token=True,
        )
        self._batch_tokens = batch_tokens
        self.num_truncated = 0

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """The windows bring the first <bos> themselves: with the tokenizer's, it would be predicted from another."""
        self.add_bos_token = False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self.add_bos_token = True

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, override_bs: Any = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation after its context, and whether it is the greedy one."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            ids = [*context, *continuation]
            self.num_truncated += len(ids) > self.max_length + 1
            rows.setdefault(tuple(ids[-(self.max_length + 1) :][:-1]), []).append(number)
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        with torch.inference_mode():
            for batch in self._batches(sorted(rows, key=lambda ids: (-len(ids), ids))):
                asked = [(row, number) for row, ids in enumerate(batch) for number in rows[ids]]
                targets = [requests[number][2] for _, number in asked]
                found = self._grade(batch, [row for row, _ in asked], targets)
                for (_, number), answer in zip(asked, found, strict=True):
                    answers[number] = answer
        return answers

    def _batches(self, longest_first: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        batch: list[tuple[int, ...]] = []
        for ids in longest_first:
            if batch and len(batch[0]) * (len(batch) + 1) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(ids)
        if batch:
            yield batch

    def _grade(
        self, batch: Sequence[tuple[int, ...]], row_Q: Sequence[int], targets: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """Targets are the tokens after the last positions of their rows, as many as they are."""
        input_ids_BT = torch.zeros(len(batch), len(batch[0]), dtype=torch.int64)  # padded on the right: never seen
        for row, ids in enumerate(batch):
            input_ids_BT[row, : len(ids)] = torch.tensor(ids)
        input_ids_BT = input_ids_BT.to(self.device)
        hidden_BTD = self.model.get_decoder()(input_ids=input_ids_BT, use_cache=False).last_hidden_state
        place = [
            (request, row, len(batch[row]) - len(tokens) + offset, token)
            for request, (row, tokens) in enumerate(zip(row_Q, targets, strict=True))
            for offset, token in enumerate(tokens)
        ]
        request_G, row_G, position_G, target_G = torch.tensor(place, device=self.device).T
        likelihood_Q = torch.zeros(len(targets), dtype=torch.float64, device=self.device)
        is_greedy_Q = torch.ones(len(targets), dtype=torch.bool, device=self.device)
        chunk = max(1, _LOGITS_AT_ONCE // self.model.config.vocab_size)
        for part in torch.arange(len(place), device=self.device).split(chunk):
            logits_GV = self.model.lm_head(hidden_BTD[row_G[part], position_G[part]]).float()
            nll_G = cross_entropy(logits_GV, target_G[part], reduction="none").double()
            likelihood_Q.index_add_(0, request_G[part], -nll_G)
            is_greedy_Q[request_G[part[logits_GV.argmax(-1) != target_G[part]]]] = False
        return list(zip(likelihood_Q.tolist(), is_greedy_Q.tolist(), strict=True))


@dataclass
class Answers:
    """What one checkpoint made of one benchmark."""

    records: dict[str, Record] = field(default_factory=dict)
    """By the question's key."""
    num_truncated: int = 0
    """Requests that lost the beginning of their prompt."""


def ask(lm: PackedLM, asked: Asked) -> Answers:
    """Every question of a benchmark."""
    datasets.disable_progress_bars()
    tasks = load_own_task(asked.like) if asked.rows is None else _built_tasks(asked)
    for task in tasks.values():
        _set_shots(task, asked.num_fewshot)
    lm.num_truncated = 0
    chosen = _chosen(tasks, asked)
    found = evaluate(lm=lm, task_dict={"tasks": tasks}, samples=chosen, bootstrap_iters=0, log_samples=True)
    answers = Answers(num_truncated=lm.num_truncated)
    for name, samples in found["samples"].items():
        for sample in samples:
            key = sample["doc"].get("key") or f"{name}/{sample['doc_id']}"
            answers.records.setdefault(key, {}).update(_record(sample, only_nll=name.endswith(_LIKELIHOOD)))
    return answers


def _set_shots(task: Any, num_fewshot: int | None) -> None:
    if num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


# Tasks


def _chosen(tasks: Mapping[str, Any], asked: Asked) -> dict[str, list[int]] | None:
    """Documents of lm-eval's own tasks, drawn at random; each task of a group gives the same share."""
    if asked.rows is not None or asked.max_examples is None:
        return None
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    share = min(1.0, asked.max_examples / sum(sizes.values()))
    return {
        name: sorted(random.Random(asked.seed).sample(range(size), max(1, round(share * size))))  # noqa: S311
        for name, size in sizes.items()
    }


def _built_tasks(asked: Asked) -> dict[str, Any]:
    built_in = asked.built_in
    assert built_in is not None and asked.rows is not None
    tasks = {}
    for subject in sorted({subject_of(row, built_in) for row in asked.rows}):
        name = f"{asked.name}/{subject}" if subject else asked.name
        splits = {"test": asked.rows, "shots": asked.fewshot_rows}
        data = {
            split: datasets.Dataset.from_list(
                [built_in.prepare(row) | {"key": row["key"]} for row in rows if subject_of(row, built_in) == subject]
            )
            for split, rows in splits.items()
            if rows
        }
        tasks[name] = _task(name, built_in.task, data)
        if built_in.likelihood_task is not None:
            tasks[name + _LIKELIHOOD] = _task(name + _LIKELIHOOD, built_in.likelihood_task, data)
    return tasks


def _task(name: str, config: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
    shots = {"fewshot_split": "shots"} if "shots" in data else {}
    given = {"task": name, "custom_dataset": lambda **_: data, "test_split": "test", **config, **shots}
    return ConfigurableTask(config=given)


# Numbers


def _record(sample: Mapping[str, Any], *, only_nll: bool) -> Record:
    """What a question gave: lm-eval's metrics, and the likelihood of the right answer."""
    metrics = {} if only_nll else {name: sample[name] for name in sample["metrics"]}
    record = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    record.pop("perplexity", None)  # of a single answer, as a log-likelihood: kept as nll
    return record | _likelihood(sample)


def _likelihood(sample: Mapping[str, Any]) -> Record:
    doc, arguments, results = sample["doc"], sample["arguments"], [resps[0] for resps in sample["resps"]]
    if isinstance(results[0], float):  # a whole text
        text = arguments[0][0]
        return {"nll": -results[0], "bytes": len(text.encode()), "words": len(text.split())}
    if isinstance(results[0], str):  # what was generated
        return {}
    right = doc.get("graded", _right(sample, len(results)))
    if right is None:
        return {}
    return {"nll": -results[right][0], "bytes": len(arguments[right][1].encode())}


def _right(sample: Mapping[str, Any], num_results: int) -> int | None:
    """Which of the choices is right; a task in which choices come before the answer says it in its text."""
    if num_results == 1:
        return 0
    gold = sample["doc"].get("gold", sample["target"])
    return gold if isinstance(gold, int) else None
