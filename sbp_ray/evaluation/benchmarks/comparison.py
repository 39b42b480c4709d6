"""Public benchmarks of every model of a study: asked once, kept, and compared by question and by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EvalConfig, ForwardResources
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.benchmarks.measures import BySeed, benchmark_row
from sbp_ray.evaluation.benchmarks.question_sets import QuestionSet, choose_questions
from sbp_ray.evaluation.study import Study
from sbp_ray.evaluation.unseen import find_seen_questions
from sbp_ray.logs import Progress
from sbp_ray.shards import call_each

Answered = dict[str, Any]
"""`records` by question, and `num_truncated`."""


def compare_on_benchmarks(study: Study, store: Artifact) -> list[dict[str, Any]] | None:
    """A row for each benchmark of the settings, or None without any.

    Args:
        store: where answers are kept from one run of the command to the next.
    """
    settings = study.settings
    asked = choose_questions(settings)
    if not asked:
        return None
    models = {key: made[0].artifact for key, made in study.models.items() if len(made) == 1}  # no ensembles
    answers = ask_models(settings.eval, models, asked, store)
    seen = find_seen_questions(asked, _trained_on(study), settings.decontaminate.ngram_words, store)
    rows = []
    for questions in asked:
        found = answers[questions.name]
        by_arm: dict[str, BySeed] = {
            name: {seed: found[training.key]["records"] for seed, training in seeds.items()}
            for name, seeds in study.by_arm().items()
            if not any(training.members for training in seeds.values())
        }
        num_truncated = max(answered["num_truncated"] for answered in found.values())
        seed = settings.benchmarks.seed
        rows.append(benchmark_row(questions, by_arm, seen=seen[questions.name], num_truncated=num_truncated, seed=seed))
    return rows


def _trained_on(study: Study) -> list[Artifact]:
    """Every corpus and every synthetic text that some model read."""
    return [made.artifact for noun in ("corpus", "synthetic") for made, _ in study.users(noun)]


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
    require_checkpoints(models)
    names = {
        (questions.name, model): f"{model}-{questions.name}-{questions.fingerprint[:8]}.json"
        for questions in question_sets
        for model in models
    }
    todo = [
        (names[questions.name, model], models[model], number)
        for number, questions in enumerate(question_sets)
        for model in models
        if not store.exists(names[questions.name, model])
    ]
    progress = Progress("benchmarks", len(todo), "sets of answers")
    quiet = {"TQDM_DISABLE": "1"}  # lm-eval has a bar for everything
    answers = call_each(ask_model, todo, question_sets, cfg.resources, resources=cfg.resources, environment=quiet)
    for (name, *_), answered in answers:
        store.write_json(name, answered)
        progress.advance()
    return {q.name: {model: store.read_json(names[q.name, model]) for model in models} for q in question_sets}


def ask_model(
    call: tuple[str, Artifact, int], question_sets: Sequence[QuestionSet], resources: ForwardResources
) -> Answered:
    """One checkpoint, one benchmark. Runs in a process of its own."""
    import torch

    from sbp_ray.evaluation.benchmarks.harness import CheckpointLM, ask_questions

    _, trained, number = call
    questions = question_sets[number]
    if resources.num_threads:
        torch.set_num_threads(resources.num_threads)
    device, folder = "cuda" if resources.num_gpus else "cpu", str(trained.local_copy("model"))
    lm = CheckpointLM(folder, max_length=questions.max_length, device=device, batch_tokens=resources.batch_tokens)
    return ask_questions(lm, questions)
