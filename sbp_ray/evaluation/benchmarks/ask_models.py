"""Every checkpoint asked every benchmark, as one Ray task for each pair; what is answered is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EvalConfig, Resources
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.benchmarks.question_sets import QuestionSet
from sbp_ray.evaluation.tasks import results
from sbp_ray.logs import Progress

Answered = dict[str, Any]
"""`records` by question, and `num_truncated`."""


def require_checkpoints(models: Mapping[str, Artifact]) -> None:
    """Refuse models whose files are gone, before any is asked.

    Raises:
        SbpError: names the first.
    """
    for name, trained in models.items():
        if not trained.exists("model/config.json"):
            raise SbpError(
                f"{trained.path('model')} holds no checkpoint of {name}, although its training is finished: delete "
                f"{trained.url} and run the training again, or leave the arm out"
            )


def ask_models(
    cfg: EvalConfig, models: Mapping[str, Artifact], question_sets: Sequence[QuestionSet], store: Artifact
) -> dict[str, dict[str, Answered]]:
    """Answers by benchmark and model; what an earlier run asked is read from the store.

    Args:
        models: training artifacts, by names that are unique for what they were made from.
    """
    import ray

    require_checkpoints(models)
    names = {
        (benchmark.name, model): f"{model}-{benchmark.name}-{benchmark.fingerprint[:8]}.json"
        for benchmark in question_sets
        for model in models
    }
    todo = [(b, model) for b in question_sets for model in models if not store.exists(names[b.name, model])]
    resources = cfg.resources
    quiet = {"env_vars": {"TQDM_DISABLE": "1"}}  # lm-eval has a bar for everything
    remote = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, runtime_env=quiet)(ask_model)
    put = {benchmark.name: ray.put(benchmark) for benchmark in question_sets}
    progress = Progress("benchmarks", len(todo), "sets of answers")
    calls = [
        (
            names[b.name, model],
            partial(remote.remote, models[model], put[b.name], cfg.resources.batch_tokens, resources),
        )
        for b, model in todo
    ]
    for name, answered in results(calls, at_once=resources.num_workers):
        store.write_json(name, answered)
        progress.advance()
    return {b.name: {model: store.read_json(names[b.name, model]) for model in models} for b in question_sets}


def ask_model(trained: Artifact, questions: QuestionSet, batch_tokens: int, resources: Resources) -> Answered:
    """One checkpoint, one benchmark. Runs in a process of its own."""
    import torch

    from sbp_ray.evaluation.benchmarks.harness import CheckpointLM, ask_questions

    if resources.num_threads:
        torch.set_num_threads(resources.num_threads)
    device = "cuda" if resources.num_gpus else "cpu"
    folder = str(trained.local_copy("model"))
    lm = CheckpointLM(folder, max_length=questions.max_length, device=device, batch_tokens=batch_tokens)
    return ask_questions(lm, questions)
