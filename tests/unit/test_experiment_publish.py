"""An experiment's finished artifacts are measured by the code that measures a run, and become the same page."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hand_made import write_corpus, write_synthetic
from small_experiment import small_experiment
from test_eval_run import guide
from worked_on import WorkedOn

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.config import EvalConfig
from sbp_ray.evaluation.found_elsewhere import ANSWER, read_found_elsewhere
from sbp_ray.experiment.grid import plan_grid
from sbp_ray.experiment.publish import publish
from sbp_ray.model import build_model
from sbp_ray.report.headline import answer
from sbp_ray.schema import PAIR
from sbp_ray.shards import shard_name
from sbp_ray.text.tokenizer import special_ids

STATS: dict[str, dict[str, Any]] = {
    "corpus": {"documents": 40, "drops": {}, "train": {"documents": 32, "tokens": 900}},
    "embeddings": {"flops": 7000},
    "pairs": {"train": {"pairs": 31, "same_group_share": 0.25}},
    "synthesizer": {"positions": 500, "validation": {"pairs": 0}},
    "synthetic": {
        "prompt_tokens": 60, "tokens_generated": 40, "samples": 12, "documents": 12, "tokens": 400, "drops": {},
    },
}  # fmt: skip
TRAINED = {"positions": 1000, "parameters": 100, "mixture": {"real": {"passes": 2.0}, "synthetic": {"passes": 0.5}}}


def test_finished_trainings_become_a_page(tmp_path: Path, in_process: WorkedOn) -> None:
    experiment = small_experiment(
        tmp_path, "repetition", "sbp", seeds=[0, 1, 7], shares=[0.02], synthesizer_per_seed=False
    )
    grid = plan_grid(experiment)
    made = {node.artifact.name: node.artifact for node in grid.nodes.values()}
    documents, tokenizer = write_corpus(made["corpus"], made["embeddings"])
    train = documents["train"]
    pairs = [{"d1_id": a["doc_id"], "d2_id": b["doc_id"], "cosine": 0.7, "jaccard": 0.0}
             for a, b in itertools.pairwise(train)]  # fmt: skip
    made["pairs"].write_table(shard_name("train", 0), pa.Table.from_pylist(pairs, PAIR))
    made["pairs"].write_json("guide.json", {"train": guide([row["doc_id"] for row in train])})
    write_synthetic(made["synthetic"], [(row, f"{row['text']} again") for row in train[:12]], tokenizer)
    for seed, node in enumerate(grid.nodes.values()):
        node.artifact.write_json(STARTED, {"fingerprint": node.fingerprint})
        node.artifact.write_json(MANIFEST, {"stats": STATS.get(node.artifact.name, TRAINED), "wall_s": 3600})
        if node.stage.job == "pretrain":
            model = build_model(node.config.model, 320, special_ids(tokenizer), seed)
            model.save_pretrained(node.artifact.path("model"))
    done = [training for training in grid.trainings if training.seed != 7]
    said = publish(experiment, grid, done, ["sbp 2 % seed 7: the disk is full"], room={"CPU": 4})

    out = Artifact("experiment", experiment.run_dir)
    results = out.read_json("experiment.json")
    repetition, sbp = results["arms"]
    assert results["seeds"] == [0, 1]  # those that the intervals are over
    found = sbp["measures"]["held_out_nats_per_token"]
    assert found["by_seed"].keys() == {"0", "1"} and found["over_seeds"]["units"] == 2
    assert found["gain"] == pytest.approx(repetition["measures"]["held_out_nats_per_token"]["mean"] - found["mean"])
    assert sbp["cost"]["flops"] > repetition["cost"]["flops"] == 6 * 100 * 1000
    assert [row["name"] for row in results["quality"]["table"]] == ["sbp", "real_train", "real_held_out", "mined"]
    assert results["mining"][0]["for"] == ["sbp 2 %"]
    assert all(row["is_done"] and row["cost"] for row in results["artifacts"])
    assert said.endswith("report: " + out.path("experiment.html"))
    elsewhere = read_found_elsewhere(EvalConfig(found_elsewhere=out.path(ANSWER)))
    assert elsewhere is not None and elsewhere["says"] == answer(results)
    page = out.read_bytes("experiment.html").decode()
    for text in ("At equal total cost", "sbp 2 % seed 7: the disk is full", "Gains have 95 % intervals over 2 seeds"):
        assert text in page
