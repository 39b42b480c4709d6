"""The whole stage on hand-made artifacts: two tiny random checkpoints, 40 documents, 12 synthetic ones."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hand_made import NUM_SHARDS, WORDS, nodes_of, write_corpus, write_synthetic

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.likelihood.scored_texts import choose_texts
from sbp_ray.model import build_model
from sbp_ray.schema import PAIR
from sbp_ray.shards import shard_name
from sbp_ray.text.tokenizer import special_ids


def settings(run_dir: Path, **evaluation: object) -> Config:
    training = {
        "seq_len": 64, "batch_rows": 2, "peak_lr": 1e-3, "dtype": "float32",
    }  # fmt: skip
    return Config.model_validate(
        {
            "run_dir": str(run_dir),
            "ingest": {"input": ["unused"], "num_shards": NUM_SHARDS},
            "embed": {"max_tokens": 64},
            "model": {
                "num_layers": 1,
                "hidden_size": 16,
                "num_heads": 2,
                "num_kv_heads": 1,
                "head_dim": 8,
                "ffn_size": 32,
                "max_positions": 8192,
            },
            "pretrain": {**training, "total_tokens": 1000},
            "tune": training,
            "eval": {"quality_sample": 20, "max_questions": 10, "num_samples": 3, **evaluation},
        }
    )


def guide(doc_ids: list[bytes]) -> dict[str, object]:
    """What pairing leaves beside the pairs."""
    numbers = {"cosine": 0.7, "jaccard": 0.1, "containment": 0.2, "content_overlap": 0.3, "dropped": None, "order": 0}
    samples = [
        {"band": "0.70", "d1_id": a.hex(), "d2_id": b.hex(), **numbers} for a, b in itertools.pairwise(doc_ids[:3])
    ]
    degree = {"mean": 1.0, "p50": 1, "p90": 2, "p99": 2, "max": 2, "histogram": {"1": 30, "2": 2}}
    return {
        "documents": 32,
        "what_if_documents": 32,
        "bands": [
            {"band": "0.70", "listed": 31, "near_duplicate_jaccard": 0, "near_duplicate_containment": 0, "pairs": 31}
        ],
        "thresholds": [
            {
                "min_cosine": 0.7, "listed": 31, "duplicate_share": 0.0, "documents_share": 1.0, "pairs": 31,
                "full_share": 0.0,
            }
        ],
        "degrees": dict.fromkeys(("listed_by", "as_d2", "as_d1"), degree),
        "samples": samples,
    }  # fmt: skip


def make_run(run_dir: Path) -> dict[str, Artifact]:
    """Artifacts as the stages before eval leave them."""
    names = ("corpus", "embeddings", "neighbors", "pairs", "base_lm", "synthesizer", "synthetic", "lm")
    artifacts = {name: Artifact(name, str(run_dir / f"{i}_{name}")) for i, name in enumerate(names, start=1)}
    documents, tokenizer = write_corpus(artifacts["corpus"], artifacts["embeddings"])
    train = documents["train"]
    pairs = [
        {"d1_id": a["doc_id"], "d2_id": b["doc_id"], "cosine": 0.7, "jaccard": 0.0}
        for a, b in itertools.pairwise(train)
    ]
    artifacts["pairs"].write_table(shard_name("train", 0), pa.Table.from_pylist(pairs, PAIR))
    artifacts["pairs"].write_json("guide.json", {"train": guide([row["doc_id"] for row in train])})
    write_synthetic(artifacts["synthetic"], [(row, str(row["text"]) + "<script>") for row in train[:12]], tokenizer)

    special = special_ids(tokenizer)
    for seed, name in enumerate(("base_lm", "synthesizer", "lm")):
        model = build_model(settings(run_dir).model, 320, special, seed)
        model.save_pretrained(artifacts[name].path("model"))
        lines = [{"step": s, "tokens": 128 * s, "loss_nats": 6.0 - s / 10} for s in range(1, 9)]
        lines[-1]["validation_nats"] = 5.5
        artifacts[name].write_bytes("metrics.jsonl", "\n".join(map(json.dumps, lines)).encode())
    recall = {"k": 5, "queries": 32, "recall": 0.98, "low": 0.97, "high": 0.99, "min_recall": 0.95}
    stats: dict[str, dict[str, object]] = {
        "corpus": {"train": {"documents": 32}, "validation": {"documents": 8}, "drops": {"exact_duplicate": 3}},
        "pairs": {"train": {"pairs": len(pairs), "same_group_share": 0.25}},
        "neighbors": {"train": {"recall": recall}},
        "synthesizer": {"validation": {"pairs": 4, "nll_given_d1": 5.1, "nll_given_random": 5.3, "nll_alone": 5.2}},
    }
    for name in ("base_lm", "lm"):
        stats[name] = {"positions": 1024}
    for name, artifact in artifacts.items():
        artifact.write_json("started.json", {"fingerprint": f"{name:0>16}"})
        artifact.write_json(
            "manifest.json", {"stage": name, "stats": stats.get(name, {}), "wall_s": 1.5, "peak_mem_gib": 0.5}
        )
    return artifacts


def write_questions(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.usefixtures("in_process")
def test_a_run_is_measured_from_its_artifacts(tmp_path: Path) -> None:
    from sbp_ray.stages.eval import evaluate_run

    make_run(tmp_path)
    questions = [
        {"question": f"Where is {word}?", "answers": ["the river"], "title": f"{split}-0"}
        for word in WORDS[:4]
        for split in ("train", "validation")
    ]
    questions.append({"question": "Who?", "answers": ["nobody"], "title": "an article that is not there"})
    config = settings(tmp_path, questions=write_questions(tmp_path / "questions.jsonl", questions))
    out = Artifact("report", str(tmp_path / "9_report"))
    node = nodes_of(config)["report"]
    stats = evaluate_run(node, out=out)

    report = out.read_json("report.json")
    assert stats["drops"] == {"question_about_unknown_group": 1}
    assert {name: (text["units"], text["groups"]) for name, text in report["texts"].items()} == {
        "held_out": (8, 4), "answers_read": (4, 1), "answers_held_out": (4, 1),
    }  # fmt: skip
    assert report["scale"]["documents"] == 32
    # a random model knows nothing: about ln 320 = 5.77 nats a token
    repetition, sbp = (arm["measures"]["held_out_nats_per_token"] for arm in report["arms"])
    assert sbp["mean"] == pytest.approx(5.77, abs=0.3)
    assert sbp["gain"] == pytest.approx(repetition["mean"] - sbp["mean"])
    assert sbp["over_seeds"] is None  # one seed
    assert sbp["over_groups"] == {"value": pytest.approx(sbp["gain"]), "unit": "groups", "units": 4}
    assert stats["arms"]["sbp"]["held_out_nats_per_token"] == sbp
    # each synthetic text is its d1 with an end of its own
    [column] = report["quality"]["syntheses"]
    assert column["d1"]["copying"]["copies"]["value"] == 1
    assert 0 < column["novel"]["13"] < 0.5
    assert column["corpus_copying"]["copies"]["value"] == 1
    assert report["quality"]["real"]["real_held_out"]["corpus_copying"]["copies"]["value"] == 0
    assert column["documents"] == 12
    assert column["duplicates"] == {"documents": 12, "exact": 0, "near": 0}
    assert [row["d1"] + "<script>" for row in column["shown"]] == [row["d2"] for row in column["shown"]]
    assert len(column["shown"]) == 3
    assert all(row["nearest"] for row in column["shown"])
    assert report["quality"]["real"]["mined"]["documents"] == 20
    [mining] = report["mining"]
    [band] = mining["samples"]
    assert [pair["verdict"] for pair in band["pairs"]] == ["below min_cosine"] * 2  # 0.7, and the default is 0.75
    assert band["pairs"][0]["d1"].endswith("number 0.") and band["pairs"][0]["d2"].endswith("number 1.")
    assert mining["recall"]["recall"] == 0.98
    page = out.read_bytes("report.html").decode()
    assert "&lt;script&gt;" in page and "<script" not in page
    summary = out.read_bytes("summary.txt").decode()
    for text in (page, summary):
        assert "Too few groups (articles) for an interval over them: held-out documents (of 4)," in text
        assert "One seed: intervals are over groups" in text

    # what a killed run measured is not measured again
    written = {name: Path(out.path(name)).stat().st_mtime_ns for name in out.files("scores", ".json")}
    assert len(written) == 4  # two models, and held-out text looked for in two texts
    evaluate_run(node, out=out)
    assert {name: Path(out.path(name)).stat().st_mtime_ns for name in written} == written


def test_questions_about_other_articles_are_refused(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"question": "Who?", "answers": ["nobody"], "title": "elsewhere"}]
    config = settings(tmp_path, questions=write_questions(tmp_path / "questions.jsonl", rows))
    with pytest.raises(SbpError, match="'elsewhere', is a group of the corpus"):
        choose_texts(config, make_run(tmp_path)["corpus"])


@pytest.mark.usefixtures("in_process")
def test_an_article_of_which_documents_were_read_is_not_held_out(tmp_path: Path) -> None:
    """Where a corpus is split by documents, both splits have documents of one group."""
    corpus = make_run(tmp_path)["corpus"]
    table = corpus.read_table(shard_name("train", 0))
    groups = pa.array(["validation-1", *table["group"].to_pylist()[1:]])
    corpus.write_table(shard_name("train", 0), table.set_column(table.column_names.index("group"), "group", groups))
    rows: list[dict[str, object]] = [
        {"question": "Who?", "answers": ["nobody"], "title": title}
        for title in ("train-3", "validation-0", "validation-1")
    ]
    config = settings(tmp_path, questions=write_questions(tmp_path / "questions.jsonl", rows))
    sets = choose_texts(config, corpus).sets
    assert sorted(sets["answers_read"].groups) == ["train-3", "validation-1"]
    assert sets["answers_held_out"].groups == ["validation-0"]


@pytest.mark.usefixtures("in_process")
def test_scores_are_of_the_questions_and_not_of_their_file(tmp_path: Path) -> None:
    """Their files are named by it: one that was corrected is asked anew, and the same questions are not."""
    corpus, path = make_run(tmp_path)["corpus"], tmp_path / "questions.jsonl"
    row: dict[str, object] = {"question": "Who?", "answers": ["nobody"], "title": "train-0"}
    config = settings(tmp_path, questions=write_questions(path, [row]))
    first = choose_texts(config, corpus).fingerprint
    assert choose_texts(config, corpus).fingerprint == first
    for change in ({"question": "Where?"}, {"answers": ["somebody"]}, {"title": "validation-0"}):
        write_questions(path, [row | change])
        assert choose_texts(config, corpus).fingerprint != first, change


def test_without_held_out_documents_nothing_is_compared(tmp_path: Path) -> None:
    corpus = make_run(tmp_path)["corpus"]
    for name in corpus.files("validation", ".parquet"):
        Path(corpus.path(name)).unlink()
    assert choose_texts(settings(tmp_path), corpus).sets == {}
