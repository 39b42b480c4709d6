"""Score every model on the same texts: held-out documents, and the corpus's own questions, closed book."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import numpy as np

from sbp_ray.artifacts import Artifact, fingerprint_of
from sbp_ray.config import Config, EvalConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.likelihood.checkpoints import Scores, Units, document_windows, score_checkpoint, score_models
from sbp_ray.evaluation.likelihood.closed_book import (
    Question,
    check_questions,
    draw_questions,
    iter_questions,
    question_example,
)
from sbp_ray.evaluation.study import Study
from sbp_ray.evaluation.text_quality.samples import sample_rows
from sbp_ray.schema import Split
from sbp_ray.steps import call_each
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

HELD_OUT = "held_out"
ANSWERS: dict[Split, str] = {"train": "answers_read", "validation": "answers_held_out"}
"""Sets of questions: on documents' groups that were read, and on those of which all documents are held out. What was
read comes first."""
_NOT_OF_SCORES = {"resources", "duplicate_sample", "truth"}
"""Settings of `eval` that change no score."""


@dataclass(frozen=True)
class TextSet:
    """Documents or questions on which all models are scored, the units of a set."""

    units: Units
    num_tokens: np.ndarray
    """Supervised tokens of each unit."""
    num_bytes: np.ndarray
    groups: list[str]
    """Of each unit."""

    @classmethod
    def of(cls, units: Units, texts: Iterable[str], groups: Iterable[str]) -> TextSet:
        """`texts`: what is supervised of each unit."""
        num_tokens = [sum(example.num_supervised for example in unit) for unit in units]
        num_bytes = [len(text.encode()) for text in texts]
        return cls(units, np.array(num_tokens, np.int64), np.array(num_bytes, np.int64), list(groups))

    def sizes(self, unit: str) -> np.ndarray:
        """Of each unit, in tokens or in bytes."""
        return self.num_tokens if unit == "token" else self.num_bytes


@dataclass(frozen=True)
class Texts:
    """What all models are scored on."""

    sets: dict[str, TextSet]
    unknown_questions: int = 0
    """Left out, since the corpus lacks their group."""
    fingerprint: str = ""
    held_out: tuple[str, ...] = ()
    """The documents themselves, to look for in what was trained on."""


def choose_texts(settings: Config, corpus: Artifact) -> Texts:
    """Draw held-out documents and questions, the same for every model; a set that would be empty is left out.

    Raises:
        SbpError: no question is about a group of the corpus.
    """
    cfg, seq_len = settings.eval, settings.pretrain.seq_len
    columns = ["group", "text", "input_ids"]
    limit = cfg.max_validation_documents
    rows = sample_rows(corpus, "validation", key=["doc_id"], columns=columns, limit=limit, seed=cfg.seed)
    held_out = tuple(row["text"] for row in rows)
    asked, unknown = _choose_questions(cfg, corpus)
    tokenizer = load_tokenizer(corpus.local_copy("tokenizer"))
    special = special_ids(tokenizer)
    windows = [document_windows(row["input_ids"], special, seq_len) for row in rows]
    sets = {HELD_OUT: TextSet.of(windows, held_out, (row["group"] for row in rows))}
    for split, questions in asked.items():
        examples = [[question_example(question, tokenizer, special)] for question in questions]
        answers, groups = (q.continuation for q in questions), (q.group for q in questions)
        sets[ANSWERS[split]] = TextSet.of(examples, answers, groups)
    how = cfg.model_dump(mode="json", exclude=_NOT_OF_SCORES)
    recipe = {"eval": how, "corpus": corpus.fingerprint(), "seq_len": seq_len}
    if asked:  # the settings name the file alone, whose questions may be others tomorrow
        recipe |= {"asked": {split: [astuple(question) for question in own] for split, own in asked.items()}}
    return Texts({name: one for name, one in sets.items() if one.units}, unknown, fingerprint_of(recipe), held_out)


def _choose_questions(cfg: EvalConfig, corpus: Artifact) -> tuple[dict[Split, list[Question]], int]:
    """Questions for each split, and how many of the file ask about groups that the corpus lacks."""
    groups = check_questions(cfg)
    if groups is None:
        return {}, 0
    # A group of both splits, which `ingest.split_by=document` leaves, was read: its answers are not held out.
    split_of = {group: split for split in reversed(ANSWERS) for group in find_groups(corpus, split, groups)}
    if not split_of:
        raise SbpError(
            f"eval.questions={cfg.questions}: no {cfg.question_group_column} there, such as {min(groups)!r}, is a "
            "group of the corpus: make eval.question_group_column and ingest.group_column name columns that match"
        )
    return draw_questions(iter_questions(cfg), split_of, limit=cfg.max_questions, seed=cfg.seed)


def find_groups(corpus: Artifact, split: Split, groups: set[str]) -> set[str]:
    """Those of the groups that the split has."""
    found = call_each(_find_in_shard, corpus.files(split, ".parquet"), corpus, groups)
    return set().union(*(there for _, there in found))


def _find_in_shard(name: str, corpus: Artifact, groups: set[str]) -> set[str]:
    """All that comes back of a shard: its other groups, all shards together, would not fit into the driver."""
    return groups & groups_of_shard(name, corpus)


def groups_of_shard(name: str, corpus: Artifact) -> set[str]:
    """Every group of one shard."""
    return set(corpus.read_table(name, columns=["group"])["group"].unique().to_pylist())


def score_study(study: Study, store: Artifact) -> tuple[Texts, dict[str, Scores]]:
    """Choose the texts, and score each model on them: NLLs by the model's key.

    Args:
        store: keeps the scores: what an earlier run of the command scored is read.
    """
    texts = choose_texts(study.settings, study.corpus)
    names = {key: f"{key}-{texts.fingerprint[:8]}.json" for key in study.models}
    units = {name: one.units for name, one in texts.sets.items()}
    resources = study.settings.eval.resources
    stored = score_models(study.models, names, store, score_checkpoint, units, resources=resources)
    return texts, {
        key: Scores({name: np.array(nll_N, np.float64) for name, nll_N in found["nll"].items()}, found["parameters"])
        for key, found in stored.items()
    }
