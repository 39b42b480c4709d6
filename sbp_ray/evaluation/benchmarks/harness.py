"""One checkpoint asked one benchmark by lm-eval. Imports it, which takes seconds: import this module late."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from sbp_ray.errors import SbpError
from sbp_ray.evaluation.benchmarks.lm_eval_tasks import LIKELIHOOD, build_tasks, load_own_task
from sbp_ray.evaluation.benchmarks.question_sets import QuestionSet
from sbp_ray.scoring import load_float32

# The seed is lm-eval's own default.
_FEWSHOT_SEED = 1234

Record = dict[str, float]
"""One question's numbers: `acc`, `acc_norm`, `exact_match`, `nll` in nats of the right answer, `bytes`, `words`."""


class CheckpointLM(HFLM):  # type: ignore[misc]
    """lm-eval's Hugging Face model on a checkpoint of ours, which counts the prompts that lose their beginning.

    A model of our own was 1.3 times as fast on a CPU (150 questions each of arc_easy, hellaswag, lambada, mmlu and
    winogrande), by batches of so many tokens and logits of the scored ones only: not worth its 110 lines.
    """

    def __init__(self, folder: str, *, max_length: int, device: str, batch_tokens: int) -> None:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant
        model = load_float32(folder, device)
        # Every training document began with <bos>, which a tokenizer trained here adds only when it is asked to.
        super().__init__(
            pretrained=model,
            tokenizer=AutoTokenizer.from_pretrained(folder, add_bos_token=True),
            batch_size=max(1, batch_tokens // max_length),
            max_length=max_length,
            add_bos_token=True,
        )
        self.num_truncated = 0

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """Without a bar in the log."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """The windows bring the first <bos> themselves: with the tokenizer's, it would be predicted from another.

        Nor do windows share a row: where two read the same tokens, lm-eval scores as many of them for both.
        """
        self.add_bos_token = self.logits_cache = False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self.add_bos_token = self.logits_cache = True

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, override_bs: Any = None
    ) -> list[tuple[float, bool]]:
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise SbpError(
                    f"benchmarks: an answer of {len(continuation)} tokens does not fit into a context of "
                    f"{self.max_length}: raise benchmarks.context_tokens, or leave the benchmark out"
                )
            self.num_truncated += len(context) + len(continuation) > self.max_length + 1
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, True, override_bs)
        return found


def ask_questions(lm: CheckpointLM, questions: QuestionSet) -> dict[str, Any]:
    """Every question of a benchmark: `records` by the question's key, and `num_truncated`, requests whose prompt lost
    its beginning."""
    if questions.rows is None:
        tasks = load_own_task(questions.like)
    else:
        tasks = build_tasks(questions.like, questions.rows, questions.fewshot_rows)
    for task in tasks.values():
        _set_shots(task, questions.num_fewshot)
    lm.num_truncated = 0
    chosen = _choose_documents(tasks, questions)
    found = evaluate(lm=lm, task_dict={"tasks": tasks}, samples=chosen, bootstrap_iters=0, log_samples=True)
    records: dict[str, Record] = {}
    for name, samples in found["samples"].items():
        for sample in samples:
            key = sample["doc"].get("key") or f"{name}/{sample['doc_id']}"
            record = _likelihood(tasks[name], sample)
            if not name.endswith(LIKELIHOOD):
                record |= _metrics(sample)
            records.setdefault(key, {}).update(record)
    return {"records": records, "num_truncated": lm.num_truncated}


def _set_shots(task: Any, num_fewshot: int | None) -> None:
    if num_fewshot is not None:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _choose_documents(tasks: Mapping[str, Any], questions: QuestionSet) -> dict[str, list[int]] | None:
    """Documents of lm-eval's own data, chosen at random; each task of a group gives the same share."""
    if questions.rows is not None or questions.max_examples is None:
        return None
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    share = min(1.0, questions.max_examples / sum(sizes.values()))
    return {
        name: sorted(random.Random(questions.seed).sample(range(size), max(1, round(share * size))))  # noqa: S311
        for name, size in sizes.items()
    }


def _metrics(sample: Mapping[str, Any]) -> Record:
    """lm-eval's own; not the perplexity of a single answer, which is a log-likelihood there and kept as `nll`."""
    found = {name: sample[name] for name in sample["metrics"] if name != "perplexity"}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _likelihood(task: Any, sample: Mapping[str, Any]) -> Record:
    """Of the right answer; of a whole text."""
    arguments, results = sample["arguments"], [resps[0] for resps in sample["resps"]]
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        text = arguments[0][0]
        return {"nll": -results[0], "bytes": len(text.encode()), "words": len(text.split())}
    if task.OUTPUT_TYPE == "generate_until":
        return {}
    right = _right(task, sample)
    return {} if right is None else {"nll": -results[right][0], "bytes": len(arguments[right][1].encode())}


def _right(task: Any, sample: Mapping[str, Any]) -> int | None:
    """Which of the continuations is right; where several are, the one that the first answer begins with."""
    doc, continuations = sample["doc"], [argument[1] for argument in sample["arguments"]]
    if len(continuations) == 1:
        return 0
    if "scored" in doc:
        return next(i for i, text in enumerate(continuations) if f" {doc['scored']}".startswith(text))
    gold = task.doc_to_text(doc) if task.multiple_input else sample["target"]
    return gold if isinstance(gold, int) else None
