"""How likely each sample is, what d1 is worth to it, and which samples are kept for that."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from merged_shards import SIGNED, sign
from worked_on import WorkedOn

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Resources, SynthesizeConfig
from sbp_ray.errors import SbpError
from sbp_ray.generation import parts
from sbp_ray.generation.d1 import Sources
from sbp_ray.generation.merging import merge_shard, part_name
from sbp_ray.generation.parts import make_parts
from sbp_ray.generation.scores import SCORES, choose_by_scores, describe_scores, summarise_scores
from sbp_ray.generation.segments import DoneSamples
from sbp_ray.schema import DOCUMENT
from sbp_ray.shards import add_stats, shard_name

NUM_SHARDS, DOCUMENTS, SAMPLES = 2, 3, 4

pytestmark = pytest.mark.usefixtures("in_process")


class Written:
    """Merged shards, of a few samples of each of a few d1, whose texts are all different."""

    def __init__(self, folder: Path, synthesizer: Artifact) -> None:
        self.synthesizer = synthesizer
        self.corpus, self.embeddings, self.out = (
            Artifact(name, str(folder / name)) for name in ("corpus", "embeddings", "synthetic")
        )
        self.d1: dict[bytes, list[int]] = {}
        rng = np.random.default_rng(0)
        for shard in range(NUM_SHARDS):
            ids = [bytes([shard, number]) * 8 for number in range(DOCUMENTS)]
            rows = [{"doc_id": i, "group": "", "text": "", "input_ids": rng.integers(5, 300, 12).tolist()} for i in ids]
            self.d1 |= {row["doc_id"]: row["input_ids"] for row in rows}
            table = pa.Table.from_pylist(rows, DOCUMENT)
            self.corpus.write_table(shard_name("train", shard), table)
            signed = [{"doc_id": i, "signature": sign(i.hex())} for i in ids]
            self.embeddings.write_table(shard_name("train", shard), pa.Table.from_pylist(signed, SIGNED))
            finished = [self._row(shard, number, ids, rng) for number in range(DOCUMENTS * SAMPLES)]
            DoneSamples(self.out, shard, len(finished)).commit(finished)
            merge_shard(SynthesizeConfig(samples_per_document=SAMPLES), shard, Sources(table), self.out)

    def _row(self, shard: int, number: int, ids: list[bytes], rng: np.random.Generator) -> dict[str, Any]:
        text = " ".join(f"{shard}-{number}-{word}" for word in range(30))
        tokens = rng.integers(5, 300, 8 + number).tolist()
        return {
            "number": number, "d1_id": ids[number // SAMPLES], "sample": number % SAMPLES, "reason": None,
            "num_generated": len(tokens), "num_prompt": 14, "num_cached": 0, "signature": sign(text),
            "doc_id": bytes([9, shard, number, 0]) * 4, "text": text, "input_ids": tokens,
            "finish_reason": "length" if number % 5 == 4 else "stop", "synthesizer": "v", "round": 1, "seed": number,
            "temperature": 1.0, "top_p": 1.0, "max_tokens": 50,
        }  # fmt: skip

    def make_parts(self, **settings: Any) -> None:
        make_parts(
            SynthesizeConfig(samples_per_document=SAMPLES, **settings), NUM_SHARDS, corpus=self.corpus,
            embeddings=self.embeddings, synthesizer=self.synthesizer, out=self.out, resources=Resources(),
        )  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        return [row for shard in range(NUM_SHARDS) for row in self.out.read_table(part_name(shard)).to_pylist()]

    def stats(self) -> dict[str, Any]:
        return add_stats(self.out.read_stats(part_name(shard)) for shard in range(NUM_SHARDS))


def expected_scores(model: Any, tokenizer: Any, d1: list[int], row: dict[str, Any]) -> tuple[float, float]:
    """NLL of d2 after <bos> d1 <related>, and how much more it is after <bos> <related>, a token; token by token from
    the model's own distribution."""
    bos, eos, related = tokenizer.convert_tokens_to_ids(["<|bos|>", "<|eos|>", "<|related|>"])
    d2 = row["input_ids"] + ([eos] if row["finish_reason"] == "stop" else [])

    def log_p(prompt: list[int]) -> float:
        total, ids = 0.0, list(prompt)
        for token in d2:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].double()
            total += float(torch.log_softmax(logits, 0)[token])
            ids.append(token)
        return total

    given, alone = log_p([bos, *d1, related]) / len(d2), log_p([bos, related]) / len(d2)
    return -given, given - alone


@pytest.fixture
def written(tmp_path: Path, tiny_synthesizer: Artifact) -> Written:
    return Written(tmp_path, tiny_synthesizer)


@pytest.fixture(scope="module")
def scorer(tiny_model_dir: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(tiny_model_dir)


def test_each_row_holds_its_scores_as_the_model_itself_gives_them(written: Written, scorer: tuple[Any, Any]) -> None:
    written.make_parts(min_gain_nats=-100)
    rows, stats = written.rows(), written.stats()
    assert len(rows) == NUM_SHARDS * DOCUMENTS * SAMPLES
    nll, gains = zip(*(expected_scores(*scorer, written.d1[row["d1_id"]], row) for row in rows), strict=True)
    assert [row["nll_nats"] for row in rows] == pytest.approx(nll, abs=2e-5)
    assert [row["gain_nats"] for row in rows] == pytest.approx(gains, abs=2e-5)
    assert max(gains) - min(gains) > 1e-3  # else the line above says little
    assert stats["scores"]["samples"] == len(rows)
    assert stats["scores"]["gain_nats"]["sum"] == pytest.approx(sum(gains), abs=1e-3)
    assert stats["scores"]["nll_nats"]["sum"] == pytest.approx(sum(nll), abs=1e-3)
    # Positions that were read: <bos> d1 <related> d2, and <bos> <related> d2, with <eos> where d2 ended by itself.
    ends = sum(row["finish_reason"] == "stop" for row in rows)
    read = sum(14 + 2 + 2 * len(row["input_ids"]) for row in rows) + 2 * ends
    assert stats["scores"]["tokens_scored"] == read


def test_a_manifest_says_how_the_scores_of_all_samples_lie(written: Written) -> None:
    """Of 24 samples, a tenth lies at the third smallest and half at the twelfth, each to 0.01 nats below."""
    written.make_parts(min_gain_nats=-100)
    summary = summarise_scores(written.stats()["scores"])
    for name in SCORES.names:
        values = sorted(row[name] for row in written.rows())
        assert summary[name]["mean"] == pytest.approx(sum(values) / 24, abs=1e-4)
        for share, place in (("10%", 3), ("50%", 12), ("90%", 22)):
            assert 0 <= values[place - 1] - summary[name][share] < 0.0101
    assert describe_scores(summary).startswith(f"nll_nats {summary['nll_nats']['mean']:.2f} on average, ")


def test_what_is_unlikely_is_dropped_in_one_pass_under_any_condition(written: Written, scorer: tuple[Any, Any]) -> None:
    """After <bos> alone, as the controls write, d1 is not scored at all."""
    written.make_parts(max_nll_nats=5.7, condition="none")
    kept, stats = written.rows(), written.stats()
    assert 0 < len(kept) < NUM_SHARDS * DOCUMENTS * SAMPLES
    assert stats["drops"] == {"unlikely": NUM_SHARDS * DOCUMENTS * SAMPLES - len(kept)}
    assert {row["gain_nats"] for row in kept} == {None}
    model, tokenizer = scorer
    for row in kept[:4]:
        end = [tokenizer.eos_token_id] if row["finish_reason"] == "stop" else []
        ids = torch.tensor([[tokenizer.bos_token_id, *row["input_ids"], *end]])
        with torch.no_grad():
            expected = float(model(ids, labels=ids).loss)
        assert row["nll_nats"] == pytest.approx(expected, abs=1e-4)
        assert row["nll_nats"] <= 5.7


def test_samples_below_the_limit_are_dropped_and_counted(written: Written, scorer: tuple[Any, Any]) -> None:
    written.make_parts(min_gain_nats=0.0)
    kept = written.rows()
    assert all(row["gain_nats"] >= 0 for row in kept)
    dropped = NUM_SHARDS * DOCUMENTS * SAMPLES - len(kept)
    assert 0 < dropped < NUM_SHARDS * DOCUMENTS * SAMPLES
    assert written.stats()["drops"] == {"low_gain": dropped}
    assert written.stats()["documents"] == len(kept)


def test_of_the_samples_of_each_d1_the_best_are_kept(tmp_path: Path, tiny_synthesizer: Artifact) -> None:
    every, best = (Written(tmp_path / name, tiny_synthesizer) for name in ("every", "best"))
    every.make_parts(min_gain_nats=-100)
    best.make_parts(keep_best=1)
    highest: dict[bytes, dict[str, Any]] = {}
    for row in every.rows():
        if row["gain_nats"] > highest.get(row["d1_id"], {"gain_nats": -100})["gain_nats"]:
            highest[row["d1_id"]] = row
    assert best.rows() == list(highest.values())
    assert best.stats()["drops"] == {"not_best": NUM_SHARDS * DOCUMENTS * (SAMPLES - 1)}


def test_the_best_may_be_the_likeliest(tmp_path: Path, tiny_synthesizer: Artifact) -> None:
    every, best = (Written(tmp_path / name, tiny_synthesizer) for name in ("every", "best"))
    every.make_parts(max_nll_nats=100)
    best.make_parts(keep_best=1, best_by="likelihood")
    likeliest: dict[bytes, dict[str, Any]] = {}
    for row in every.rows():
        if row["nll_nats"] < likeliest.get(row["d1_id"], {"nll_nats": 100})["nll_nats"]:
            likeliest[row["d1_id"]] = row
    assert best.rows() == list(likeliest.values())


@pytest.mark.parametrize("survivors", [0, 1, 2, 7, 8])
def test_a_killed_choice_goes_on_and_ends_alike(
    tmp_path: Path, tiny_synthesizer: Artifact, in_process: WorkedOn, survivors: int
) -> None:
    """Nine items: scores of two shards, bands of two shards and of their samples, one bucket, two parts."""
    alike, killed = (Written(tmp_path / name, tiny_synthesizer) for name in ("alike", "killed"))
    alike.make_parts(min_gain_nats=-0.01, keep_best=2)
    in_process.clear()
    in_process.interrupt_after(survivors)
    with pytest.raises(KeyboardInterrupt):
        killed.make_parts(min_gain_nats=-0.01, keep_best=2)
    killed.make_parts(min_gain_nats=-0.01, keep_best=2)
    assert len(in_process) == 9  # nothing twice
    assert killed.rows() == alike.rows()
    assert killed.stats()["drops"] == alike.stats()["drops"]


def test_whether_any_sample_is_good_is_asked_of_all_shards_after_a_kill_too(
    written: Written, in_process: WorkedOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part of the first shard is written, and its merged file has gone, when the job is killed."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(parts, "refuse_if_none_is_good", lambda cfg, stats: asked.append(stats))
    in_process.interrupt_after(8)
    with pytest.raises(KeyboardInterrupt):
        written.make_parts(min_gain_nats=-100)
    written.make_parts(min_gain_nats=-100)
    assert asked[0] == asked[1]


def test_without_a_setting_nothing_is_scored(written: Written, in_process: WorkedOn) -> None:
    written.make_parts()
    assert not [step for step, _ in in_process if "scores" in step]
    assert {(row["nll_nats"], row["gain_nats"]) for row in written.rows()} == {(None, None)}
    assert "scores" not in written.stats()


def test_a_limit_that_leaves_nothing_is_one_line_with_the_distribution(written: Written) -> None:
    with pytest.raises(
        SbpError, match=r"min_gain_nats=5\.0 keeps none of 24 samples, .* gain_nats .* on average.*--redo"
    ) as error:
        written.make_parts(min_gain_nats=5)
    assert "\n" not in str(error.value)


def test_only_what_is_kept_so_far_competes_and_the_earlier_of_equals_wins() -> None:
    """Two d1. Of the first the second sample is a copy, of the second all gains are equal."""
    gains = [0.1, 0.9, 0.2, 0.3, 0.5, 0.5, 0.5]
    scores = pa.Table.from_pylist([{"nll_nats": 1, "gain_nats": gain} for gain in gains], SCORES)
    d1 = np.array([b"a", b"a", b"a", b"a", b"b", b"b", b"b"])
    is_kept = np.array([True, False, True, True, True, True, True])
    chosen = choose_by_scores(
        SynthesizeConfig(samples_per_document=4, min_gain_nats=0.15, keep_best=1), scores, d1, is_kept
    )
    assert chosen["low_gain"].tolist() == [True, False, False, False, False, False, False]
    assert chosen["not_best"].tolist() == [False, False, True, False, False, True, True]


def test_a_gain_needs_d1(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"min_gain_nats.*condition=none"):
        SynthesizeConfig(condition="none", min_gain_nats=0)
    with pytest.raises(ValueError, match=r"keep_best \(3\) .* samples_per_document \(2\)"):
        SynthesizeConfig(samples_per_document=2, keep_best=3)
