"""The endpoint, called by clients that others wrote, in the environment that `make clients` sets up."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running_service import KEYS, Service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPO = Path(__file__).parents[2]
PYTHON = REPO / ".venv-clients" / "bin" / "python"


def driven(client: str, service: Service, python: Path = PYTHON) -> dict[str, Any]:
    if not python.exists():
        pytest.skip("the clients are not installed: run `make clients`")
    folder = service.synthesizer.local_copy("model")
    script = Path(__file__).with_name("drive_clients.py")
    return told([python, script, client, service.url, KEYS[0], folder])


def told(words: list[Any], **environment: str) -> dict[str, Any]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("client", ["langchain", "litellm", "llama_index"])
def test_a_client_with_its_defaults_gets_text_whole_and_as_a_stream(service: Service, client: str) -> None:
    texts = driven(client, service)["texts"]
    assert len(texts) >= 2
    assert all(texts)


def test_openais_client_for_node_streams_what_it_would_complete(service: Service) -> None:
    node, modules = shutil.which("node"), REPO / ".venv-clients" / "node_modules"
    if node is None or not (modules / "openai").exists():
        pytest.skip("OpenAI's client for Node is not installed: run `make clients` where there is npm")
    script = Path(__file__).with_name("drive_openai.cjs")
    got = told([node, script, service.url, KEYS[0]], NODE_PATH=str(modules))
    assert got["texts"] == got["whole"]
    assert got["usage"]["completion_tokens"] <= 16
    assert got["models"] == ["synthesizer"]
    assert got["wrong"] == [404, "model"]


def test_lm_eval_scores_over_the_endpoint_what_transformers_scores_on_the_folder(service: Service) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    got = driven("lm_eval", service)
    assert all(got["texts"])
    folder = service.synthesizer.local_copy("model")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    for (context, continuation), (score, _) in zip(got["pairs"], got["scores"], strict=True):
        start = len(tokenizer(context, add_special_tokens=False).input_ids)
        ids = torch.tensor([tokenizer(context + continuation, add_special_tokens=False).input_ids])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert score == pytest.approx(logprobs[start - 1 :].sum().item(), abs=1e-3)


def test_vllms_own_benchmark_of_servers_fails_no_request(service: Service) -> None:
    result = driven("vllm_bench", service, Path(sys.executable))
    assert (result["completed"], result["failed"]) == (4, 0)
