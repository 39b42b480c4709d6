"""Drives one client that others wrote, as its own documentation shows, and prints what it got as JSON.

Runs in the clients' environment: `python drive_clients.py CLIENT URL KEY MODEL_FOLDER`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

PROMPT = "the north"
# A small model may end its text at once, and an empty text would not show that it arrived.
NOT_EMPTY = {"min_tokens": 5}


def langchain(url: str, key: str, folder: str) -> dict[str, Any]:
    from langchain_openai import OpenAI

    llm = OpenAI(model="synthesizer", base_url=f"{url}/v1", api_key=key, max_tokens=5, extra_body=NOT_EMPTY)
    return {"texts": [llm.invoke(PROMPT), "".join(llm.stream(PROMPT))]}


def litellm(url: str, key: str, folder: str) -> dict[str, Any]:
    import litellm as client

    options = {"prompt": PROMPT, "api_base": f"{url}/v1", "api_key": key, "max_tokens": 5, "extra_body": NOT_EMPTY}
    whole = client.text_completion(model="text-completion-openai/synthesizer", n=2, logprobs=1, **options)
    stream = client.text_completion(model="text-completion-openai/synthesizer", stream=True, **options)
    streamed = "".join(event.choices[0].text or "" for event in stream)
    return {"texts": [*(choice.text for choice in whole.choices), streamed]}


def llama_index(url: str, key: str, folder: str) -> dict[str, Any]:
    from llama_index.llms.openai_like import OpenAILike

    extra = {"extra_body": NOT_EMPTY}
    llm = OpenAILike(
        model="synthesizer",
        api_base=f"{url}/v1",
        api_key=key,
        is_chat_model=False,
        max_tokens=5,
        additional_kwargs=extra,
    )
    return {"texts": [llm.complete(PROMPT).text, "".join(part.delta for part in llm.stream_complete(PROMPT))]}


def lm_eval(url: str, key: str, folder: str) -> dict[str, Any]:
    import os

    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    os.environ["OPENAI_API_KEY"] = key
    model = LocalCompletionsAPI(
        model="synthesizer", base_url=f"{url}/v1/completions", tokenizer=folder, max_length=256, batch_size=2
    )
    pairs = [("the long", " river"), ("the sea", " and the north"), ("7", "8")]
    scores = model.loglikelihood([Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)])
    request = (PROMPT, {"until": ["."], "max_gen_toks": 5})
    texts = model.generate_until([Instance("generate_until", {}, request, 0)])
    return {"texts": texts, "pairs": pairs, "scores": scores}


def vllm_bench(url: str, key: str, folder: str) -> dict[str, Any]:
    """vLLM's own benchmark of servers; it is in the project's environment."""
    from argparse import ArgumentParser

    from vllm.benchmarks.serve import add_cli_args, main

    parser = ArgumentParser()
    add_cli_args(parser)
    target = ["--backend=openai", f"--base-url={url}", "--model=synthesizer", f"--tokenizer={folder}"]
    load = ["--dataset-name=random", "--num-prompts=4", "--random-input-len=8", "--random-output-len=8"]
    return main(parser.parse_args([*target, *load, "--header", f"Authorization=Bearer {key}"]))


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
