"""What an HTTP request comes to: prompts, sampling, cost."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from sbp_ray.engine.bodies import CompletionRequest, SynthesizeRequest
from sbp_ray.engine.messages import Refusal
from sbp_ray.engine.planning import Plan, plan_request
from sbp_ray.text.tokenizer import encode_texts, special_ids, train_tokenizer

WINDOW = 20


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the river runs to the sea"] * 3, 300)


def planned(tokenizer: PreTrainedTokenizerFast, **fields: Any) -> Plan | Refusal:
    body = {"model": "synthesizer", "prompt": [1, 2, 3], "max_tokens": 5} | fields
    return plan_request(CompletionRequest.model_validate(body), tokenizer, WINDOW, len(tokenizer))


def test_a_text_begins_with_bos_unless_it_is_to_have_no_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    [ids] = encode_texts(tokenizer, ["the"])
    assert planned(tokenizer, prompt="the").prompts == [[special_ids(tokenizer).bos, *ids]]
    assert planned(tokenizer, prompt="the", add_special_tokens=False).prompts == [ids]
    assert planned(tokenizer, prompt=[[4], [5, 6]]).prompts == [[4], [5, 6]]


def test_samples_share_their_prompt_and_each_may_take_max_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    plan = planned(tokenizer, prompt=[[1, 2, 3], [4]], n=3)
    assert isinstance(plan, Plan)
    assert (plan.prompt_tokens, plan.sequences, plan.cost) == (4, 6, 34)


def test_the_sampling_is_what_was_sent(tokenizer: PreTrainedTokenizerFast) -> None:
    fields = {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5, "min_tokens": 2, "ignore_eos": True, "stop": "x"}
    plan = planned(tokenizer, **fields, stop_token_ids=[3], logit_bias={"4": -1.0}, seed=9)
    assert isinstance(plan, Plan)
    sampling = plan.sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty, sampling.min_tokens) == (7, 0.1, 1.5, 2)
    assert (sampling.ignore_eos, sampling.stop, sampling.stop_token_ids) == (True, ("x",), (3,))
    assert (sampling.logit_bias, sampling.max_tokens, plan.seed) == (((4, -1.0),), 5, 9)
    assert planned(tokenizer, top_k=-1).sampling.top_k == 0


def test_without_max_tokens_a_document_may_take_what_the_window_leaves(tokenizer: PreTrainedTokenizerFast) -> None:
    plan = plan_request(SynthesizeRequest(document="the"), tokenizer, WINDOW, len(tokenizer))
    assert isinstance(plan, Plan)
    assert plan.sampling.max_tokens == WINDOW - len(plan.prompts[0])


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": [1] * 16}, "max_tokens", "16 tokens of the window of 20, which leaves 4 for max_tokens=5"),
        ({"prompt": [1] * 21}, "prompt", "21 tokens of the window of 20, which leaves 0"),
        ({"prompt": [10**6]}, "prompt", "1000000 is no token of this model"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids", "1000000 is no token"),
        ({"logit_bias": {"1000000": 1}}, "logit_bias", "1000000 is no token"),
    ],
)
def test_what_the_model_cannot_do_is_refused_with_its_field(
    tokenizer: PreTrainedTokenizerFast, fields: dict[str, Any], param: str, said: str
) -> None:
    refusal = planned(tokenizer, **fields)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.param) == (400, param)
    assert said in refusal.message


def test_an_echo_repeats_a_prompt_without_the_bos_that_was_put_before_it(tokenizer: PreTrainedTokenizerFast) -> None:
    [ids] = encode_texts(tokenizer, ["the river"])
    plan = planned(tokenizer, prompt=["the river", ids], echo=True, logprobs=2, max_tokens=0)
    assert isinstance(plan, Plan)
    assert plan.echoed == (("the river", 1), ("the river", 0))
    assert (plan.sampling.logprobs, plan.sampling.prompt_logprobs, plan.sampling.max_tokens) == (2, 2, 1)
    assert (plan.only_prompts, plan.with_tokens) == (True, True)
    assert planned(tokenizer, logprobs=2).sampling.prompt_logprobs is None
