"""everything -> report: what both arms learned, what the synthetic text is like, and what the run cost."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from sbp_ray import metrics
from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config, EvalConfig, Resources
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.arms import Scores, TextSets, document_windows, score_checkpoint
from sbp_ray.evaluation.comparison import ARMS, HELD_OUT, answer_table, held_out_table
from sbp_ray.evaluation.flow import loss_curve, pair_facts, scale_facts, stage_rows
from sbp_ray.evaluation.mining import guide_ids, mining_facts, read_guide
from sbp_ray.evaluation.novelty import ngram_table
from sbp_ray.evaluation.quality import quality_table
from sbp_ray.evaluation.questions import Question, check_questions, draw_questions, iter_questions, question_example
from sbp_ray.evaluation.samples import Row, Samples, draw_samples
from sbp_ray.evaluation.scan import Scan, read_vectors, scan_shard
from sbp_ray.logs import Progress
from sbp_ray.report.page import render_page
from sbp_ray.report.summary import render_summary
from sbp_ray.schema import SPLITS, Split, shard_of
from sbp_ray.shards import shard_name
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

logger = logging.getLogger(__name__)

_SCANS_AT_ONCE = 64  # shards whose results are not yet taken in; bounds the object store, not the cluster
_EMBED_ROWS = 256  # between two lines of progress; batches are formed within them
_SHOWN_CHARS = 2000  # of a sample in the report


def evaluate_run(
    cfg: EvalConfig, *, artifacts: Mapping[str, Artifact], settings: Config, out: Artifact
) -> dict[str, Any]:
    """Measure the run and write `report.json`, `report.html` and `summary.txt`.

    Args:
        artifacts: every artifact of the run by its noun.
        settings: the whole config: the embedder, the context length, and for the page.

    Returns:
        The numbers at the top of the report.

    Raises:
        SbpError: the question file is missing, malformed, or about other articles than the corpus.
    """
    asked_groups = check_questions(cfg)
    samples = draw_samples(cfg, artifacts)
    guide = read_guide(artifacts["pairs"])
    scans = _scan_corpus(artifacts["corpus"], samples, guide_ids(guide), asked_groups or set())
    questions, num_unknown = _choose_questions(cfg, scans)
    texts = _texts_to_score(artifacts["corpus"], settings, samples, questions)
    scores, vectors = _score_and_embed(cfg, artifacts, settings, samples, texts)
    curves = {name: loss_curve(artifacts[key]) for name, key in {**ARMS, "synthesizer": "synthesizer"}.items()}
    held_out_texts = [row["text"] for row in samples.validation]
    report = {
        "scale": scale_facts(artifacts, curves, scores["sbp"].num_parameters, scans["train"]),
        "held_out": held_out_table(held_out_texts, texts, scores, seed=cfg.seed),
        "questions": answer_table(questions, texts, scores, num_unknown=num_unknown, seed=cfg.seed)
        if questions
        else None,
        "pairs": pair_facts(artifacts),
        "mining": mining_facts(guide, settings.pair, artifacts["neighbors"], scans["train"].documents),
        "quality": quality_table(
            samples, scans["train"], vectors, shingle_tokens=settings.embed.shingle_tokens, seed=cfg.seed
        ),
        "curves": curves,
        "flow": stage_rows(artifacts),
        "samples": _shown(samples.synthetic[: cfg.num_samples], scans["train"].documents),
        "settings": settings.model_dump(mode="json"),
    }
    out.write_json("report.json", report)
    out.write_bytes("report.html", render_page(report).encode())
    out.write_bytes("summary.txt", render_summary(report).encode())
    return {
        "held_out": report["held_out"],
        "questions": report["questions"],
        "drops": {"question_about_unknown_group": num_unknown} if num_unknown else {},
    }


def _shown(synthetic: Iterable[Row], documents: Mapping[str, Row]) -> list[dict[str, str]]:
    """Synthetic documents beside their d1: the first of the random draw, not chosen by looks."""
    return [
        {"group": d1["group"], "d1_id": d1["doc_id"], "d1": _cut(d1["text"]), "d2": _cut(row["text"])}
        for row, d1 in ((row, documents[row["d1_id"]]) for row in synthetic)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} […]"


# One pass over the corpus


def _scan_corpus(corpus: Artifact, samples: Samples, ids: set[str], groups: set[str]) -> dict[Split, Scan]:
    """Stream the corpus once: the pairs' texts, the questions' articles, and the samples' n-grams."""
    import ray

    files = {split: corpus.files(split, ".parquet") for split in SPLITS}
    wanted = _by_shard(samples.wanted_ids() | ids, len(files["train"]))
    tables = {name: ngram_table(ids) for name, ids in samples.token_ids().items()}
    put = {"train": ray.put(tables), "validation": ray.put({})}  # novelty is against what the models have read
    scan = ray.remote(scan_shard).options(num_cpus=1)
    calls = [
        (split, partial(scan.remote, corpus, name, wanted=wanted.get(name, []), groups=groups, tables=put[split]))
        for split in SPLITS
        for name in files[split]
    ]
    scans = {split: Scan() for split in SPLITS}
    progress = Progress("eval scan", len(calls), "shards")
    for split, found in _results(calls, at_once=_SCANS_AT_ONCE):
        scans[split].add(found)
        metrics.count("sbp_documents", found.num_documents, stage="eval")
        metrics.count("sbp_tokens", found.num_tokens, stage="eval")
        progress.advance()
    return scans


def _by_shard(doc_ids: Iterable[str], num_shards: int) -> dict[str, list[str]]:
    """Ids of the train split by the file that holds them."""
    found = defaultdict(list)
    for doc_id in sorted(doc_ids):
        found[shard_name("train", shard_of(doc_id, num_shards))].append(doc_id)
    return found


def _choose_questions(cfg: EvalConfig, scans: Mapping[Split, Scan]) -> tuple[dict[Split, list[Question]] | None, int]:
    """Questions for each split, and how many of the file ask about articles that the corpus lacks."""
    if cfg.questions is None:
        return None, 0
    split_of = {group: split for split in SPLITS for group in scans[split].groups}
    if not split_of:
        example = next(iter_questions(cfg)).group
        raise SbpError(
            f"eval.questions={cfg.questions}: no {cfg.question_group_column} there, such as {example!r}, is a group of "
            "the corpus: make eval.question_group_column and ingest.group_column name columns that match"
        )
    return draw_questions(iter_questions(cfg), split_of, limit=cfg.max_questions, seed=cfg.seed)


# Checkpoints and embedder


def _texts_to_score(
    corpus: Artifact, settings: Config, samples: Samples, questions: Mapping[Split, Sequence[Question]] | None
) -> TextSets:
    """Held-out documents and questions as token sequences, the same for both arms."""
    tokenizer = load_tokenizer(corpus.local_copy("tokenizer"))
    special = special_ids(tokenizer)
    return {
        HELD_OUT: [
            document_windows(row["input_ids"], special, settings.pretrain.seq_len) for row in samples.validation
        ],
        **{
            split: [[question_example(question, tokenizer, special)] for question in asked]
            for split, asked in (questions or {}).items()
        },
    }


def _score_and_embed(
    cfg: EvalConfig, artifacts: Mapping[str, Artifact], settings: Config, samples: Samples, texts: TextSets
) -> tuple[dict[str, Scores], dict[str, np.ndarray]]:
    """Scores of both arms, and unit vectors of the synthetic documents and their d1, by id.

    One task for each checkpoint, one for the embedder: side by side where the cluster has room.
    """
    import ray

    shape = {"num_cpus": cfg.resources.num_cpus, "num_gpus": cfg.resources.num_gpus}
    score, embed = ray.remote(score_checkpoint).options(**shape), ray.remote(_embed).options(**shape)
    options = {"batch_tokens": cfg.batch_tokens, "resources": cfg.resources}
    sets = ray.put(texts)
    calls: list[tuple[str, Callable[[], Any]]] = [
        (arm, partial(score.remote, artifacts[name], sets, name=arm, **options)) for arm, name in ARMS.items()
    ]
    if samples.synthetic:
        calls.append(("vectors", partial(embed.remote, settings, cfg.resources, samples.synthetic)))
    results = dict(_results(calls, at_once=cfg.resources.num_workers))
    made = results.pop("vectors", {})
    return results, made | _stored_vectors(artifacts["embeddings"], {row["d1_id"] for row in samples.synthetic})


def _stored_vectors(embeddings: Artifact, doc_ids: set[str]) -> dict[str, np.ndarray]:
    """Unit vectors that the run made of its train documents, by id."""
    import ray

    read = ray.remote(read_vectors).options(num_cpus=1)
    wanted = _by_shard(doc_ids, len(embeddings.files("train", ".parquet")))
    calls = [(name, partial(read.remote, embeddings, name, ids)) for name, ids in wanted.items()]
    vectors: dict[str, np.ndarray] = {}
    for _, found in _results(calls, at_once=_SCANS_AT_ONCE):
        vectors |= found
    return vectors


def _embed(settings: Config, resources: Resources, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Vectors by doc_id, made as the run embedded its corpus. Runs in a process of its own."""
    from sbp_ray.embedder import load_embedder

    embedder = load_embedder(settings.embed.model_copy(update={"resources": resources}))
    progress = Progress("eval embed", len(rows), "texts")
    vectors: dict[str, np.ndarray] = {}
    for start in range(0, len(rows), _EMBED_ROWS):
        part = rows[start : start + _EMBED_ROWS]
        made = np.nan_to_num(embedder([row["text"] for row in part]))  # no direction: related to nothing
        vectors |= dict(zip((row["doc_id"] for row in part), made, strict=True))
        progress.advance(len(part))
    return vectors


def _results(calls: Sequence[tuple[Any, Callable[[], Any]]], at_once: int) -> Iterator[tuple[Any, Any]]:
    """Start tasks, at most `at_once` at a time, and yield each one's key and result as it ends."""
    import ray

    waiting = list(reversed(calls))
    running: dict[Any, Any] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            key, start = waiting.pop()
            running[start()] = key
        [ready], _ = ray.wait(list(running), num_returns=1)
        yield running.pop(ready), ray.get(ready)
