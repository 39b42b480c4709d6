"""everything -> report: what both arms learned, what the synthetic text is like, and what the run cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config, EvalConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.arms import Scores, TextSets, document_windows, score_checkpoint
from sbp_ray.evaluation.benchmarks.question_sets import choose_questions
from sbp_ray.evaluation.benchmarks.run import compare_on_benchmarks
from sbp_ray.evaluation.comparison import ARMS, HELD_OUT, answer_table, held_out_table
from sbp_ray.evaluation.flow import loss_curve, pair_facts, scale_facts, stage_rows
from sbp_ray.evaluation.judging.rates import judge_texts, require_judge
from sbp_ray.evaluation.mining import guide_ids, mining_facts, read_guide
from sbp_ray.evaluation.questions import Question, check_questions, draw_questions, iter_questions, question_example
from sbp_ray.evaluation.tasks import results
from sbp_ray.evaluation.text_quality.corpus_scan import Scan
from sbp_ray.evaluation.text_quality.duplicates import NEAR_JACCARD
from sbp_ray.evaluation.text_quality.novelty import COPY_CONTAINMENT, NgramTable
from sbp_ray.evaluation.text_quality.panel import Panel, measure_samples, relevance_facts, scan_corpus
from sbp_ray.evaluation.text_quality.samples import (
    KINDS,
    REAL_HELD_OUT,
    REAL_TRAIN,
    Row,
    Sample,
    sample_pairs,
    sample_real,
    sample_synthetic,
    token_ids,
)
from sbp_ray.evaluation.text_quality.text_measures import add_distances, copying, irrelevance
from sbp_ray.provenance import provenance
from sbp_ray.report.page import render_page
from sbp_ray.report.panel_page import table_row
from sbp_ray.report.summary import render_summary
from sbp_ray.schema import SPLITS, Split
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

logger = logging.getLogger(__name__)

_SYNTHETIC = "synthetic"


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
        SbpError: a file of questions is missing, malformed, or about other articles than the corpus; a benchmark is
            unknown; the judge cannot be reached.
    """
    asked_groups, benchmarks = check_questions(cfg) or set(), choose_questions(settings)
    require_judge(settings.benchmarks.judge)
    corpus = artifacts["corpus"]
    samples = {_SYNTHETIC: sample_synthetic(cfg, artifacts["synthetic"]), **sample_real(cfg, corpus)}
    pairs = sample_pairs(cfg, artifacts["pairs"])
    guide = read_guide(artifacts["pairs"])
    wanted = samples[_SYNTHETIC].d1_ids | {row[key] for row in pairs for key in ("d1_id", "d2_id")} | guide_ids(guide)
    table = NgramTable.of(token_ids(samples))
    scans: dict[Split, Scan] = {
        # novelty is against what the models have read
        "train": scan_corpus(corpus, "train", wanted=wanted, groups=asked_groups, table=table),
        "validation": scan_corpus(corpus, "validation", wanted=(), groups=asked_groups, table=None),
    }
    questions, num_unknown = _choose_questions(cfg, scans)
    texts = _texts_to_score(corpus, settings, samples[REAL_HELD_OUT], questions)
    scores = _score_arms(cfg, artifacts, texts)
    panel = measure_samples(
        cfg,
        settings.embed,
        corpus=corpus,
        embeddings=artifacts["embeddings"],
        samples=samples,
        table=table,
        scan=scans["train"],
    )
    curves = {name: loss_curve(artifacts[key]) for name, key in {**ARMS, "synthesizer": "synthesizer"}.items()}
    held_out_texts = [row["text"] for row in samples[REAL_HELD_OUT].rows]
    report = {
        "scale": scale_facts(artifacts, curves, scores["sbp"].num_parameters, scans["train"]),
        "held_out": held_out_table(held_out_texts, texts, scores, seed=cfg.seed),
        "questions": answer_table(questions, texts, scores, num_unknown=num_unknown, seed=cfg.seed)
        if questions
        else None,
        "benchmarks": compare_on_benchmarks(settings, artifacts, benchmarks, store=out),
        "judge": _judged(settings, samples[_SYNTHETIC].rows, pairs, scans["train"].documents, out),
        "pairs": pair_facts(artifacts),
        "mining": mining_facts(guide, settings.pair, artifacts["neighbors"], scans["train"].documents),
        "quality": _quality(cfg, settings, panel, pairs, scans["train"]),
        "curves": curves,
        "flow": stage_rows(artifacts),
        "made_by": provenance(),
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


def _judged(
    settings: Config, synthetic: Sequence[Row], pairs: Sequence[Row], documents: Mapping[bytes, Row], out: Artifact
) -> dict[str, Any] | None:
    """What the judge says of synthetic documents and, for comparison, of mined pairs; None without a judge."""
    judge = settings.benchmarks.judge
    if judge is None:
        return None
    texts = {
        "synthetic": [(documents[row["d1_id"]]["text"], row["text"]) for row in synthetic],
        "mined": [(documents[row["d1_id"]]["text"], documents[row["d2_id"]]["text"]) for row in pairs],
    }
    return judge_texts(judge, texts, Artifact("judge", f"{out.url}/judge"))


def _quality(cfg: EvalConfig, settings: Config, panel: Panel, pairs: Sequence[Row], scan: Scan) -> dict[str, Any]:
    """The panel of the synthetic text beside real text, and the mined pairs beside the synthetic ones."""
    add_distances(panel.columns, REAL_TRAIN)
    ids = {name: row["input_ids"] for name, row in scan.documents.items()}
    mined = [(ids[row["d1_id"]], ids[row["d2_id"]]) for row in pairs]
    cosines = [row["cosine"] for row in pairs if row["cosine"] is not None]  # random pairs have none
    shingle_tokens = settings.embed.shingle_tokens
    beside_d1 = {
        "copying": copying(mined, shingle_tokens=shingle_tokens, seed=cfg.seed) if mined else None,
        "relevance": irrelevance(cosines, panel.threshold, seed=cfg.seed)
        if cosines and panel.threshold is not None
        else None,
    }
    columns = {**panel.columns, "mined": {"documents": len(pairs), "d1": beside_d1} if pairs else None}
    return {
        **{name: getattr(cfg, name) for name in ("quality_sample", "duplicate_sample", "seed")},
        "embedder": settings.embed.model,
        "shingle_tokens": shingle_tokens,
        "near_jaccard": NEAR_JACCARD,
        "copy_containment": COPY_CONTAINMENT,
        "relevance": relevance_facts(panel),
        "table": [table_row(name, KINDS[name], [column]) for name, column in columns.items()],
        "texts": columns,
    }


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


def _texts_to_score(
    corpus: Artifact, settings: Config, held_out: Sample, questions: Mapping[Split, Sequence[Question]] | None
) -> TextSets:
    """Held-out documents and questions as token sequences, the same for both arms."""
    tokenizer = load_tokenizer(corpus.local_copy("tokenizer"))
    special = special_ids(tokenizer)
    return {
        HELD_OUT: [document_windows(row["input_ids"], special, settings.pretrain.seq_len) for row in held_out.rows],
        **{
            split: [[question_example(question, tokenizer, special)] for question in asked]
            for split, asked in (questions or {}).items()
        },
    }


def _score_arms(cfg: EvalConfig, artifacts: Mapping[str, Artifact], texts: TextSets) -> dict[str, Scores]:
    """One task for each checkpoint: side by side where the cluster has room."""
    import ray

    score = ray.remote(num_cpus=cfg.resources.num_cpus, num_gpus=cfg.resources.num_gpus)(score_checkpoint)
    options = {"batch_tokens": cfg.batch_tokens, "resources": cfg.resources}
    sets = ray.put(texts)
    calls = [(arm, partial(score.remote, artifacts[name], sets, name=arm, **options)) for arm, name in ARMS.items()]
    return dict(results(calls, at_once=cfg.resources.num_workers))
