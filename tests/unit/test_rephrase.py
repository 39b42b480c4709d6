"""An outside model that rewrites: a worker of the synthesize stage against a real HTTP server in this process."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from chat_endpoint import ChatEndpoint, completion
from fake_engines import LocalCoordinator

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.config import (
    DecontaminateConfig,
    EngineConfig,
    RephraseConfig,
    SynthesizeConfig,
    SynthesizeResources,
)
from sbp_ray.errors import Outcome, SbpError
from sbp_ray.generation import rephraser
from sbp_ray.generation.merging import merged_name
from sbp_ray.generation.rephraser import make_prompt, require_rephraser
from sbp_ray.generation.segments import count_done
from sbp_ray.generation.shard_worker import Inputs, ShardWorker
from sbp_ray.shards import shard_name
from sbp_ray.text.tokenizer import encode_texts, train_tokenizer

DOCUMENTS, SAMPLES = 4, 3
TEXTS = [f"the river number {number} is long" for number in range(DOCUMENTS)]
IDS = [bytes([0, 0, 0, 0, number]) + bytes(11) for number in range(DOCUMENTS)]
ASKED = re.compile(r"number (\d+)")


@pytest.fixture
def endpoint() -> Iterator[ChatEndpoint]:
    made = ChatEndpoint()
    yield made
    made.stop()


class Stage:
    """A corpus of one shard, its pairs, and a worker that has it rewritten."""

    def __init__(self, folder: Path, endpoint: ChatEndpoint) -> None:
        self.corpus, self.pairs, self.out = (
            Artifact(name, str(folder / name)) for name in ("corpus", "pairs", "synthetic")
        )
        self._endpoint = endpoint
        tokenizer = train_tokenizer(TEXTS, 300)
        tokenizer.save_pretrained(self.corpus.path("tokenizer"))
        tokens = encode_texts(tokenizer, TEXTS)
        rows = [
            {"doc_id": i, "group": "", "text": text, "input_ids": ids}
            for i, text, ids in zip(IDS, TEXTS, tokens, strict=True)
        ]
        self.corpus.write_table(shard_name("train", 0), pa.Table.from_pylist(rows, schema.DOCUMENT))
        related = [(0, 2), (0, 3), (1, 0), (2, 0)]  # of 3 there is none
        pairs = [{"d1_id": IDS[a], "d2_id": IDS[b], "cosine": 0.9, "jaccard": 0.1} for a, b in related]
        self.pairs.write_table(shard_name("train", 0), pa.Table.from_pylist(pairs, schema.PAIR))

    def config(self, *, of: str = "d1", give_up_after_s: float = 60, **resources: Any) -> SynthesizeConfig:
        where = {"base_url": self._endpoint.base_url, "timeout_s": 30, "at_once": 2} | resources
        return SynthesizeConfig(
            samples_per_document=SAMPLES, max_tokens=200, min_tokens=1, max_repetition=1, max_copy=1,
            rephrase=RephraseConfig.model_validate({"model": "teller", "of": of, "resources": where}),
            resources=SynthesizeResources(commit_every_s=0.02, give_up_after_s=give_up_after_s),
        )  # fmt: skip

    def run(self, cfg: SynthesizeConfig) -> Outcome:
        inputs = Inputs(
            cfg, EngineConfig(), DecontaminateConfig(), 13, self.corpus, None, self.out, "", 10**6, LocalCoordinator(1),
            self.pairs if cfg.rephrase and cfg.rephrase.of == "pair" else None,
        )  # fmt: skip

        async def call() -> Outcome:
            async with asyncio.timeout(240):
                answer = await ShardWorker(inputs)({"shard": 0, "quota": DOCUMENTS})
                return Outcome(*json.loads(answer["outcome"]))

        return asyncio.run(call())

    def rows(self) -> list[dict[str, Any]]:
        return self.out.read_table(merged_name(0)).to_pylist()


@pytest.fixture
def stage(tmp_path: Path, endpoint: ChatEndpoint) -> Stage:
    return Stage(tmp_path, endpoint)


def retold(endpoint: ChatEndpoint) -> Callable[[str], Any]:
    """Each sample has a text of its own, which follows from its d1 and its seed."""
    lock, seeds = threading.Lock(), iter(range(10**6))

    def says(prompt: str) -> Any:
        with lock:
            return completion(f"told {ASKED.findall(prompt)[0]} by {next(seeds)}")

    return says


def test_each_sample_is_written_once_by_the_outside_model_and_its_tokens_are_counted_apart(stage, endpoint) -> None:
    """12 answers of 100 and 10 tokens each, as the endpoint counts them."""
    endpoint.says = retold(endpoint)
    stats = stage.run(stage.config()).get()
    assert stats["samples"] == stats["documents"] == DOCUMENTS * SAMPLES == len(endpoint.prompts)
    assert stats["outside"] == {"input_tokens": 1200, "output_tokens": 120}
    rows = stage.rows()
    assert [(row["d1_id"], row["sample"]) for row in rows] == [(i, sample) for i in IDS for sample in range(SAMPLES)]
    assert all(row["text"].startswith(f"told {row['d1_id'][4]} by ") for row in rows)
    assert {row["synthesizer"] for row in rows} == {"teller"} and {row["round"] for row in rows} == {1}
    assert {body["seed"] for body in endpoint.bodies} == {row["seed"] for row in rows}
    assert {(body["model"], body["max_tokens"], body["top_p"]) for body in endpoint.bodies} == {("teller", 200, 0.9)}


def test_after_an_interruption_no_sample_is_asked_for_again_that_was_there(stage, endpoint) -> None:
    """The key is refused after seven answers: what came by then is kept, and the rest is asked for later."""
    says, lock, left = retold(endpoint), threading.Lock(), [7]

    def refuses_in_the_end(prompt: str) -> Any:
        with lock:
            left[0] -= 1
            if left[0] < 0:
                return 401
        return says(prompt)

    endpoint.says = refuses_in_the_end
    with pytest.raises(SbpError, match=r"refuses teller with 401 .*: mend base_url or model, or set REPHRASE_API_KEY"):
        stage.run(stage.config()).get()
    done = count_done(stage.out, [0])
    assert 0 < done <= 7
    before = {row["seed"] for row in _segments(stage.out)}
    endpoint.says, endpoint.bodies = says, []
    stats = stage.run(stage.config()).get()
    assert stats["samples"] == DOCUMENTS * SAMPLES
    assert len(endpoint.bodies) == DOCUMENTS * SAMPLES - done
    assert not before & {body["seed"] for body in endpoint.bodies}
    assert len({row["doc_id"] for row in stage.rows()}) == DOCUMENTS * SAMPLES


def _segments(out: Artifact) -> list[dict[str, Any]]:
    names = out.files("segments/part-00000", ".parquet")
    return [row for name in names for row in out.read_table(name).to_pylist()]


def test_pairs_are_rewritten_with_the_nearest_related_documents_in_turn(stage, endpoint) -> None:
    endpoint.says = retold(endpoint)
    stats = stage.run(stage.config(of="pair")).get()
    asked = sorted(tuple(map(int, ASKED.findall(prompt))) for prompt in endpoint.prompts)
    assert asked == [(0, 2), (0, 2), (0, 3), (1, 0), (1, 0), (1, 0), (2, 0), (2, 0), (2, 0)]
    assert stats["drops"] == {"no_pair": SAMPLES}  # of document 3, which is nobody's d1
    assert stats["documents"] == 9


def test_a_busy_or_broken_endpoint_is_asked_again(stage, endpoint, monkeypatch) -> None:
    monkeypatch.setattr(rephraser, "_LONGEST_PAUSE_S", 0.01)
    says, failures, lock = retold(endpoint), iter([429, 500, 503, 408]), threading.Lock()

    def fails_at_first(prompt: str) -> Any:
        with lock:
            return next(failures, None) or says(prompt)

    endpoint.says = fails_at_first
    stats = stage.run(stage.config()).get()
    assert (stats["documents"], stats["drops"]) == (DOCUMENTS * SAMPLES, {})
    assert len(endpoint.prompts) == DOCUMENTS * SAMPLES + 4


TRIAL = "Aldern"  # stands in the sentence that tells whether the endpoint answers at all


def test_an_outage_that_is_longer_than_a_sample_is_worth_loses_none(stage, endpoint, monkeypatch) -> None:
    """A hundred failures are some fifty for each of the two samples that are asked for at once."""
    monkeypatch.setattr(rephraser, "_LONGEST_PAUSE_S", 0.001)
    says, failures, lock = retold(endpoint), iter([503, 429] * 50), threading.Lock()

    def is_away(prompt: str) -> Any:
        with lock:
            return next(failures, None) or (completion("yes") if TRIAL in prompt else says(prompt))

    endpoint.says = is_away
    stats = stage.run(stage.config()).get()
    assert (stats["documents"], stats["drops"]) == (DOCUMENTS * SAMPLES, {})


def test_a_sample_at_which_an_endpoint_fails_that_answers_others_is_given_up(stage, endpoint, monkeypatch) -> None:
    monkeypatch.setattr(rephraser, "_LONGEST_PAUSE_S", 0.001)
    says = retold(endpoint)
    endpoint.says = lambda prompt: (
        503 if "number 0" in prompt else completion("yes") if TRIAL in prompt else says(prompt)
    )
    stats = stage.run(stage.config()).get()
    assert stats["drops"] == {"refused_by_engine": SAMPLES}
    listed = [json.loads(line) for line in stage.out.read_bytes("quarantine/part-00000.jsonl").splitlines()]
    assert [row["detail"] for row in listed] == ["status 503, 20 times"] * SAMPLES


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (completion(None, refusal="No."), "refused"),
        (completion("  "), "an empty answer"),
        ({"hello": 1}, "nonsense"),
        (400, "status 400"),
    ],
)
def test_an_answer_without_a_text_is_a_drop_with_its_reason_in_quarantine(stage, endpoint, said, detail) -> None:
    endpoint.says = lambda prompt: said if "number 1" in prompt else completion("the river is told anew")
    stats = stage.run(stage.config()).get()
    assert stats["drops"] == {"refused_by_engine": SAMPLES}
    listed = [json.loads(line) for line in stage.out.read_bytes("quarantine/part-00000.jsonl").splitlines()]
    assert {(row["d1_id"], row["detail"]) for row in listed} == {(IDS[1].hex(), detail)}


def test_what_came_to_the_limit_of_tokens_is_unfinished(stage, endpoint) -> None:
    endpoint.says = lambda prompt: completion("the river goes on and", finish="length")
    assert stage.run(stage.config()).get()["drops"] == {"unfinished": DOCUMENTS * SAMPLES}


def test_an_endpoint_that_is_gone_ends_the_job_in_one_line(stage, endpoint, monkeypatch) -> None:
    monkeypatch.setattr(rephraser, "_LONGEST_PAUSE_S", 0.01)
    cfg = stage.config(base_url="http://127.0.0.1:9/v1", give_up_after_s=0.05)
    with pytest.raises(SbpError) as error:
        stage.run(cfg).get()
    assert re.fullmatch(
        r"synthesize.rephrase: http://127.0.0.1:9/v1 has not answered for .* \(last: could not be reached\): mend that "
        r"and run the same command again to go on",
        str(error.value),
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (completion("I would: gladly"), None),
        (completion(None, refusal="No."), "did not rewrite a sentence (refused): mend model, resources.base_url"),
        (completion(""), "did not rewrite a sentence (an empty answer)"),
        ({"hello": 1}, "did not rewrite a sentence (nonsense)"),
        (503, "did not rewrite a sentence (status 503)"),
        (404, "refuses teller with 404"),
        (5.0, "did not rewrite a sentence (timed out)"),
    ],
)
def test_whether_there_is_an_outside_model_is_known_before_hours_are_spent(stage, endpoint, said, words) -> None:
    endpoint.says = lambda prompt: said
    cfg = stage.config(timeout_s=0.3 if isinstance(said, float) else 30)
    if words is None:
        require_rephraser(cfg)
        return
    with pytest.raises(SbpError) as error:
        require_rephraser(cfg)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("synthesize.rephrase: ")


def test_the_trial_has_every_field_that_samples_have_and_their_sampling(stage, endpoint) -> None:
    """An endpoint may refuse a field: that has to be known before samples are spent."""
    cfg = stage.config().model_copy(update={"temperature": 0.7, "top_p": 0.9})
    require_rephraser(cfg)
    stage.run(cfg)
    trial, *samples = endpoint.bodies
    assert len(samples) == DOCUMENTS * SAMPLES
    assert {frozenset(body) for body in samples} == {frozenset(trial)}
    assert {(body["temperature"], body["top_p"], type(body["seed"])) for body in endpoint.bodies} == {(0.7, 0.9, int)}


def test_an_outside_model_that_is_not_there_is_one_line(stage) -> None:
    with pytest.raises(SbpError, match=r"did not rewrite a sentence \(could not be reached\)"):
        require_rephraser(stage.config(base_url="http://127.0.0.1:9/v1"))


def test_documents_stand_where_the_instruction_says_and_their_own_braces_stay() -> None:
    cfg = RephraseConfig.model_validate(
        {"model": "m", "of": "pair", "instruction": "{d2} after {d1}", "resources": {"base_url": "u"}}
    )
    assert make_prompt(cfg, {"d1": "a {d2} {x}", "d2": "b {d1}"}) == "b {d1} after a {d2} {x}"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_gain_nats": 0.1}, "min_gain_nats is the synthesizer's, and with rephrase there is none"),
        ({"keep_best": 1}, "keep_best is the synthesizer's"),
        ({"condition": "none"}, "condition is the synthesizer's"),
        ({"finished_of": "x"}, "finished_of is the synthesizer's"),
    ],
)
def test_what_only_a_synthesizer_has_is_refused(settings: dict[str, Any], words: str) -> None:
    rephrase = {"model": "m", "resources": {"base_url": "u"}}
    with pytest.raises(ValueError, match=words):
        SynthesizeConfig.model_validate({"rephrase": rephrase, **settings})
    with pytest.raises(ValueError, match=r"instruction has no \{d2\}"):
        RephraseConfig.model_validate({**rephrase, "of": "pair", "instruction": "{d1}"})
