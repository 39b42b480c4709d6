"""Score every model on held-out documents, token by token, and on prompts for facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact, fingerprint_of
from sbp_ray.bios.statements import StatementReader
from sbp_ray.bios.truth import Truth
from sbp_ray.config import Config, ForwardResources
from sbp_ray.evaluation.facts.known_text import KnownText
from sbp_ray.evaluation.facts.recall_prompts import Prompt, choose_prompts, prompt_example
from sbp_ray.evaluation.facts.token_classes import CLASSES, VALUES, classify_tokens, token_spans
from sbp_ray.evaluation.likelihood.checkpoints import document_windows, score_models
from sbp_ray.evaluation.study import Study
from sbp_ray.evaluation.text_quality.samples import sample_rows
from sbp_ray.text.pair_format import Example
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

# N = texts, S = supervised tokens of a text, C = classes of tokens


@dataclass
class FactTexts:
    """What all models are scored on: windows of held-out documents, then prompts of each kind."""

    examples: list[Example] = field(default_factory=list)
    classes: list[NDArray[np.uint8]] = field(default_factory=list)
    """Of each text its supervised tokens' classes: of documents those of `token_classes`, of prompts those of `recall`.
    """
    groups: list[str] = field(default_factory=list)
    """Of each text the entity that it is about, as the corpus or the prompt names it."""
    values: list[NDArray[np.int64]] = field(default_factory=list)
    """How many values a document holds, by how often their facts are stated: with its first window."""
    prompts: dict[str, list[Prompt]] = field(default_factory=dict)

    @property
    def documents(self) -> slice:
        """Which texts are windows of documents."""
        return slice(0, len(self.values))

    def prompts_of(self, kind: str) -> slice:
        """Which texts are prompts of the kind."""
        start = len(self.values)
        for name, prompts in self.prompts.items():
            if name == kind:
                return slice(start, start + len(prompts))
            start += len(prompts)
        raise ValueError(f"there are prompts of {', '.join(self.prompts)}, and none of {kind}")

    def count_classes(self) -> NDArray[np.int64]:
        """Supervised tokens of each text by class."""
        return np.stack([np.bincount(classes_S, minlength=len(CLASSES)) for classes_S in self.classes])


class ClassScores(NamedTuple):
    """What one model makes of the texts."""

    nll_NC: NDArray[np.float64]
    """Nats over the tokens of each class."""
    top_NC: NDArray[np.int64]
    """How many of these tokens the model holds for the likeliest."""


def choose_fact_texts(settings: Config, corpus: Artifact, truth: Truth, known: KnownText) -> FactTexts:
    """The held-out documents that likelihood is measured on, and prompts for facts."""
    cfg, texts = settings.eval, FactTexts()
    tokenizer = load_tokenizer(corpus.local_copy("tokenizer"))
    special, reader = special_ids(tokenizer), StatementReader(truth)
    rows = sample_rows(
        corpus,
        "validation",
        key=["doc_id"],
        columns=["doc_id", "group", "text", "input_ids"],
        limit=cfg.max_validation_documents,
        seed=cfg.seed,
    )
    for row in rows:
        reading, spans = reader.read(row["text"]), token_spans(tokenizer, row["text"])
        assert len(spans) == len(row["input_ids"]), "the tokenizer is not that of the documents"
        classes = iter([*classify_tokens(row["text"], spans, reading, known), len(CLASSES) - 1])  # <eos> says nothing
        values = np.zeros(len(VALUES), np.int64)
        np.add.at(values, [known.times(statement.fact) for statement in reading.statements], 1)
        for window in document_windows(row["input_ids"], special, settings.pretrain.seq_len):
            texts.examples.append(window)
            texts.classes.append(np.array([next(classes) for _ in range(window.num_supervised)], np.uint8))
            texts.values.append(values)
            texts.groups.append(row["group"])
            values = np.zeros_like(values)
    texts.prompts = choose_prompts(truth, known, limit=cfg.max_questions, seed=cfg.seed)
    for prompt in (prompt for prompts in texts.prompts.values() for prompt in prompts):
        example, classes_S = prompt_example(prompt, tokenizer, special)
        texts.examples.append(example)
        texts.classes.append(classes_S)
        texts.groups.append(prompt.fact.entity)
    return texts


def score_fact_texts(study: Study, texts: FactTexts, store: Artifact) -> dict[str, ClassScores]:
    """Score each model of the study: by its key.

    Args:
        store: keeps the scores: what an earlier run of the command scored is read.
    """
    of_texts = [[example.input_ids.tolist(), classes.tolist()] for example, classes in
                zip(texts.examples, texts.classes, strict=True)]  # fmt: skip
    mark = fingerprint_of({"texts": of_texts})[:8]
    names = {key: f"facts-{key}-{mark}.json" for key in study.models}
    resources = study.settings.eval.resources
    stored = score_models(study.models, names, store, score_facts, texts.examples, texts.classes, resources=resources)
    return {
        key: ClassScores(np.array(found["nll"], np.float64), np.array(found["top"], np.int64))
        for key, found in stored.items()
    }


def score_facts(
    named: tuple[str, Sequence[Artifact]],
    examples: Sequence[Example],
    classes: Sequence[NDArray[np.uint8]],
    resources: ForwardResources,
) -> dict[str, Any]:
    """Load `model/` of a training artifact, or of an ensemble's, and score every text in float32. Runs in a process of
    its own."""
    from sbp_ray.scoring import load_models, score_tokens

    model = load_models(named[1], resources)
    found = score_tokens(model, examples, batch_tokens=resources.batch_tokens)
    each = list(zip(classes, found, strict=True))
    return {
        "nll": [np.bincount(classes_S, one.nll_S, len(CLASSES)).tolist() for classes_S, one in each],
        "top": [np.bincount(classes_S, one.is_top_S, len(CLASSES)).tolist() for classes_S, one in each],
    }
