"""The service with a real engine: one tiny model behind Ray Serve, asked over HTTP and by the batch stage."""

import json
import re
import socket
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import openai
import psutil
import pyarrow as pa
import pytest
import requests

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, EngineConfig, Resources, SynthesizeConfig
from sbp_ray.engine.messages import sample_seed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WINDOW = 256
ENGINE = EngineConfig(
    dtype="float32",
    max_model_len=WINDOW,
    max_num_seqs=16,
    enforce_eager=True,
    kv_cache_gib=0.1,
    resources=Resources(num_cpus=2),
)


class Service(NamedTuple):
    url: str
    synthesizer: Artifact

    def synthesize(self, **body: Any) -> requests.Response:
        return requests.post(f"{self.url}/v1/synthesize", json=body, timeout=120)

    def client(self, api_key: str = "unused") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0)


@pytest.fixture(scope="module")
def service(local_ray: None, tiny_synthesizer: Artifact) -> Iterator[Service]:
    from ray import serve

    from sbp_ray.engine.deploy import build_app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_app(ENGINE, tiny_synthesizer), name="synthesizer")
    yield Service(f"http://127.0.0.1:{port}", tiny_synthesizer)
    serve.shutdown()


# OpenAI's endpoints


def test_openai_client_lists_the_model(service: Service) -> None:
    [model] = service.client().models.list().data
    assert model.id == "synthesizer"
    assert service.client().models.retrieve("synthesizer").id == "synthesizer"


def test_openai_client_completes(service: Service) -> None:
    answer = service.client().completions.create(model="synthesizer", prompt="the north", max_tokens=5, seed=1)
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


def test_openai_client_streams_what_it_would_complete(service: Service) -> None:
    request = {"model": "synthesizer", "prompt": "the north", "max_tokens": 8, "seed": 1}
    whole = service.client().completions.create(**request).choices[0].text
    pieces = [chunk.choices[0].text for chunk in service.client().completions.create(**request, stream=True)]
    assert "".join(pieces) == whole


def test_completions_need_no_key(service: Service) -> None:
    body = {"model": "synthesizer", "prompt": "the", "max_tokens": 1}
    assert requests.post(f"{service.url}/v1/completions", json=body, timeout=60).status_code == 200


def test_unknown_model_is_not_found(service: Service) -> None:
    with pytest.raises(openai.NotFoundError):
        service.client().completions.create(model="another", prompt="the", max_tokens=1)


# Synthesize


def test_synthesize_writes_n_different_documents(service: Service) -> None:
    answer = service.synthesize(document="the rivers", n=3, max_tokens=12, seed=7).json()
    assert answer["synthesizer"] == "00c0ffee00c0ffee"
    assert [document["index"] for document in answer["documents"]] == [0, 1, 2]
    assert len({document["text"] for document in answer["documents"]}) == 3
    assert {document["finish_reason"] for document in answer["documents"]} <= {"stop", "length"}
    written = sum(document["num_tokens"] for document in answer["documents"])
    assert answer["usage"]["completion_tokens"] == written
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + written


def test_equal_seeds_draw_equal_documents_however_many(service: Service) -> None:
    request = {"document": "the kings", "max_tokens": 12}
    one = service.synthesize(**request, n=1, seed=3).json()["documents"]
    three = service.synthesize(**request, n=3, seed=3).json()["documents"]
    other = service.synthesize(**request, n=1, seed=4).json()["documents"]
    assert three[0] == one[0]
    assert other[0]["text"] != one[0]["text"]


def test_an_answer_tells_the_seed_that_repeats_it(service: Service) -> None:
    first = service.synthesize(document="the sea", max_tokens=12).json()
    again = service.synthesize(document="the sea", max_tokens=12, seed=first["seed"]).json()
    assert again["documents"] == first["documents"]


def test_a_stream_holds_what_the_whole_answer_holds(service: Service) -> None:
    request = {"document": "the kings", "n": 2, "max_tokens": 12, "seed": 3}
    whole = service.synthesize(**request).json()
    response = service.synthesize(**request, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    answers = [json.loads(event) for event in events[:-1]]
    pieces = [piece for answer in answers for piece in answer["documents"]]
    for document in whole["documents"]:
        own = [piece for piece in pieces if piece["index"] == document["index"]]
        assert "".join(piece["text"] for piece in own) == document["text"]
        assert own[-1] | {"text": ""} == document | {"text": ""}
    assert answers[-1]["usage"] == whole["usage"]


def test_a_document_that_spells_out_a_mark_is_plain_text(service: Service) -> None:
    """Were the mark read as one token, the prompt would have four tokens: bos, mark, and related."""
    answer = service.synthesize(document="<|eos|>", max_tokens=1, seed=0).json()
    assert answer["usage"]["prompt_tokens"] == 2 + len("<|eos|>")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"document": ""}, "document"),
        ({"document": "  \n"}, "document"),
        ({"document": 5}, "document"),
        ({}, "document"),
        ({"document": "\ud800"}, "document"),
        ({"document": "the", "n": 0}, "n"),
        ({"document": "the", "n": 1_000_000}, "n"),
        ({"document": "the", "max_tokens": 0}, "max_tokens"),
        ({"document": "the", "temperature": -1}, "temperature"),
        ({"document": "the", "temperature": float("nan")}, "temperature"),
        ({"document": "the", "top_p": 0}, "top_p"),
        ({"document": "the", "top_p": float("inf")}, "top_p"),
        ({"document": "the", "seed": -1}, "seed"),
        ({"document": "the", "seed": 2**63}, "seed"),
        ({"document": "the", "tempurature": 1}, "tempurature"),
    ],
)
def test_a_malformed_request_is_refused_with_the_field_named(service: Service, body: dict, named: str) -> None:
    response = requests.post(
        f"{service.url}/v1/synthesize", data=json.dumps(body), headers={"content-type": "application/json"}, timeout=60
    )
    assert response.status_code == 422
    assert response.json()["error"]["message"].startswith(f"{named}: ")


@pytest.mark.parametrize("stream", [False, True])
def test_a_document_longer_than_the_window_is_refused_with_both_numbers(service: Service, stream: bool) -> None:
    response = service.synthesize(document="7" * 300, stream=stream)
    assert response.status_code == 422
    message = response.json()["error"]["message"]
    assert "302 tokens" in message
    assert "256" in message


def test_broken_bodies_and_wrong_methods_are_refused(service: Service) -> None:
    url = f"{service.url}/v1/synthesize"
    as_json = {"content-type": "application/json"}
    assert requests.post(url, data="{", headers=as_json, timeout=60).status_code == 422
    assert requests.post(url, data=b'{"document": "\xff"}', headers=as_json, timeout=60).status_code in (400, 422)
    assert requests.get(url, timeout=60).status_code == 405


def test_no_other_origin_may_call_from_a_browser(service: Service) -> None:
    response = requests.get(f"{service.url}/v1/models", headers={"Origin": "https://example.com"}, timeout=60)
    assert "access-control-allow-origin" not in response.headers


# The batch stage, on the same engine


@pytest.fixture(scope="module")
def corpus(tiny_synthesizer: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """23 short documents and one that the window cannot hold, in two shards."""
    from sbp_ray.text.tokenizer import encode_texts, load_tokenizer

    tokenizer = load_tokenizer(tiny_synthesizer.path("model"))
    texts = [f"the river number {number} of the north" for number in range(23)] + ["7" * 300]
    artifact = Artifact("corpus", str(tmp_path_factory.mktemp("run") / "1_corpus"))
    rows = [
        {"doc_id": blake2b(text.encode(), digest_size=16).hexdigest(), "group": "", "text": text, "input_ids": ids}
        for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True)
    ]
    for shard in range(2):
        own = sorted((row for row in rows if int(row["doc_id"][:8], 16) % 2 == shard), key=lambda row: row["doc_id"])
        artifact.write_table(f"train/part-{shard:05d}.parquet", pa.Table.from_pylist(own, schema=schema.DOCUMENT))
    return artifact


def test_every_sample_is_a_row_or_a_counted_drop_and_a_rerun_does_nothing(
    service: Service, corpus: Artifact, new_artifact: Any
) -> None:
    from sbp_ray.stages.synthesize import synthesize_documents

    cfg = SynthesizeConfig(samples_per_document=3, max_tokens=100, min_tokens=2, seed=5, max_in_flight=8)
    out = new_artifact("synthetic")
    made_from = {"decontaminate": DecontaminateConfig(), "corpus": corpus, "synthesizer": service.synthesizer}
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
    assert len({(row["d1_id"], row["sample"]) for row in rows}) == len(rows)
    for row in rows:
        assert row["finish_reason"] == "stop"
        assert row["seed"] == sample_seed(5, row["d1_id"], row["sample"])
        assert row["synthesizer"] == "00c0ffee00c0ffee"

    before = [out.fs.get_file_info(out.path(file)).mtime for file in files]
    assert synthesize_documents(cfg, **inputs) == stats
    assert [out.fs.get_file_info(out.path(file)).mtime for file in files] == before


def test_a_missing_shard_is_drawn_again_the_same(service: Service, corpus: Artifact, new_artifact: Any) -> None:
    from sbp_ray.stages.synthesize import synthesize_documents

    cfg = SynthesizeConfig(num_documents=10, max_tokens=20, min_tokens=2, keep_unfinished=True)
    out = new_artifact("synthetic")
    made_from = {"decontaminate": DecontaminateConfig(), "corpus": corpus, "synthesizer": service.synthesizer}
    inputs = {"engine": ENGINE, "out": out, **made_from}
    stats = synthesize_documents(cfg, **inputs)
    assert stats["d1"] == 10
    whole = out.read_table("part-00001.parquet")
    out.fs.delete_file(out.path("part-00001.parquet"))
    assert synthesize_documents(cfg, **inputs) == stats
    assert out.read_table("part-00001.parquet").equals(whole)


def test_a_synthetic_document_that_an_evaluation_set_shares_is_dropped(
    service: Service, corpus: Artifact, new_artifact: Any, tmp_path: Path
) -> None:
    """The same draws twice: the second time, a text of the first is in an evaluation set."""
    from sbp_ray.stages.synthesize import synthesize_documents

    cfg = SynthesizeConfig(num_documents=10, max_tokens=100, min_tokens=2, keep_unfinished=True)
    inputs = {"engine": ENGINE, "corpus": corpus, "synthesizer": service.synthesizer}
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


def test_an_engine_that_dies_is_replaced_and_the_seed_draws_the_same(service: Service) -> None:
    request = {"document": "the kings", "max_tokens": 12, "seed": 3}
    before = service.synthesize(**request).json()["documents"]
    ours = psutil.Process().children(recursive=True)
    [core] = [process for process in ours if "EngineCore" in process.name()]
    core.kill()
    core.wait(30)
    deadline = time.monotonic() + 300
    while True:
        response = service.synthesize(**request)
        if response.status_code == 200:
            break
        assert response.status_code >= 500  # the engine's fault, and said to be
        assert time.monotonic() < deadline
    assert response.json()["documents"] == before
