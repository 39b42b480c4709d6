"""The endpoint with a real engine, asked over HTTP: what it answers, what it refuses, and how it fails."""

import contextlib
import json
import re
import socket
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import requests
from impatient_proxy import impatient_proxy
from processes import is_engine
from running_service import KEYS, MAX_BODY, SLOTS, WINDOW, Service, eventually, read_events

from sbp_ray.text.tokenizer import load_tokenizer, special_ids

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = {"document": "the long river", "n": SLOTS, "max_tokens": 240}  # takes every slot of the engine


# OpenAI's endpoints


def test_openai_client_lists_the_model(service: Service) -> None:
    [model] = service.client().models.list().data
    assert model.id == "synthesizer"
    assert model.max_model_len == WINDOW
    assert 0 <= time.time() - model.created < 3600
    assert service.client().models.retrieve("synthesizer").id == "synthesizer"
    with pytest.raises(openai.NotFoundError):
        service.client().models.retrieve("another")


def test_openai_client_completes_and_is_told_version_and_usage(service: Service) -> None:
    request = {"model": "synthesizer", "prompt": "the north", "max_tokens": 5, "n": 2, "seed": 1}
    answer = service.client().completions.create(**request, extra_body={"min_tokens": 5})  # no early end by chance
    assert answer.usage.completion_tokens == 10
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.system_fingerprint == "00c0ffee00c0ffee"
    assert answer.model_extra["seed"] == 1


def test_a_seed_that_was_drawn_is_told_and_gives_the_same_texts(service: Service) -> None:
    request = {"model": "synthesizer", "prompt": "the north", "max_tokens": 5, "n": 2}
    answer = service.client().completions.create(**request)
    assert answer.model_extra["seed"] < 2**53  # what a JavaScript client can send back unharmed
    again = service.client().completions.create(**request, seed=answer.model_extra["seed"])
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


def test_openai_client_streams_what_it_would_complete(service: Service) -> None:
    request = {"model": "synthesizer", "prompt": ["the north", [5, 6, 7]], "max_tokens": 8, "seed": 1}
    request["extra_body"] = {"min_tokens": 8}  # no early end by chance
    whole = service.client().completions.create(**request).choices
    texts = ["", ""]
    usage = None
    for chunk in service.client().completions.create(**request, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert texts == [choice.text for choice in whole]
    assert usage.completion_tokens == 16


def test_a_stop_text_ends_a_completion(service: Service) -> None:
    request = {"model": "synthesizer", "prompt": "the north", "max_tokens": 60, "seed": 1}
    request["extra_body"] = {"ignore_eos": True}  # no early end by chance
    text = service.client().completions.create(**request).choices[0].text
    stop = text[len(text) // 2]
    stopped = service.client().completions.create(**request, stop=[stop]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)], "stop")


def test_an_end_that_is_to_be_passed_over_is_a_token_like_others(service: Service) -> None:
    eos = special_ids(load_tokenizer(service.synthesizer.path("model"))).eos
    fields = {"ignore_eos": True, "logit_bias": {str(eos): 100}, "return_token_ids": True}
    request = {"model": "synthesizer", "prompt": "the", "max_tokens": 6, "extra_body": fields}
    whole = service.client().completions.create(**request)
    assert (whole.choices[0].token_ids, whole.usage.completion_tokens) == ([eos] * 6, 6)
    streamed = service.client().completions.create(**request, stream=True, stream_options={"include_usage": True})
    chunks = list(streamed)
    assert [token for chunk in chunks for choice in chunk.choices for token in choice.token_ids] == [eos] * 6
    assert chunks[-1].usage.completion_tokens == 6


def test_unknown_model_is_not_found(service: Service) -> None:
    with pytest.raises(openai.NotFoundError, match="synthesizer"):
        service.client().completions.create(model="another", prompt="the", max_tokens=1)


# vLLM's small endpoints


def test_a_text_has_the_tokens_that_a_completion_of_it_is_said_to_have(service: Service) -> None:
    told = service.post("/tokenize", {"model": "synthesizer", "prompt": "the north", "return_token_strs": True}).json()
    scored = service.client().completions.create(model="synthesizer", prompt="the north", max_tokens=0, echo=True)
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"]) == scored.usage.prompt_tokens
    assert told["max_model_len"] == WINDOW
    bare = service.post("/tokenize", {"prompt": "the north", "add_special_tokens": False}).json()["tokens"]
    assert told["tokens"][1:] == bare
    assert service.post("/detokenize", {"tokens": bare}).json() == {"prompt": "the north"}
    assert service.post("/detokenize", {"tokens": [10**6]}).json()["error"]["param"] == "tokens"
    assert service.post("/tokenize", {"model": "another", "prompt": "the"}).status_code == 404


def test_version_and_ping_are_those_of_vllm(service: Service) -> None:
    import vllm

    assert service.get("/version").json()["version"] == vllm.__version__
    assert service.get("/ping", key=None).status_code == 200


def test_the_metrics_page_counts_what_the_engine_wrote(service: Service) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def counted() -> Counter[str]:
        answer = service.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        sums = Counter[str]()
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                sums[sample.name] += sample.value
        return sums

    before = counted()["vllm:generation_tokens_total"]
    assert service.synthesize(document="the", n=4, max_tokens=30).status_code == 200
    eventually(lambda: counted()["vllm:generation_tokens_total"] > before, "the engine's tokens are counted")
    assert any(name.startswith("ray_serve_") for name in counted())


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
    events = read_events(response.text.splitlines())
    assert events[-1] == "[DONE]"
    answers = [json.loads(event) for event in events[:-1]]
    deltas = [delta for answer in answers for delta in answer["documents"]]
    for document in whole["documents"]:
        own = [delta for delta in deltas if delta["index"] == document["index"]]
        assert "".join(delta["text"] for delta in own) == document["text"]
        assert own[-1] | {"text": ""} == document | {"text": ""}
    assert answers[-1]["usage"] == whole["usage"]


def test_a_document_that_spells_out_a_mark_is_plain_text(service: Service) -> None:
    """Were the mark read as one token, the prompt would have four tokens: bos, mark, and related."""
    answer = service.synthesize(document="<|eos|>", max_tokens=1, seed=0).json()
    assert answer["usage"]["prompt_tokens"] == 2 + len("<|eos|>")


# Who may ask


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/synthesizer", "/openapi.json", "/metrics", "/nowhere"])
def test_without_a_key_there_is_nothing_to_see(service: Service, path: str) -> None:
    answers = [service.get(path, key) for key in (None, "", "wrong", KEYS[0][:-1], KEYS[0] + "x")]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.text for answer in answers} == {answers[0].text}  # never a hint why
    assert service.post("/v1/synthesize", {"document": "the"}, key="wrong").status_code == 401
    with pytest.raises(openai.AuthenticationError):
        service.client("wrong").models.list()


def test_keys_rotate_without_a_pause(service: Service) -> None:
    before, added = service.keys_file.read_text(), "a-key-that-was-added-later"
    assert all(service.get("/v1/models", key).status_code == 200 for key in KEYS)
    service.keys_file.write_text("\n".join([KEYS[0], added]))
    eventually(lambda: service.get("/v1/models", added).status_code == 200, "the new key holds")
    assert service.get("/v1/models", KEYS[1]).status_code == 401
    service.keys_file.write_text(before)
    eventually(lambda: service.get("/v1/models", KEYS[1]).status_code == 200, "the old key holds again")


def test_no_key_is_in_logs_metrics_or_serve_status(service: Service) -> None:
    import ray
    from ray import serve

    assert service.get("/v1/models").status_code == 200
    [core] = filter(is_engine, psutil.Process().children(recursive=True))
    of_ray = core.environ()["SBP_RAY_API_KEYS"]  # of every process of Ray, as with `ray start`
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    texts = [file.read_bytes() for file in session.rglob("*") if file.is_file() and not file.is_socket()]
    assert len(texts) > 10
    texts += [repr(serve.status()).encode(), metrics()]
    assert not any(key.encode() in text for key in (*KEYS, of_ray) for text in texts)


def metrics() -> bytes:
    """What the node's metrics endpoint says of the engine and of Serve."""
    import ray

    [node] = ray.nodes()

    def page() -> bytes:
        with contextlib.suppress(requests.ConnectionError):
            content = requests.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=240).content
            return content if b"SynthesizerIngress" in content else b""
        return b""

    return eventually(page, "Serve's metrics are there")


def test_no_other_origin_may_call_from_a_browser(service: Service) -> None:
    response = requests.get(f"{service.url}/health", headers={"Origin": "https://example.com"}, timeout=240)
    assert "access-control-allow-origin" not in response.headers


# What is refused


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
        ({"document": "the", "n": "2"}, "n"),
        ({"document": "the", "max_tokens": 0}, "max_tokens"),
        ({"document": "the", "temperature": -1}, "temperature"),
        ({"document": "the", "temperature": 2.01}, "temperature"),  # vLLM takes no more
        ({"document": "the", "temperature": float("nan")}, "temperature"),
        ({"document": "the", "top_p": 0}, "top_p"),
        ({"document": "the", "top_p": float("inf")}, "top_p"),
        ({"document": "the", "seed": -1}, "seed"),
        ({"document": "the", "seed": 2**63}, "seed"),
        ({"document": None}, "document"),
        ({"document": "the", "timeout_s": 0}, "timeout_s"),
        ({"document": "the", "tempurature": 1}, "tempurature"),
    ],
)
def test_a_malformed_request_is_refused_with_the_field_named(service: Service, body: dict, named: str) -> None:
    response = service.post("/v1/synthesize", body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"].startswith(f"{named}: ")
    assert "\n" not in error["message"]
    assert error["param"] == named


def test_a_prompt_is_scored_as_transformers_scores_it(service: Service) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(service.synthesizer.local_copy("model"), dtype=torch.float32)
    ids = [7, 11, 13, 17, 19]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    answer = service.client().completions.create(
        model="synthesizer", prompt=ids, max_tokens=0, echo=True, logprobs=2, extra_body={"return_token_ids": True}
    )
    [choice] = answer.choices
    assert choice.token_ids == ids
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(
        [expected[place, token].item() for place, token in enumerate(ids[1:])], abs=1e-4
    )
    likeliest = expected[0].topk(2).values.tolist()
    assert sorted(choice.logprobs.top_logprobs[1].values(), reverse=True)[:2] == pytest.approx(likeliest, abs=1e-4)
    assert answer.usage.completion_tokens == 0


def test_sampled_tokens_come_with_the_models_own_log_probabilities(service: Service) -> None:
    """Whoever samples: they are asked for at a temperature and with top_k, and are those of neither."""
    for shape in ({"temperature": 0.5}, {"temperature": 0.5, "extra_body": {"top_k": 3}}):
        written = service.client().completions.create(
            model="synthesizer", prompt=[7, 11], max_tokens=4, logprobs=1, seed=5, **_with_ids(shape)
        )
        [choice] = written.choices
        again = service.client().completions.create(
            model="synthesizer", prompt=[7, 11, *choice.token_ids], max_tokens=0, echo=True, logprobs=1
        )
        scored = again.choices[0].logprobs.token_logprobs[2:]
        assert choice.logprobs.token_logprobs == pytest.approx(scored, abs=1e-4)


def _with_ids(shape: dict[str, Any]) -> dict[str, Any]:
    return shape | {"extra_body": shape.get("extra_body", {}) | {"return_token_ids": True}}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "the", "logit_bias": {"1000000": 100}}, "logit_bias"),
        ({"prompt": "the", "suffix": "end"}, "suffix"),
        ({"prompt": "the", "min_tokens": 20, "max_tokens": 4}, "min_tokens"),
        ({"prompt": "the", "stop": ["a"] * 5}, "stop"),
        ({"prompt": "the", "top_k": 10**21}, "top_k"),
    ],
)
def test_a_malformed_completion_is_refused_with_the_field_named(service: Service, body: dict, named: str) -> None:
    response = service.post("/v1/completions", {"model": "synthesizer", **body})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(named)


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 2},
        {"temperature": 1e-320},
        {"temperature": 2, "top_p": 1e-300},
        {"frequency_penalty": 2, "presence_penalty": -2, "n": SLOTS, "temperature": 0},
        {"seed": 2**63 - 1, "timeout_s": 1e308},
        {"prompt": [0, 0], "stop": ["a" * 10_000]},
        {"top_k": 1, "min_p": 1, "repetition_penalty": 2, "logit_bias": {"5": 100, "6": -100}, "seed": 3},
    ],
)
def test_the_ends_of_what_is_allowed_are_answered(service: Service, extreme: dict) -> None:
    response = service.post("/v1/completions", {"model": "synthesizer", "prompt": "the", "max_tokens": 4} | extreme)
    assert response.status_code == 200, response.text
    assert all(choice["finish_reason"] in ("stop", "length") for choice in response.json()["choices"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_document_longer_than_the_window_is_refused_with_both_numbers(service: Service, stream: bool) -> None:
    response = service.synthesize(document="7" * 300, stream=stream)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "302 tokens" in message
    assert str(WINDOW) in message


def test_more_than_the_engine_can_ever_hold_is_refused_with_both_numbers(service: Service) -> None:
    response = service.synthesize(document="the", n=SLOTS + 1, max_tokens=5)
    assert response.status_code == 400
    assert f"{SLOTS + 1} sequences" in response.json()["error"]["message"]
    assert f"in {SLOTS}" in response.json()["error"]["message"]


@pytest.mark.parametrize("body", ["{", b'{"document": "\xff"}', "", "[" * 100_00, '{"document": 1e999999}'])
def test_a_body_that_is_not_json_is_refused(service: Service, body: str | bytes) -> None:
    response = service.post("/v1/synthesize", body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_body_over_the_limit_is_refused_whether_its_length_is_told_or_not(service: Service) -> None:
    big = {"document": "x" * MAX_BODY}
    assert service.post("/v1/synthesize", big).status_code == 413
    assert service.post("/v1/synthesize", b"x" * 100_000_000).status_code == 413
    headers = {"authorization": f"Bearer {KEYS[0]}", "content-type": "application/json"}
    parts = (b"x" * 1000 for _ in range(100))
    response = requests.post(f"{service.url}/v1/synthesize", data=parts, headers=headers, timeout=240)
    assert response.status_code == 413
    assert str(MAX_BODY) in response.json()["error"]["message"]


def test_wrong_methods_and_paths_are_refused(service: Service) -> None:
    assert service.get("/v1/synthesize").status_code == 405
    assert service.post("/health", {}).status_code == 405
    assert service.post("/v1/chat/completions", {}).status_code == 404
    assert service.get("/v1/chat/completions").json()["error"]["code"] == 404


def test_the_fuzzer_finds_no_5xx_and_no_answer_that_the_document_does_not_describe(service: Service) -> None:
    """schemathesis, from the service's own OpenAPI document; texts are kept short, so that it ends within a minute."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

    document = service.get("/openapi.json").json()
    for name in ("SynthesizeRequest", "CompletionRequest"):
        document["components"]["schemas"][name]["properties"]["max_tokens"] = {"type": "integer", "maximum": 4}
    schema = schemathesis.openapi.from_dict(document)
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    checks = [not_a_server_error, status_code_conformance, content_type_conformance]
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        valid = operation.as_strategy()
        broken = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        for cases in (valid, broken) if operation.body else (valid,):

            @settings(
                max_examples=40,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=cases)
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                case.call_and_validate(base_url=service.url, headers=headers, timeout=240, checks=checks)

            ask()
    assert asked > 100
    assert service.synthesize(document="the", max_tokens=3).status_code == 200


# How it waits


def test_a_stream_behind_an_impatient_proxy_outlives_a_wait_for_the_engine(service: Service) -> None:
    """The engine's process is stopped until two signs of life have come: to who waits it might as well be full.

    The proxy cuts what is silent for five seconds; a whole answer, of which nothing can come before its end, it cuts.
    """
    body = {"document": "the north", "max_tokens": 5, "seed": 1}
    [written] = service.synthesize(**body).json()["documents"]
    [core] = filter(is_engine, psutil.Process().children(recursive=True))
    with impatient_proxy(service.url, idle_s=5) as address:
        behind = service._replace(url=address)
        core.suspend()
        try:
            with pytest.raises(requests.ConnectionError):
                behind.synthesize(**body)
            stream = behind.post("/v1/synthesize", body | {"stream": True}, stream=True)
            lines = stream.iter_lines()
            for _ in range(2):
                assert next(line for line in lines if line) == b": waiting"
        finally:
            core.resume()
        events = read_events(line.decode() for line in lines)
    assert stream.headers["x-accel-buffering"] == "no"
    assert stream.headers["cache-control"] == "no-store"
    assert events[-1] == "[DONE]"
    documents = [document for event in events[:-1] for document in json.loads(event)["documents"]]
    assert "".join(document["text"] for document in documents) == written["text"]


def test_openais_client_reads_a_stream_that_waits_behind_an_impatient_proxy(service: Service) -> None:
    request = {"model": "synthesizer", "prompt": "the north", "max_tokens": 5, "seed": 1}
    whole = service.client().completions.create(**request).choices[0].text
    [core] = filter(is_engine, psutil.Process().children(recursive=True))
    with impatient_proxy(service.url, idle_s=5) as address:
        core.suspend()
        threading.Timer(8, core.resume).start()
        stream = service._replace(url=address).client().completions.create(**request, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == whole


# How it takes load


def test_a_full_service_refuses_at_once_and_says_when_to_ask_again(service: Service) -> None:
    before = service.load()["generated_tokens"]
    with service.post("/v1/synthesize", {**LONG, "stream": True}, stream=True) as first:
        assert first.status_code == 200
        refused = service.synthesize(document="the", n=SLOTS, max_tokens=200)  # fits once the last sample has ended
        written = service.load()["generated_tokens"] - before
        assert refused.status_code == 429, first.text
        assert int(refused.headers["retry-after"]) >= 1
        assert first.text.endswith("data: [DONE]\n\n")
        assert written < service.load()["generated_tokens"] - before  # it was not kept until the first one's end
    assert service.synthesize(document="the", max_tokens=2).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slots_in_the_engine(service: Service, stream: bool) -> None:
    body = json.dumps({"document": "the", "n": SLOTS, "max_tokens": 240, "seed": 1, "stream": stream})
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /v1/synthesize HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall((head + body).encode())
        eventually(lambda: service.load()["running"] > SLOTS // 2, "the engine works on it")
        written = service.load()["generated_tokens"]
    eventually(lambda: service.load()["running"] == 0, "the engine has stopped")
    assert service.load()["generated_tokens"] - written < SLOTS * 230  # it did not write to the end
    eventually(lambda: service.load()["tokens_in_flight"] == 0, "its room is free again")
    assert service.load()["sequences_in_flight"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_a_request_and_frees_its_slots(service: Service, stream: bool) -> None:
    before = service.load()["generated_tokens"]
    response = service.synthesize(document="the", n=SLOTS, max_tokens=240, timeout_s=0.2, stream=stream)
    lines = [line for line in response.text.splitlines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == 504  # of a stream that has begun, its last
    has_begun = len(lines) > 1
    assert response.status_code == (200 if has_begun else 504)
    assert stream or not has_begun
    assert service.load()["generated_tokens"] - before < SLOTS * 230  # it did not write to the end
    eventually(lambda: service.load()["running"] == 0, "the engine has stopped")
    eventually(lambda: service.load()["tokens_in_flight"] == 0, "its room is free again")


def test_slow_readers_stall_nobody_and_hold_no_more_than_their_text(service: Service) -> None:
    """Ten clients that never read an answer, one after the other: the engine is free again after each."""
    body = json.dumps({"document": "the", "n": 8, "max_tokens": 200, "stream": True})
    host, port = service.url.removeprefix("http://").split(":")
    head = f"POST /v1/synthesize HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    service.synthesize(document="the", max_tokens=2)
    before = _memory()
    readers = []
    try:
        for _ in range(10):
            written = service.load()["generated_tokens"]
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, int(port)))
            client.sendall((head + body).encode())
            readers.append(client)
            eventually(lambda since=written: service.load()["generated_tokens"] > since, "it is being written")
            eventually(lambda: service.load()["sequences_in_flight"] == 0, "nobody waits for its reader")
        assert service.synthesize(document="the", max_tokens=2).status_code == 200
        assert _memory() - before < 100 * 2**20
    finally:
        for client in readers:
            client.close()


def test_clients_that_do_not_send_what_they_announce_hold_up_nobody(service: Service) -> None:
    """100 of them, half in their headers and half in their body."""
    host, port = service.url.removeprefix("http://").split(":")
    head = f"POST /v1/synthesize HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS[0]}\r\nContent-Length: 100\r\n"
    with contextlib.ExitStack() as clients:
        for number in range(100):
            client = clients.enter_context(socket.create_connection((host, int(port))))
            client.sendall(head.encode() + (b"\r\n{" if number % 2 else b""))
        assert service.synthesize(document="the", max_tokens=2).status_code == 200
        assert service.load()["sequences_in_flight"] == 0
        assert service.get("/health", key=None).status_code == 200


def _memory() -> int:
    """Of all processes of this test's Ray, in bytes; shared pages count once."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def test_ten_times_the_capacity_is_refused_cleanly_and_the_admitted_keep_their_pace(service: Service) -> None:
    """Each request takes a quarter of the slots: 40 clients want in at any time where 4 have room.

    Pace is counted in tokens that the engine writes while a client waits, which nothing else on the machine changes: an
    admitted request shares the engine with three others; in a queue it would wait for 36.
    """
    _crowd(service, num_answers=8)  # connections, threads and buffers are made once
    before = _memory()
    asked, waited = _crowd(service, num_answers=32)
    assert set(asked) == {200, 429}
    assert asked[429] >= 40
    four_requests = SLOTS * 100
    assert 0 < statistics.median(waited) < 3 * four_requests  # behind 36 others it would be ten of these
    assert _memory() - before < 100 * 2**20
    eventually(lambda: service.load()["tokens_in_flight"] == 0, "its room is free again")


def _crowd(service: Service, num_answers: int) -> tuple[Counter[int], list[int]]:
    """40 clients ask again and again until so many answers have come: the statuses, and for each answer the tokens that
    the engine wrote between asking and answer."""
    asked, waited = Counter[int](), list[int]()
    body = {"document": "the river", "n": SLOTS // 4, "max_tokens": 100}

    def keep_asking(_client: int) -> None:
        while len(waited) < num_answers:
            written = service.load()["generated_tokens"]
            response = service.post("/v1/synthesize", body)
            asked[response.status_code] += 1
            if response.status_code == 200:
                waited.append(service.load()["generated_tokens"] - written)
            else:
                time.sleep(int(response.headers["retry-after"]))  # as it was told

    with ThreadPoolExecutor(max_workers=40) as clients:
        list(clients.map(keep_asking, range(40)))
    return asked, waited


@pytest.mark.long
def test_openais_client_with_its_default_retries_is_answered_at_three_times_the_capacity(service: Service) -> None:
    """Twelve clients, each of which wants a quarter of the slots, asks three times at most, and begins anew at once.

    Nine of ten get their answer in the mean of several runs (docs/operations.md); a single one has chance in it.
    """

    def num_answered(client: int) -> int:
        answered = 0
        for number in range(5):
            text = {"prompt": f"the river {client} {number}", "n": SLOTS // 4, "max_tokens": 60}
            with contextlib.suppress(openai.RateLimitError):
                openai.OpenAI(base_url=f"{service.url}/v1", api_key=KEYS[0]).completions.create(
                    model="synthesizer", **text
                )
                answered += 1
        return answered

    assert service.synthesize(document="the", max_tokens=2).status_code == 200  # the engine's pace is known now
    with ThreadPoolExecutor(max_workers=12) as clients:
        answered = sum(clients.map(num_answered, range(12)))
    print(f"{answered} of 60 answered")
    assert answered >= 0.8 * 60


# How it fails


def test_health_tells_ready_from_alive_and_a_dead_engine_is_replaced(service: Service) -> None:
    """Last: the engine is killed while it writes. Requests get an error that says to ask again, and the seed then draws
    the same document from the engine that took its place."""
    request = {"document": "the kings", "max_tokens": 12, "seed": 3}
    before = service.synthesize(**request).json()["documents"]
    assert service.get("/health", key=None).json() == {"status": "ready"}
    [core] = filter(is_engine, psutil.Process().children(recursive=True))
    with service.post("/v1/synthesize", {**LONG, "stream": True}, stream=True) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith(b"data: "))
        next(lines)
        core.kill()
        events = [line.removeprefix(b"data: ") for line in lines]
    assert events[-1] != b"[DONE]"
    error = json.loads(events[-1])["error"]
    assert (error["code"], error["type"]) == (503, "server_error")
    assert re.search("send the request again", error["message"])
    eventually(lambda: service.get("/health", key=None).status_code == 503, "it is not ready")
    assert service.get("/health/live", key=None).json() == {"status": "alive"}
    eventually(lambda: service.get("/health", key=None).status_code == 200, "it is ready again", timeout_s=300)
    assert service.synthesize(**request).json()["documents"] == before
