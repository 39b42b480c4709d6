"""Which documents become d1, and which results are kept."""

from typing import Any

import pyarrow as pa
import pytest
import torch

from sbp_ray import processor
from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.config import DecontaminateConfig, EngineConfig, SynthesizeConfig
from sbp_ray.engine.messages import SampledDocument, sample_seed
from sbp_ray.errors import SbpError
from sbp_ray.generation.d1 import choose_rows, choose_sources, shard_quotas
from sbp_ray.generation.filters import drop_reason
from sbp_ray.generation.merging import finished_shards, merged_name, part_name, signatures_name
from sbp_ray.schema import DOC_ID
from sbp_ray.stages import synthesize as stage
from sbp_ray.stages.synthesize import take_finished

TEXT_IDS = range(3, 1000)
D1 = list(range(500, 560))


def reason(ids: list[int], finish_reason: str = "stop", **limits: object) -> str | None:
    return drop_reason(SampledDocument(0, ids, finish_reason), D1, SynthesizeConfig(**limits), text_ids=TEXT_IDS)


# What to keep


def test_a_sound_document_is_kept() -> None:
    assert reason(list(range(100, 160))) is None


def test_a_document_cut_at_max_tokens_is_unfinished_unless_wanted() -> None:
    ids = list(range(100, 160))
    assert reason(ids, "length") == "unfinished"
    assert reason(ids, "length", keep_unfinished=True) is None


def test_a_document_below_min_tokens_is_too_short() -> None:
    assert reason(list(range(100, 115)), min_tokens=16) == "too_short"
    assert reason(list(range(100, 116)), min_tokens=16) is None


def test_a_mark_inside_a_document_is_not_text() -> None:
    assert reason([*range(100, 140), 2, *range(140, 160)]) == "not_text"


def test_a_loop_is_dropped() -> None:
    """27 4-grams, four different: 23 of 27 repeat."""
    assert reason([100, 101, 102, 103] * 7 + [104, 105], max_repetition=0.3) == "looping"


def test_a_copy_of_d1_is_dropped_at_the_share_of_shingles() -> None:
    """30 tokens of d1, then 30 others: 48 shingles of 13 tokens, of which 18 lie wholly in the copied part."""
    ids = [*D1[:30], *range(100, 130)]
    assert reason(ids, max_copy=17.5 / 48) == "copy_of_d1"
    assert reason(ids, max_copy=18.5 / 48) is None


# Which documents become d1


def shard(doc_ids: list[bytes]) -> pa.Table:
    return pa.table({"doc_id": pa.array(doc_ids, DOC_ID), "input_ids": [[int(doc_id)] for doc_id in doc_ids]})


def test_a_shard_gives_the_documents_with_the_smallest_hashes_in_its_own_order() -> None:
    doc_ids = [f"{number:016d}".encode() for number in range(10, 50)]
    chosen = choose_sources(shard(doc_ids), 5, seed=1)
    smallest = {doc_ids[row] for row in choose_rows(shard(doc_ids)["doc_id"], 5, seed=1)}
    assert len(smallest) == 5
    assert [source.doc_id for source in chosen] == [doc_id for doc_id in doc_ids if doc_id in smallest]
    assert all(source.input_ids == [int(source.doc_id)] for source in chosen)
    assert list(choose_sources(shard(doc_ids), 5, seed=2)) != list(chosen)
    assert chosen.doc_ids == [source.doc_id for source in chosen]
    assert chosen.lengths == [1] * 5


def test_a_larger_choice_holds_the_smaller_one() -> None:
    doc_ids = [f"{number:016d}".encode() for number in range(10, 50)]
    assert set(map(str, choose_sources(shard(doc_ids), 5, 0))) < set(map(str, choose_sources(shard(doc_ids), 9, 0)))


def test_quotas_add_up_to_the_number_wanted_and_follow_the_sizes() -> None:
    quotas = shard_quotas(SynthesizeConfig(num_documents=1000), [10_000, 30_000, 0])
    assert sum(quotas) == 1000
    assert quotas[2] == 0
    assert quotas[0] == pytest.approx(250, abs=60)  # a standard deviation is 13.5
    assert quotas == shard_quotas(SynthesizeConfig(num_documents=1000), [10_000, 30_000, 0])


def test_without_a_number_every_document_is_a_d1() -> None:
    assert shard_quotas(SynthesizeConfig(), [3, 0, 4]) == [3, 0, 4]


def test_billions_of_documents_are_chosen_from_in_proportion() -> None:
    sizes = [2 * 10**9, 0, 10**9, 5]
    assert shard_quotas(SynthesizeConfig(), sizes) == sizes
    quotas = shard_quotas(SynthesizeConfig(num_documents=300), sizes)
    assert sum(quotas) == 300
    assert quotas[:2] == [199, 0]  # 300 x 2 / 3.000000005 is less than 200
    assert all(quota <= size for quota, size in zip(quotas, sizes, strict=True))
    nearly_all = shard_quotas(SynthesizeConfig(num_documents=sum(sizes) - 1), sizes)
    assert [size - quota for quota, size in zip(nearly_all, sizes, strict=True)] == [1, 0, 0, 0]


def test_more_documents_than_there_are_is_an_error_with_both_numbers() -> None:
    with pytest.raises(SbpError, match=r"num_documents=8 .* 7 train documents"):
        shard_quotas(SynthesizeConfig(num_documents=8), [3, 4])


def test_seeds_differ_by_run_document_and_sample_and_fit_63_bits() -> None:
    seeds = {sample_seed(run, doc_id, sample) for run in range(3) for doc_id in (b"a", b"b") for sample in range(3)}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)


# Taking what is finished


def write_finished(growing: Artifact, name: str, ids: list[bytes]) -> None:
    table = pa.table({"doc_id": pa.array(ids, DOC_ID)})
    growing.write_table(name, table, stats={"documents": len(ids)})


def growing_run(new_artifact: Any, version: str) -> tuple[Artifact, Artifact]:
    growing, synthesizer = new_artifact("growing"), new_artifact("synthesizer")
    synthesizer.write_json(STARTED, {"fingerprint": "abc"})
    growing.write_json(STARTED, {"recipe": {"inputs": {"synthesizer": version}}})
    return growing, synthesizer


def test_a_run_takes_the_shards_that_are_finished_and_no_more_when_it_goes_on(new_artifact: Any) -> None:
    growing, synthesizer = growing_run(new_artifact, "abc")
    early = new_artifact("early")
    with pytest.raises(SbpError, match="no shard is finished there"):
        take_finished(growing, synthesizer, early)
    for name in (merged_name(2), signatures_name(2)):
        write_finished(growing, name, [bytes(16), b"b" * 16])
    growing.write_bytes("segments/part-00000/00000000-a.parquet", b"unfinished")
    take_finished(growing, synthesizer, early)
    for name in (merged_name(0), signatures_name(0)):
        write_finished(growing, name, [b"c" * 16])
    take_finished(growing, synthesizer, early)
    assert finished_shards(early) == {2: merged_name(2)}
    assert early.read_table(merged_name(2))["doc_id"].to_pylist() == [bytes(16), b"b" * 16]
    assert early.read_stats(merged_name(2)) == {"documents": 2}


def test_a_shard_that_is_taken_while_it_becomes_a_part_has_the_counts_of_its_rows(
    new_artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run drops a copy right after the file was read, or right before."""
    growing, synthesizer = growing_run(new_artifact, "abc")
    for name in (merged_name(0), signatures_name(0), merged_name(1), signatures_name(1)):
        write_finished(growing, name, [bytes(16), b"b" * 16])
    read_table = Artifact.read_table

    def overtaken(self: Artifact, name: str, columns: list[str] | None = None) -> pa.Table:
        if name == merged_name(1):
            write_finished(growing, part_name(1), [bytes(16)])
            growing.fs.delete_file(growing.path(name))
        table = read_table(self, name, columns)
        if name == merged_name(0):
            write_finished(growing, part_name(0), [bytes(16)])
            growing.fs.delete_file(growing.path(name))
        return table

    monkeypatch.setattr(Artifact, "read_table", overtaken)
    early = new_artifact("early")
    take_finished(growing, synthesizer, early)
    assert finished_shards(early) == {0: merged_name(0), 1: part_name(1)}
    for name in finished_shards(early).values():
        assert early.read_stats(name)["documents"] == early.num_rows(name)


def test_shards_of_another_synthesizer_are_refused(new_artifact: Any) -> None:
    growing, synthesizer = growing_run(new_artifact, "another")
    write_finished(growing, merged_name(0), [bytes(16)])
    with pytest.raises(SbpError, match="synthesizer another, which is abc here"):
        take_finished(growing, synthesizer, new_artifact("early"))


def test_what_auto_has_come_to_is_kept_to_and_recorded(
    new_artifact: Any, monkeypatch: pytest.MonkeyPatch, tiny_synthesizer: Artifact
) -> None:
    """The second attempt is on a processor that is fast in another type; an artifact of its own would be in that."""
    given: list[str] = []
    monkeypatch.setattr(stage, "_write_shards", lambda shards, inputs: given.append(inputs.engine.dtype) or {})
    for name in ("make_parts", "list_shards", "round_of_text"):
        monkeypatch.setattr(stage, name, lambda *_, **__: [])
    monkeypatch.setattr(stage, "_totals", lambda *_: {})
    out, other = new_artifact("synthetic"), new_artifact("synthetic-2")
    for attempt, fast in ((out, torch.bfloat16), (out, torch.float32), (other, torch.float32)):
        monkeypatch.setattr(processor, "choose_dtype", lambda use, wanted, fast=fast: fast)
        stats = stage.synthesize_documents(
            SynthesizeConfig(),
            engine=EngineConfig(dtype="auto", max_model_len=64),
            decontaminate=DecontaminateConfig(),
            shingle_tokens=13,
            corpus=new_artifact("corpus"),
            embeddings=new_artifact("embeddings"),
            synthesizer=tiny_synthesizer,
            out=attempt,
        )
        assert stats["written_by"] == {"synthesizer": "00c0ffee00c0ffee", "dtype": given[-1], "max_model_len": 64}
    assert given == ["bfloat16", "bfloat16", "float32"]
