"""Score every model of the grid on the same texts: held-out documents, and the corpus's own questions, closed book."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbp_ray.artifacts import Artifact, fingerprint_of
from sbp_ray.config import Config, EvalConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.arms import Scores, TextSets, document_windows, score_checkpoint
from sbp_ray.evaluation.comparison import HELD_OUT, graded_tokens, num_bytes
from sbp_ray.evaluation.questions import check_questions, draw_questions, iter_questions, question_example
from sbp_ray.evaluation.text_quality.sampling import sample_rows
from sbp_ray.experiment.arms import BASELINE
from sbp_ray.experiment.grid import Grid, Node, Training
from sbp_ray.experiment.settings import ExperimentConfig
from sbp_ray.experiment.unseen import scan_groups
from sbp_ray.metrics import ray_is_running
from sbp_ray.schema import SPLITS, Split
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

logger = logging.getLogger(__name__)

ANSWERS: dict[Split, str] = {"train": "answers_read", "validation": "answers_held_out"}
"""Sets of questions: on documents' groups that were read, and on held-out ones."""

_NOT_OF_SCORES = {"resources", "batch_tokens", "duplicate_sample"}
"""Settings of `eval` that change no score."""


@dataclass(frozen=True)
class Texts:
    """What all models are scored on."""

    sets: TextSets
    num_tokens: dict[str, np.ndarray]
    """Graded tokens of each unit of a set."""
    num_bytes: dict[str, np.ndarray]
    unknown_questions: int
    """Left out, since the corpus lacks their group."""
    fingerprint: str
    held_out: tuple[str, ...] = ()
    """The documents themselves, to look for in what was trained on."""


def choose_texts(settings: Config, corpus: Artifact) -> Texts:
    """Draw held-out documents and questions, the same for every model.

    Raises:
        SbpError: the corpus holds nothing out, or no question is about a group of it.
    """
    cfg = settings.eval
    rows = sample_rows(
        corpus,
        "validation",
        key=["doc_id"],
        columns=["doc_id", "text", "input_ids"],
        limit=cfg.max_validation_documents,
        seed=cfg.seed,
    )
    if not rows:
        raise SbpError("the corpus holds no documents out, on which the arms could be compared: raise validation_share")
    tokenizer = load_tokenizer(corpus.local_copy("tokenizer"))
    special = special_ids(tokenizer)
    sets: TextSets = {HELD_OUT: [document_windows(r["input_ids"], special, settings.pretrain.seq_len) for r in rows]}
    sizes = {HELD_OUT: num_bytes([row["text"] for row in rows])}
    unknown = 0
    if cfg.questions is not None:
        split_of = _splits_of_groups(cfg, corpus)
        asked, unknown = draw_questions(iter_questions(cfg), split_of, limit=cfg.max_questions, seed=cfg.seed)
        for split, name in ANSWERS.items():
            if asked[split]:
                sets[name] = [[question_example(question, tokenizer, special)] for question in asked[split]]
                sizes[name] = num_bytes([question.continuation for question in asked[split]])
    how = cfg.model_dump(mode="json", exclude=_NOT_OF_SCORES)
    fingerprint = fingerprint_of({"eval": how, "corpus": corpus.fingerprint(), "seq_len": settings.pretrain.seq_len})
    graded = {name: graded_tokens(sets, name) for name in sets}
    return Texts(sets, graded, sizes, unknown, fingerprint, tuple(row["text"] for row in rows))


def _splits_of_groups(cfg: EvalConfig, corpus: Artifact) -> dict[str, Split]:
    groups = check_questions(cfg) or set()
    found: dict[str, Split] = {}
    for split in SPLITS:
        found |= dict.fromkeys(scan_groups(corpus, split, groups), split)
    if not found:
        raise SbpError(
            f"eval.questions={cfg.questions}: no {cfg.question_group_column} there is a group of the corpus: make "
            "eval.question_group_column and ingest.group_column name columns that match"
        )
    return found


def score_trainings(
    experiment: ExperimentConfig, grid: Grid, done: Sequence[Training]
) -> tuple[Texts, dict[str, Scores]]:
    """Choose the texts, and score each finished training on them: NLLs by the key of the model.

    Args:
        done: repetition's among them.
    """
    settings = experiment.base_config()
    base = next(grid.nodes[training.model] for training in done if training.arm == BASELINE)
    texts = choose_texts(settings, grid.input_of(base, "corpus").artifact)
    nodes = list({training.model: grid.nodes[training.model] for training in done}.values())
    return texts, score_models(settings.eval, nodes, texts, Artifact("scores", f"{experiment.run_dir}/scores"))


def score_models(cfg: EvalConfig, nodes: Sequence[Node], texts: Texts, store: Artifact) -> dict[str, Scores]:
    """NLL of every unit under every model, by the model's key; what an earlier run scored is read."""
    names = {node.key: f"{node.key}-{texts.fingerprint[:8]}.json" for node in nodes}
    todo = [node for node in nodes if not store.exists(names[node.key])]
    for node, found in _scored(cfg, todo, texts.sets):
        nll = {name: nll_N.tolist() for name, nll_N in found.nll.items()}
        store.write_json(names[node.key], {"nll": nll, "parameters": found.num_parameters})
        logger.info(f"experiment | {node.key} | scored")
    return {key: _scores(store.read_json(name)) for key, name in names.items()}


def _scored(cfg: EvalConfig, todo: list[Node], sets: TextSets) -> Iterator[tuple[Node, Scores]]:
    """As many at once as `cfg.resources` allow; one after the other, here, where there is no Ray."""
    options: dict[str, Any] = {"batch_tokens": cfg.batch_tokens, "resources": cfg.resources}
    if not ray_is_running():
        yield from ((node, score_checkpoint(node.artifact, sets, name=node.key, **options)) for node in todo)
        return
    import ray

    resources = cfg.resources
    score = ray.remote(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus)(score_checkpoint)
    shared, running = ray.put(sets), dict[Any, Node]()
    waiting = iter(todo)
    while True:
        for node in itertools.islice(waiting, resources.num_workers - len(running)):
            running[score.remote(node.artifact, shared, name=node.key, **options)] = node
        if not running:
            return
        [ready], _ = ray.wait(list(running), num_returns=1)
        yield running.pop(ready), ray.get(ready)


def _scores(stored: Mapping[str, Any]) -> Scores:
    return Scores({name: np.array(nll, np.float64) for name, nll in stored["nll"].items()}, stored["parameters"])
