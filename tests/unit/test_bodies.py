"""The bodies of requests: what other people's clients send, and what is said of a wrong one."""

from typing import Any

import pytest
from pydantic import ValidationError

from sbp_ray.engine.bodies import CompletionRequest, SynthesizeRequest, first_fault

PLAIN = {"model": "synthesizer", "prompt": "hi"}

NULLABLE = """logprobs echo best_of suffix logit_bias temperature top_p n frequency_penalty presence_penalty stream stop
    seed stream_options user top_k min_p max_tokens unheard_of"""
NEUTRAL = [{name: None} for name in NULLABLE.split()] + [
    {"echo": False},
    {"n": 3, "best_of": 3},
    {"suffix": ""},
    {"logit_bias": {}},
    {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0, "add_special_tokens": True, "ignore_eos": False},
    {"stream": True, "stream_options": {"include_obfuscation": False, "include_usage": None}},
    # langchain's OpenAI() with nothing set
    {
        "frequency_penalty": 0,
        "logprobs": None,
        "max_tokens": 256,
        "n": 1,
        "presence_penalty": 0,
        "seed": None,
        "top_p": 1,
    },
    # vLLM's own benchmark of a server
    {"repetition_penalty": 1.0, "logprobs": None, "ignore_eos": True, "temperature": 0.0, "max_tokens": 8},
    # guidellm
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "ignore_eos": True},
]


@pytest.mark.parametrize("fields", NEUTRAL, ids=str)
def test_what_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    CompletionRequest.model_validate(PLAIN | fields)


def test_null_is_the_default() -> None:
    request = CompletionRequest.model_validate(PLAIN | {"temperature": None, "n": None, "max_tokens": None})
    assert (request.temperature, request.n, request.max_tokens) == (1.0, 1, 16)
    assert SynthesizeRequest.model_validate({"document": "d", "n": None, "seed": None}).n == 1


UNICODE = "Input should be a valid string, unable to parse raw data as a unicode string"


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"stop": ["a"] * 5}, "stop: List should have at most 4 items after validation, not 5", "stop"),
        ({"stop": [1]}, "stop: must be a text or a list of texts, none of them empty", "stop"),
        ({"prompt": ["a"] * 65}, "prompt: List should have at most 64 items after validation, not 65", "prompt"),
        ({"prompt": None}, "prompt: must be a text or a list of token ids, or a list of these", "prompt"),
        ({"prompt": ["a", 5]}, "prompt: must be a text or a list of token ids, or a list of these", "prompt"),
        ({"prompt": [-1]}, "prompt: Input should be greater than or equal to 0", "prompt"),
        ({"suffix": "end"}, "suffix: this service fills in nothing before a text: leave it out", "suffix"),
        (
            {"prompt": ["a", "\ud800"]},
            f"prompt: {UNICODE}",
            "prompt",
        ),
        (
            {"stop": "\ud800"},
            f"stop: {UNICODE}",
            "stop",
        ),
        (
            {"max_tokens": 0},
            "echo: max_tokens is 0, which is for scoring a prompt: set echo, or ask for more",
            "echo",
        ),
        ({"tools": []}, "tools: this service has no such field", "tools"),
        ({"n": 2, "best_of": 3}, "best_of: it is 3, and n is 2: every text is returned: leave it out", "best_of"),
        ({"min_tokens": 20, "max_tokens": 4}, "min_tokens: it is 20, more than max_tokens=4", "min_tokens"),
        ({"logit_bias": {"the": 1}}, "logit_bias: its keys must be token ids", "logit_bias"),
        (
            {"logit_bias": {str(token): 0.0 for token in range(1025)}},
            "logit_bias: Dictionary should have at most 1024 items after validation, not more",
            "logit_bias",
        ),
        ({"top_k": 2**31}, f"top_k: Input should be less than {2**31}", "top_k"),
        ({"stream_options": {"x": 1}}, "stream_options.x: this service has no such field", "stream_options"),
    ],
)
def test_a_fault_is_told_with_its_field(fields: dict[str, Any], message: str, param: str | None) -> None:
    with pytest.raises(ValidationError) as error:
        CompletionRequest.model_validate(PLAIN | fields)
    assert first_fault(error.value.errors()) == (message, param)
