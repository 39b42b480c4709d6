"""Public benchmarks of every model of a study: asked once, kept, and compared by question and by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import ForwardResources
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.benchmarks.measures import BySeed, benchmark_row
from sbp_ray.evaluation.benchmarks.question_sets import QuestionSet, choose_questions
from sbp_ray.evaluation.likelihood.checkpoints import score_models
from sbp_ray.evaluation.study import Study
from sbp_ray.evaluation.unseen import find_seen_questions

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
    answers = ask_models(study, asked, store)
    trained_on = [made.artifact for noun in ("corpus", "synthetic") for made, _ in study.users(noun)]
    seen = find_seen_questions(asked, trained_on, settings.decontaminate.ngram_words, store)
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


def ask_models(study: Study, question_sets: Sequence[QuestionSet], store: Artifact) -> dict[str, dict[str, Answered]]:
    """Answers by benchmark and model; what an earlier run asked is read from the store. Ensembles are not asked."""
    models = {key: nodes for key, nodes in study.models.items() if len(nodes) == 1}
    require_checkpoints({key: node.artifact for key, (node,) in models.items()})
    asked = {(number, key): nodes for number in range(len(question_sets)) for key, nodes in models.items()}
    marks = [f"{questions.name}-{questions.fingerprint[:8]}" for questions in question_sets]
    names = {(number, key): f"{key}-{marks[number]}.json" for number, key in asked}
    resources = study.settings.eval.resources
    quiet = {"TQDM_DISABLE": "1"}  # lm-eval has a bar for everything
    found = score_models(asked, names, store, ask_model, question_sets, resources=resources, environment=quiet)
    return {q.name: {key: found[number, key] for key in models} for number, q in enumerate(question_sets)}


def ask_model(
    named: tuple[tuple[int, str], Sequence[Artifact]],
    question_sets: Sequence[QuestionSet],
    resources: ForwardResources,
) -> Answered:
    """One checkpoint, one benchmark. Runs in a process of its own."""
    import torch

    from sbp_ray.evaluation.benchmarks.harness import CheckpointLM, ask_questions

    (number, _), (trained,) = named
    questions = question_sets[number]
    if resources.num_threads:
        torch.set_num_threads(resources.num_threads)
    device, folder = "cuda" if resources.num_gpus else "cpu", str(trained.local_copy("model"))
    lm = CheckpointLM(folder, max_length=questions.max_length, device=device, batch_tokens=resources.batch_tokens)
    return ask_questions(lm, questions)
