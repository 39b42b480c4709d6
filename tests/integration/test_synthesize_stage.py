"""The batch stage, on the engine that the tests of the endpoint ask too."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from merged_shards import write_signed
from running_service import ENGINE, Service

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, SynthesizeConfig, SynthesizeResources
from sbp_ray.engine.messages import sample_seed
from sbp_ray.errors import Outcome, SbpError
from sbp_ray.shards import shard_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def corpus(tiny_synthesizer: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """23 short documents and one that the window cannot hold, in two shards."""
    from sbp_ray.text.tokenizer import load_tokenizer

    texts = [f"the river number {number} of the north" for number in range(23)] + ["7" * 300]
    folder = tmp_path_factory.mktemp("run")
    artifact, embeddings = Artifact("corpus", str(folder / "1_corpus")), Artifact("embeddings", str(folder / "2_emb"))
    write_signed(artifact, embeddings, texts, 2, load_tokenizer(tiny_synthesizer.path("model")))
    return {"corpus": artifact, "embeddings": embeddings, "shingle_tokens": 13}


def test_every_sample_is_a_row_or_a_counted_drop_and_a_rerun_does_nothing(
    service: Service, corpus: dict, new_artifact: Any
) -> None:
    from sbp_ray.stages.synthesize import synthesize_documents

    cfg = SynthesizeConfig(samples_per_document=3, keep_best=1, max_tokens=100, min_tokens=2, seed=5, max_bad_share=0.2)
    out = new_artifact("synthetic")
    made_from = {"decontaminate": DecontaminateConfig(), **corpus, "synthesizer": service.synthesizer}
    inputs = {"engine": ENGINE, "out": out, **made_from}
    stats = synthesize_documents(cfg, **inputs)

    files = out.files(suffix=".parquet")
    rows = [row for file in files for row in out.read_table(file).to_pylist()]
    assert stats["d1"] == 24
    assert stats["samples"] == 24 * 3
    assert stats["drops"]["prompt_too_long"] == 3
    assert stats["drops"]["unfinished"] > 0
    assert stats["documents"] == len(rows) > 0
    assert len(rows) + sum(stats["drops"].values()) == 24 * 3
    assert len({row["d1_id"] for row in rows}) == len(rows)  # the best sample of each
    assert stats["scores"]["samples"] == len(rows) + stats["drops"]["not_best"]
    for row in rows:
        assert row["gain_nats"] is not None
        assert row["finish_reason"] == "stop"
        assert row["seed"] == sample_seed(5, row["d1_id"], row["sample"])
        assert row["synthesizer"] == "00c0ffee00c0ffee"

    before = [out.fs.get_file_info(out.path(file)).mtime for file in files]
    del stats["last_run"]
    assert synthesize_documents(cfg, **inputs) == stats
    assert [out.fs.get_file_info(out.path(file)).mtime for file in files] == before


def without_last_run(stats: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in stats.items() if name != "last_run"}


def test_a_missing_shard_is_drawn_again_the_same(service: Service, corpus: dict, new_artifact: Any) -> None:
    from sbp_ray.stages.synthesize import synthesize_documents

    cfg = SynthesizeConfig(num_documents=10, max_tokens=20, min_tokens=2, keep_unfinished=True)
    out = new_artifact("synthetic")
    made_from = {"decontaminate": DecontaminateConfig(), **corpus, "synthesizer": service.synthesizer}
    inputs = {"engine": ENGINE, "out": out, **made_from}
    stats = synthesize_documents(cfg, **inputs)
    assert stats["d1"] == 10
    whole = out.read_table("part-00001.parquet")
    out.fs.delete_file(out.path("part-00001.parquet"))
    again = synthesize_documents(cfg, **inputs)
    assert without_last_run(again) == without_last_run(stats)
    assert out.read_table("part-00001.parquet").equals(whole)


def test_a_synthetic_document_that_an_evaluation_set_shares_is_dropped(
    service: Service, corpus: dict, new_artifact: Any, tmp_path: Path
) -> None:
    """The same samples twice: the second time, a text of the first is in an evaluation set."""
    from sbp_ray.stages.synthesize import synthesize_documents

    cfg = SynthesizeConfig(num_documents=10, max_tokens=100, min_tokens=2, keep_unfinished=True)
    inputs = {"engine": ENGINE, **corpus, "synthesizer": service.synthesizer}
    before, after = new_artifact("before"), new_artifact("after")
    stats = synthesize_documents(cfg, decontaminate=DecontaminateConfig(), out=before, **inputs)
    assert stats["contaminated"] is None
    texts = [row["text"] for file in before.files() for row in before.read_table(file).to_pylist()]
    target = max(texts, key=lambda text: len(re.findall(r"[^\W_]+", text)))
    (tmp_path / "leaked.jsonl").write_text(json.dumps({"question": f"Is this so: {target}?"}))
    sets = DecontaminateConfig(evaluation_sets=(str(tmp_path / "*.jsonl"),), ngram_words=5)
    clean = synthesize_documents(cfg, decontaminate=sets, out=after, **inputs)
    assert clean["contaminated"]["sets"]["leaked"] == {"items": 1, "too_short": 0, "documents": 1}
    assert clean["drops"] == {**stats["drops"], "contaminated": 1}
    kept = [row["text"] for file in after.files() for row in after.read_table(file).to_pylist()]
    assert kept == [text for text in texts if text != target]


def test_samples_of_one_document_share_its_prompt(service: Service, corpus: dict, new_artifact: Any) -> None:
    """With blocks of 32 tokens, all whole blocks of a prompt but at most one come from the cache for samples 2 to k."""
    from sbp_ray.stages.synthesize import synthesize_documents
    from sbp_ray.text.tokenizer import encode_texts, load_tokenizer

    long = dict(corpus, corpus=new_artifact("long_corpus"))
    tokenizer = load_tokenizer(service.synthesizer.path("model"))
    for shard in range(2):
        rows = corpus["corpus"].read_table(shard_name("train", shard)).to_pylist()
        texts = [f"{row['doc_id'].hex()} {row['doc_id'][::-1].hex()} {row['doc_id'][::3].hex()}" for row in rows]
        for row, text, ids in zip(rows, texts, encode_texts(tokenizer, texts), strict=True):
            row |= {"text": text, "input_ids": ids}
        long["corpus"].write_table(shard_name("train", shard), pa.Table.from_pylist(rows, schema=schema.DOCUMENT))
    cfg = SynthesizeConfig(samples_per_document=4, max_tokens=20, min_tokens=2, keep_unfinished=True)
    inputs = {"engine": ENGINE, "decontaminate": DecontaminateConfig(), "synthesizer": service.synthesizer, **long}
    stats = synthesize_documents(cfg, out=new_artifact("synthetic"), **inputs)
    tables = [long["corpus"].read_table(shard_name("train", shard)) for shard in range(2)]
    lengths = [len(ids) + 2 for table in tables for ids in table["input_ids"].to_pylist()]
    assert stats["prompt_tokens"] == 4 * sum(lengths)
    whole_blocks = sum((length - 1) // 32 * 32 for length in lengths)
    assert stats["prompt_tokens_cached"] >= 3 * whole_blocks


def test_a_shard_that_vanishes_is_named_and_the_job_goes_on_once_it_is_back(
    service: Service, corpus: dict, new_artifact: Any
) -> None:
    from sbp_ray.artifacts import MANIFEST
    from sbp_ray.stages.synthesize import synthesize_documents

    cfg = SynthesizeConfig(max_tokens=20, min_tokens=2, keep_unfinished=True)
    out, undisturbed = new_artifact("synthetic"), new_artifact("undisturbed")
    inputs = {"engine": ENGINE, "decontaminate": DecontaminateConfig(), "synthesizer": service.synthesizer, **corpus}
    synthesize_documents(cfg, out=undisturbed, **inputs)
    corpus["corpus"].write_json(MANIFEST, {"stats": {"shards": 2}})
    there = Path(corpus["corpus"].path(shard_name("train", 1)))
    away = there.rename(there.with_suffix(".away"))
    try:
        with pytest.raises(SbpError, match=r"part-00001\.parquet is missing"):
            synthesize_documents(cfg, out=out, **inputs)
    finally:
        away.rename(there)
    synthesize_documents(cfg, out=out, **inputs)
    assert [out.read_table(name) for name in out.files()] == [undisturbed.read_table(name) for name in out.files()]


def test_too_many_samples_that_cannot_be_written_stop_the_stage_and_lie_in_quarantine(
    service: Service, corpus: dict, new_artifact: Any
) -> None:
    """One d1 of 24 is too long: 4 %."""
    from sbp_ray.stages.synthesize import synthesize_documents

    out = new_artifact("synthetic")
    inputs = {"engine": ENGINE, "decontaminate": DecontaminateConfig(), "synthesizer": service.synthesizer, **corpus}
    cfg = SynthesizeConfig(max_tokens=20, min_tokens=2, max_bad_share=0.03)
    with pytest.raises(SbpError, match=r"1 samples could not be written, .* synthesize\.max_bad_share=0\.03"):
        synthesize_documents(cfg, out=out, **inputs)
    [name] = out.files("quarantine")
    [line] = out.read_bytes(name).decode().splitlines()
    assert json.loads(line)["reason"] == "prompt_too_long"
    assert json.loads(line)["detail"] == "302 tokens of 256"


def test_a_store_ten_times_too_slow_holds_up_the_engines_and_not_the_object_store(
    service: Service, corpus: dict, new_artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    import ray

    from sbp_ray.generation import open_shard, shard_worker
    from sbp_ray.generation.coordinator import coordinator_class
    from sbp_ray.generation.segments import DoneSamples

    coordinator = ray.remote(num_cpus=0)(coordinator_class()).remote({}, 2, 1)

    waiting: list[int] = []
    commit = DoneSamples.commit

    def slowly(self: DoneSamples, rows: list[dict[str, Any]]) -> None:
        waiting.append(len(rows))
        time.sleep(0.5)  # the store
        commit(self, rows)

    monkeypatch.setattr(DoneSamples, "commit", slowly)
    monkeypatch.setattr(open_shard, "_SEGMENT_SAMPLES", 4)
    resources = SynthesizeResources(commit_every_s=60, max_in_flight=8)
    cfg = SynthesizeConfig(
        samples_per_document=4, max_tokens=4, min_tokens=2, keep_unfinished=True, resources=resources
    )
    made_from = (cfg, ENGINE, DecontaminateConfig(), 13, corpus["corpus"], service.synthesizer)
    free = ray.available_resources()["object_store_memory"]

    async def make() -> None:
        made = shard_worker.ShardWorker(
            shard_worker.Inputs(*made_from, new_artifact("synthetic"), "synthesizer", 100, coordinator)
        )
        answer = await made({"shard": 0, "quota": corpus["corpus"].num_rows(shard_name("train", 0))})
        assert Outcome(*json.loads(answer["outcome"])).message == ""

    asyncio.run(make())
    assert max(waiting) <= 8 + 8  # two segments, and what was in flight when it was full
    assert free - ray.available_resources()["object_store_memory"] < 2**20
