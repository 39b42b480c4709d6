"""What an HTTP request comes to: prompts as token ids and how to sample after them, or why it cannot be served."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from sbp_ray.engine.bodies import CompletionRequest, SynthesizeRequest
from sbp_ray.engine.messages import Refusal, Sampling
from sbp_ray.text.pair_format import prompt_ids
from sbp_ray.text.tokenizer import encode_texts, special_ids

_DRAWN_SEED_BITS = 53  # what JSON carries unharmed to JavaScript and back


@dataclass(frozen=True)
class Plan:
    """Samples of one or more prompts."""

    prompts: list[list[int]]
    sampling: Sampling
    n: int
    seed: int

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts; samples share theirs."""
        return sum(map(len, self.prompts))

    @property
    def sequences(self) -> int:
        """How many texts are written at the same time."""
        return len(self.prompts) * self.n

    @property
    def cost(self) -> int:
        """Tokens that it may take in the key-value cache."""
        return self.prompt_tokens + self.sequences * self.sampling.max_tokens


def plan_request(
    request: SynthesizeRequest | CompletionRequest, tokenizer: PreTrainedTokenizerFast, window: int, vocab_size: int
) -> Plan | Refusal:
    """Prompts and sampling of a request; its seed is drawn where it names none.

    Args:
        window: tokens that prompt and text may take together.
        vocab_size: token ids end before it.
    """
    prompts = _prompts(request, tokenizer)
    longest = max(map(len, prompts))
    room = window - longest
    if room < (request.max_tokens or 1):
        return Refusal(
            400,
            f"the prompt takes {longest} tokens of the window of {window}, which leaves {max(room, 0)} "
            f"for max_tokens={request.max_tokens or 1}: send a shorter text or a smaller max_tokens",
            param="max_tokens" if room > 0 else "document" if isinstance(request, SynthesizeRequest) else "prompt",
        )
    named = {"prompt": [token for prompt in prompts for token in prompt]}
    if isinstance(request, CompletionRequest):
        named |= {"stop_token_ids": request.stop_token_ids, "logit_bias": [int(token) for token in request.logit_bias]}
    for field, tokens in named.items():
        if (last := max(tokens, default=0)) >= vocab_size:
            message = f"{field}: {last} is no token of this model: its ids end at {vocab_size - 1}"
            return Refusal(400, message, param=field)
    seed = secrets.randbits(_DRAWN_SEED_BITS) if request.seed is None else request.seed
    return Plan(prompts, _sampling(request, request.max_tokens or room), request.n, seed)


def _prompts(request: SynthesizeRequest | CompletionRequest, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    special = special_ids(tokenizer)
    if isinstance(request, SynthesizeRequest):
        [d1_ids] = encode_texts(tokenizer, [request.document])
        return [prompt_ids(d1_ids, special)]
    start = [special.bos] if request.add_special_tokens else []
    return [
        start + encode_texts(tokenizer, [prompt])[0] if isinstance(prompt, str) else prompt
        for prompt in request.prompts()
    ]


def _sampling(request: SynthesizeRequest | CompletionRequest, max_tokens: int) -> Sampling:
    if isinstance(request, SynthesizeRequest):
        return Sampling(max_tokens, request.temperature, request.top_p)
    stop = request.stop or ()
    return Sampling(
        max_tokens,
        request.temperature,
        request.top_p,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(request.stop_token_ids),
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=request.repetition_penalty,
        top_k=max(request.top_k, 0),
        min_p=request.min_p,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        logit_bias=tuple((int(token), bias) for token, bias in request.logit_bias.items()),
    )
