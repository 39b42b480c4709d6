"""Facts, measured: what each arm recalls, its loss by what tokens say, and what synthetic texts say that is true."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.bios.statements import StatementReader
from sbp_ray.bios.truth import Truth, read_truth
from sbp_ray.evaluation.facts.known_text import MOST_TIMES, KnownText, read_known_text
from sbp_ray.evaluation.facts.recall_prompts import STOP, VALUE
from sbp_ray.evaluation.facts.scored_facts import ClassScores, FactTexts, choose_fact_texts, score_fact_texts
from sbp_ray.evaluation.facts.text_facts import TextCounts, count_text, share_rows
from sbp_ray.evaluation.facts.token_classes import CLASSES, VALUES
from sbp_ray.evaluation.likelihood.arm_losses import measure_arms
from sbp_ray.evaluation.study import Study
from sbp_ray.evaluation.text_quality.beside_real import name_of_text
from sbp_ray.evaluation.text_quality.corpus_scan import fetch_documents
from sbp_ray.evaluation.text_quality.samples import REAL_HELD_OUT, sample_real, sample_synthetic
from sbp_ray.steps import call_each

# N = texts


def measure_facts(study: Study, store: Artifact) -> dict[str, Any] | None:
    """Everything that the truth can tell; None where none is given.

    Returns:
        entities: of the world; facts: how many are stated never, once, twice and more often in the training text;
        arms: by name, each measure as `measure_arms` gives it; sizes: of each measure, what it is taken over; texts: of
        each synthesizer, and of held-out text, what `text_facts.share_rows` counts.

    Raises:
        SbpError: `eval.truth` is not the truth of this corpus.
    """
    if study.settings.eval.truth is None:
        return None
    truth = read_truth(study.settings.eval.truth)
    known = read_known_text(study.corpus, truth)
    texts = choose_fact_texts(study.settings, study.corpus, truth, known)
    scores = score_fact_texts(study, texts, store)
    by_times = Counter(known.times(fact) for fact in truth.facts())
    measures = _losses_by_class(texts, scores) | _recalled(texts, known, scores)
    return {
        "entities": len(truth.entities),
        "facts": [by_times[times] for times in range(MOST_TIMES + 1)],
        "sizes": {name: int(sizes_N.sum()) for name, (_, sizes_N, _) in measures.items()},
        "arms": _arm_rows(study, measures),
        "texts": _text_rows(study, truth, known),
    }


Measure = tuple[Mapping[str, NDArray[np.float64]], NDArray[np.int64], Sequence[str]]
"""By model the loss of each unit; the sizes that the losses are divided by; the units' groups."""


def _losses_by_class(texts: FactTexts, scores: Mapping[str, ClassScores]) -> dict[str, Measure]:
    """Nats a token of each class of held-out text, and nats a value."""
    if not texts.values:
        return {}  # no document is held out
    here, counts_NC = texts.documents, texts.count_classes()
    values_NV, groups = np.stack(texts.values), texts.groups[here]
    found: dict[str, Measure] = {}
    for number, name in enumerate(CLASSES):
        nll = {key: one.nll_NC[here, number] for key, one in scores.items()}
        found[f"{name}_nats_per_token"] = nll, counts_NC[here, number], groups
        if name in VALUES:
            found[f"{name}_nats_per_value"] = nll, values_NV[:, number], groups
    return {name: measure for name, measure in found.items() if measure[1].sum()}


def _recalled(texts: FactTexts, known: KnownText, scores: Mapping[str, ClassScores]) -> dict[str, Measure]:
    """Of each kind of prompt, by how often the facts are stated: the share that is not recalled, and nats a value."""
    num_supervised_N = texts.count_classes()[:, [VALUE, STOP]].sum(axis=1)
    found: dict[str, Measure] = {}
    for kind, prompts in texts.prompts.items():
        here = np.arange(len(texts.examples))[texts.prompts_of(kind)]
        times_N = np.array([known.times(prompt.fact) for prompt in prompts], np.int64)
        for times in range(MOST_TIMES + 1):
            chosen = here[times_N == times]
            if not len(chosen):
                continue
            missed = {
                key: (one.top_NC[chosen][:, [VALUE, STOP]].sum(axis=1) < num_supervised_N[chosen]).astype(np.float64)
                for key, one in scores.items()
            }
            nats = {key: one.nll_NC[chosen, VALUE] for key, one in scores.items()}
            sizes_N, groups = np.ones(len(chosen), np.int64), [texts.groups[place] for place in chosen]
            found[f"{kind}_{times}_missed"] = missed, sizes_N, groups
            found[f"{kind}_{times}_nats_per_value"] = nats, sizes_N, groups
    return found


def _arm_rows(study: Study, measures: Mapping[str, Measure]) -> list[dict[str, Any]]:
    found = {name: measure_arms(study, *measure) for name, measure in measures.items()}
    return [
        {"name": arm, "measures": {name: of_arms[arm] for name, of_arms in found.items()}} for arm in study.by_arm()
    ]


# What texts say


def _text_rows(study: Study, truth: Truth, known: KnownText) -> list[dict[str, Any]]:
    """A row for each synthesizer, the texts of all its seeds together, and one for held-out text."""
    cfg = study.settings.eval
    calls: list[tuple[str, list[_Beside]]] = []
    for made, trained in study.users("synthetic", read_it=True):
        rows = sample_synthetic(cfg, made.artifact).rows
        d1 = fetch_documents(made.inputs["corpus"].artifact, {row["d1_id"] for row in rows})
        texts = [(row["text"], d1[row["d1_id"]]["text"], d1[row["d1_id"]]["group"]) for row in rows]
        calls.append((name_of_text(trained), texts))
    real = sample_real(cfg, study.corpus)[REAL_HELD_OUT].rows
    calls.append((REAL_HELD_OUT, [(row["text"], None, row["group"]) for row in real]))
    counted: dict[str, list[TextCounts]] = defaultdict(list)
    groups: dict[str, list[str]] = defaultdict(list)
    for (name, texts), found in call_each(_count_texts, calls, truth, known):
        counted[name] += found
        groups[name] += [group for _, _, group in texts]
    return [
        {"name": name, **share_rows(counted[name], groups[name], has_d1=name != REAL_HELD_OUT, seed=cfg.seed)}
        for name in dict.fromkeys(name for name, _ in calls)
    ]


_Beside = tuple[str, str | None, str]
"""A text, its d1, and the entity that it should be about."""


def _count_texts(named: tuple[str, Sequence[_Beside]], truth: Truth, known: KnownText) -> list[TextCounts]:
    reader = StatementReader(truth)
    return [
        count_text(reader.read(text), None if d1 is None else reader.read(d1), known, reader)
        for text, d1, _ in named[1]
    ]
