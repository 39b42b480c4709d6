"""Pretraining and tuning under Ray Train, on two real ranks."""

import json
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch
from processes import command_line
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sbp_ray.agreement import CHECKED, EXPORT_CHECK
from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.config import (
    EngineConfig,
    EngineResources,
    MixtureConfig,
    ModelConfig,
    PretrainConfig,
    TrainingResources,
    TuneConfig,
)
from sbp_ray.engine.running import running_synthesizer
from sbp_ray.errors import SbpError
from sbp_ray.schema import DOCUMENT, PAIR, SYNTHETIC, shard_of
from sbp_ray.scoring import sum_nll
from sbp_ray.shards import shard_name
from sbp_ray.stages.pretrain import pretrain
from sbp_ray.stages.tune import tune_synthesizer
from sbp_ray.text.pair_format import document_example
from sbp_ray.text.tokenizer import encode_texts, special_ids, train_tokenizer
from sbp_ray.training import worker
from sbp_ray.training.export_check import check_export

pytestmark = pytest.mark.slow

NUM_SHARDS = 2
WORDS = [
    "the",
    "a",
    "of",
    "river",
    "city",
    "king",
    "war",
    "music",
    "light",
    "stone",
    "wrote",
    "built",
    "found",
    "sang",
    "under",
    "over",
    "seven",
    "many",
]
MODEL = ModelConfig(
    num_layers=2, hidden_size=32, num_heads=2, num_kv_heads=1, head_dim=32, ffn_size=64, max_positions=256
)
CHECKPOINT_EVERY = 4
RANKS = TrainingResources(num_workers=2, num_cpus=1, num_threads=1, checkpoint_every=CHECKPOINT_EVERY)
PRETRAIN = PretrainConfig(
    seq_len=128,
    batch_rows=4,
    total_tokens=4 * 128 * 10,
    peak_lr=1e-2,
    dtype="float32",
    resources=RANKS,
)
TUNE = TuneConfig(
    seq_len=384,  # more than the context, which no pair is
    max_pair_len=128,
    batch_rows=2,
    peak_lr=1e-2,
    dtype="float32",
    max_validation_pairs=6,
    resources=TrainingResources(num_workers=2, num_cpus=1, num_threads=1, checkpoint_every=CHECKPOINT_EVERY),
)

ENGINE = EngineConfig(
    dtype="float32",
    max_model_len=128,
    resources=EngineResources(num_threads=1, max_num_seqs=8, kv_cache_gib=0.1, enforce_eager=True),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A corpus of 70 short documents in seven groups, pairs within groups, and some synthetic documents."""
    folder = tmp_path_factory.mktemp("run")
    names = ("corpus", "pairs", "synthetic", "base_lm", "synthesizer", "lm")
    made = {name: Artifact(name, str(folder / name)) for name in names}
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(10, 30))) for _ in range(70)]
    tokenizer = train_tokenizer(texts, 320)
    tokenizer.save_pretrained(made["corpus"].path("tokenizer"))
    ids = encode_texts(tokenizer, texts)
    documents = [
        {"doc_id": bytes.fromhex(f"{n:08x}{n:024x}"), "group": f"g{n % 7}", "text": texts[n], "input_ids": ids[n]}
        for n in range(70)
    ]
    splits = {"train": ("g0", "g1", "g2", "g3"), "validation": ("g4", "g5"), "development": ("g6",)}
    for split, groups in splits.items():
        members = [document for document in documents if document["group"] in groups]
        for shard in range(NUM_SHARDS):
            mine = [d for d in members if shard_of(d["doc_id"], NUM_SHARDS) == shard]
            pairs = [
                {"d1_id": d1["doc_id"], "d2_id": d2["doc_id"], "cosine": 0.8, "jaccard": 0.0}
                for d1 in mine
                for d2 in members
                if d1 is not d2 and d1["group"] == d2["group"]
            ]
            made["corpus"].write_table(shard_name(split, shard), pa.Table.from_pylist(mine, schema=DOCUMENT))
            made["pairs"].write_table(shard_name(split, shard), pa.Table.from_pylist(pairs, schema=PAIR))
    written = [dict.fromkeys(SYNTHETIC.names) | {"input_ids": ids[n], "text": texts[n]} for n in range(12)]
    made["synthetic"].write_table("part-00000.parquet", pa.Table.from_pylist(written, schema=SYNTHETIC))
    for artifact in made.values():
        artifact.write_json(STARTED, {"fingerprint": "0" * 16})
    return made


def _pretrain(run: dict[str, Artifact], out: str, **settings: Any) -> dict[str, Any]:
    return pretrain(
        PRETRAIN.model_copy(update=settings),
        model=MODEL,
        mixture=MixtureConfig(synthetic_share=0.005),  # 2 of 400 rows, of the 3 that there are
        corpus=run["corpus"],
        synthetic=run["synthetic"] if out == "lm" else None,
        out=run[out],
    )


@pytest.fixture(scope="module")
def base_lm(run: dict[str, Artifact], local_ray: None) -> dict[str, Any]:
    return _pretrain(run, "base_lm")


def test_the_base_lm_is_trained_recorded_and_exported(run: dict[str, Artifact], base_lm: dict[str, Any]) -> None:
    assert base_lm["steps"] == 10
    assert base_lm["mixture"]["real"]["rows"] == 40
    assert base_lm["mixture"]["real"]["passes"] == round(40 / base_lm["packing"]["real"]["rows"], 4)
    rows = [json.loads(line) for line in run["base_lm"].read_bytes("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert rows[-1]["loss_nats"] < rows[0]["loss_nats"]
    assert base_lm["exported"] == min(rows, key=lambda row: row["development_nats"])  # ten steps, each measured


def test_the_export_has_the_held_out_loss_that_was_recorded(run: dict[str, Artifact], base_lm: dict[str, Any]) -> None:
    """All held-out documents were measured by the sharded model; here the plain model of transformers scores them."""
    model = AutoModelForCausalLM.from_pretrained(run["base_lm"].path("model"), dtype=torch.float32)
    special = special_ids(train_tokenizer(["x"], 320))  # the marks are always the first three
    tables = [run["corpus"].read_table(file, ["input_ids"]) for file in run["corpus"].files("validation")]
    examples = [document_example(ids, special) for table in tables for ids in table["input_ids"].to_pylist()]
    nll = sum_nll(model, examples, batch_tokens=1024).sum() / sum(example.num_supervised for example in examples)
    assert base_lm["packing"]["validation"]["rows"] <= 2 * PRETRAIN.batch_rows
    assert base_lm["exported"]["validation_nats"] == pytest.approx(nll, rel=1e-5)


def test_a_finished_training_is_not_run_again(
    run: dict[str, Artifact], base_lm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "TorchTrainer", None)  # calling it would fail
    assert _pretrain(run, "base_lm") == base_lm


def test_tuning_starts_from_the_base_lm_and_measures_what_d1_is_worth(
    run: dict[str, Artifact], base_lm: dict[str, Any]
) -> None:
    stats = tune_synthesizer(
        TUNE, corpus=run["corpus"], pairs=run["pairs"], base_lm=run["base_lm"], out=run["synthesizer"]
    )
    train = stats["packing"]["pairs"]
    assert train["pairs"] == 4 * 10 * 9  # four groups of ten, both directions
    assert train["examples"] + stats["drops"]["too_long"] == train["pairs"]
    assert stats["steps"] == -(-train["rows"] // 2)
    first = json.loads(run["synthesizer"].read_bytes("metrics.jsonl").splitlines()[0])
    assert first["loss_nats"] < base_lm["final"]["loss_nats"] + 1  # no fresh weights: those cost ln 320 = 5.8
    assert stats["validation"]["pairs"] == 6
    assert stats["export"]["max_difference_nats"] <= stats["export"]["tolerance_nats"] == 1e-3
    assert all(0 < stats["validation"][f"nll_{view}"] < 6 for view in ("given_d1", "given_random", "alone"))


def test_pairs_that_never_fit_are_an_error_with_both_numbers(
    run: dict[str, Artifact], base_lm: dict[str, Any], tmp_path: Path
) -> None:
    out = Artifact("synthesizer", str(tmp_path))
    short = TUNE.model_copy(update={"max_pair_len": 16})
    with pytest.raises(
        SbpError, match=r"none of the 360 train pairs fits tune.max_pair_len=16, the shortest has \d+ tokens"
    ):
        tune_synthesizer(short, corpus=run["corpus"], pairs=run["pairs"], base_lm=run["base_lm"], out=out)


def test_a_window_beyond_the_base_lms_context_is_refused(
    run: dict[str, Artifact], base_lm: dict[str, Any], tmp_path: Path
) -> None:
    wide = TUNE.model_copy(update={"seq_len": 512, "max_pair_len": None})
    with pytest.raises(SbpError, match=r"tune.seq_len \(512\) is more than the base LM's context \(256\)"):
        tune_synthesizer(
            wide,
            corpus=run["corpus"],
            pairs=run["pairs"],
            base_lm=run["base_lm"],
            out=Artifact("synthesizer", str(tmp_path)),
        )


def test_a_training_that_diverges_says_so_in_one_line(
    run: dict[str, Artifact], local_ray: None, tmp_path: Path
) -> None:
    with pytest.raises(SbpError, match=r"pretrain-repetition step 2: loss .* lower peak_lr \(1e\+30\)"):
        pretrain(
            PRETRAIN.model_copy(update={"peak_lr": 1e30, "warmup_share": 0.0, "resources": TrainingResources()}),
            model=MODEL,
            mixture=MixtureConfig(),
            corpus=run["corpus"],
            synthetic=None,
            out=Artifact("base_lm", str(tmp_path)),
        )


def test_a_killed_worker_costs_no_more_than_the_steps_since_the_checkpoint(
    run: dict[str, Artifact], local_ray: None
) -> None:
    """The joint training, one of whose ranks dies on the way."""
    outcome: list[dict[str, Any]] = []
    training = threading.Thread(
        target=lambda: outcome.append(_pretrain(run, "lm", arm="sbp", total_tokens=4 * 128 * 100)), daemon=True
    )
    training.start()
    _await_step(run["lm"], 6)
    ranks = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in command_line(p)]
    assert len(ranks) == 2
    ranks[1].kill()
    training.join(timeout=540)
    rows = [json.loads(line) for line in run["lm"].read_bytes("metrics.jsonl").splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 101))
    assert outcome[0]["mixture"]["synthetic"]["rows"] == 2
    assert outcome[0]["attempts"] == 2
    # The next save waits for the one before it: two intervals at most, however slow the disk is.
    assert outcome[0]["wasted_steps"] <= 2 * CHECKPOINT_EVERY


def test_an_export_that_says_something_else_is_refused_by_transformers_and_by_an_engine(
    run: dict[str, Artifact], base_lm: dict[str, Any], tmp_path: Path
) -> None:
    out = Artifact("base_lm", str(tmp_path / "damaged"))
    shutil.copytree(run["base_lm"].path("model"), out.path("model"))
    weights = load_file(out.path("model/model.safetensors"))
    weights["model.norm.weight"][0] += 0.5  # one number of one tensor
    save_file(weights, out.path("model/model.safetensors"), metadata={"format": "pt"})
    out.write_json(EXPORT_CHECK, run["base_lm"].read_json(EXPORT_CHECK))
    with pytest.raises(SbpError, match="pretrain: the export is refused: transformers gives held-out tokens log-prob"):
        check_export("pretrain", PRETRAIN, out)
    assert out.files() == [EXPORT_CHECK]  # nothing says that it was checked
    out.write_json(STARTED, run["base_lm"].read_json(STARTED))
    out.write_json(CHECKED, run["base_lm"].read_json(CHECKED))  # it was damaged after that
    refused = (
        "the engine cannot start: .*the engine gives held-out tokens log-probabilities .* it is not the model that"
    )
    with pytest.raises(SbpError, match=refused), running_synthesizer(ENGINE, out, owner="a test"):
        pass


def test_training_goes_on_with_fewer_ranks_than_wanted_and_makes_the_same_model(
    run: dict[str, Artifact], base_lm: dict[str, Any], tmp_path: Path
) -> None:
    """Three ranks of two CPUs are wanted, and the cluster has four CPUs at most."""
    wanted = TrainingResources(num_workers=3, min_workers=1, num_cpus=2, num_threads=1)
    settings = {"batch_rows": 6, "total_tokens": 6 * 128 * 3, "resources": wanted}
    out = {"few": Artifact("base_lm", str(tmp_path / "few")), "one": Artifact("base_lm", str(tmp_path / "one"))}
    for name, resources in (("few", wanted), ("one", TrainingResources(num_threads=1, in_process=True))):
        cfg = PRETRAIN.model_copy(update={**settings, "resources": resources})
        pretrain(cfg, model=MODEL, mixture=MixtureConfig(), corpus=run["corpus"], synthetic=None, out=out[name])
    [attempt] = [json.loads(line) for line in out["few"].read_bytes("attempts.jsonl").splitlines()]
    assert 1 <= attempt["ranks"] <= 2
    few, one = (
        [json.loads(line)["loss_nats"] for line in artifact.read_bytes("metrics.jsonl").splitlines()]
        for artifact in out.values()
    )
    assert few == pytest.approx(one, rel=1e-4)


def _await_step(out: Artifact, step: int) -> None:
    limit = time.monotonic() + 500
    while not out.exists("metrics.jsonl") or len(out.read_bytes("metrics.jsonl").splitlines()) < step:
        assert time.monotonic() < limit, "no training step was recorded"
        time.sleep(0.05)
