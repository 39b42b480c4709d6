"""Which tokens a text is, and which text tokens are, as vLLM's endpoints of the same names say it."""

from typing import Any

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from sbp_ray.engine.bodies import CompletionRequest
from sbp_ray.engine.messages import Refusal
from sbp_ray.engine.planning import Plan, plan_request
from sbp_ray.engine.tokenization import DetokenizeRequest, TokenizeRequest, TokenizeResponse, detokenize, tokenize
from sbp_ray.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the river runs to the sea"] * 3, 300)


def tokenized(tokenizer: PreTrainedTokenizerFast, **body: Any) -> TokenizeResponse:
    return tokenize(TokenizeRequest.model_validate(body), tokenizer, 20)


def test_a_text_has_the_tokens_that_it_has_as_a_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    for special in (True, False):
        answer = tokenized(tokenizer, prompt="the sea", add_special_tokens=special)
        body = {"model": "synthesizer", "prompt": "the sea", "max_tokens": 1, "add_special_tokens": special}
        plan = plan_request(CompletionRequest.model_validate(body), tokenizer, 20, len(tokenizer))
        assert isinstance(plan, Plan)
        assert plan.prompts == [answer.tokens]
        assert (answer.count, answer.max_model_len, answer.token_strs) == (len(answer.tokens), 20, None)


def test_tokens_are_spelt_where_that_is_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    answer = tokenized(tokenizer, prompt="the sea", return_token_strs=True, add_special_tokens=False)
    assert answer.token_strs == tokenizer.convert_ids_to_tokens(answer.tokens)


@pytest.mark.parametrize("text", ["the river", "", "七 naïve\n", "<|eos|>"])
def test_tokens_come_back_as_their_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenized(tokenizer, prompt=text, add_special_tokens=False).tokens
    answer = detokenize(DetokenizeRequest(tokens=ids), tokenizer, len(tokenizer))
    assert not isinstance(answer, Refusal)
    assert answer.prompt == text


def test_what_is_no_token_is_refused_with_its_field(tokenizer: PreTrainedTokenizerFast) -> None:
    answer = detokenize(DetokenizeRequest(tokens=[3, len(tokenizer)]), tokenizer, len(tokenizer))
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.param) == (400, "tokens")
    with pytest.raises(ValidationError):
        DetokenizeRequest(tokens=[-1])


def test_null_is_absent_and_an_unknown_field_is_not_accepted(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenized(tokenizer, prompt="the", return_token_strs=None, model=None).token_strs is None
    with pytest.raises(ValidationError):
        TokenizeRequest.model_validate({"prompt": "the", "messages": []})
