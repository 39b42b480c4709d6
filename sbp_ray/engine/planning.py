"""What an HTTP request comes to: prompts as token ids and how to sample after them, or why it cannot be served."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from sbp_ray.engine.bodies import CompletionRequest, SynthesizeRequest
from sbp_ray.engine.messages import Refusal, Sampling
from sbp_ray.text.pair_format import prompt_ids
from sbp_ray.text.tokenizer import encode_texts, special_ids

_DRAWN_SEED_BITS = 53  # what JSON carries unharmed to JavaScript and back


class Echoed(NamedTuple):
    """What is repeated of a prompt: all of it but a <bos> that was put before its text."""

    text: str
    from_token: int


@dataclass(frozen=True)
class Plan:
    """Samples of one or more prompts."""

    prompts: list[list[int]]
    sampling: Sampling
    n: int
    seed: int
    with_tokens: bool = False
    """Whether the tokens of the text are told."""
    echoed: tuple[Echoed, ...] = ()
    """What is repeated of each prompt."""
    only_prompts: bool = False
    """Whether nothing is written, and the prompts are only scored."""

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
    """Prompts and sampling of a request; its seed is chosen where it names none.

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
    if refusal := refuse_unknown(named, vocab_size):
        return refusal
    seed = secrets.randbits(_DRAWN_SEED_BITS) if request.seed is None else request.seed
    if isinstance(request, SynthesizeRequest):
        return Plan(prompts, Sampling(request.max_tokens or room, request.temperature, request.top_p), request.n, seed)
    return Plan(
        prompts,
        _sampling(request),
        request.n,
        seed,
        with_tokens=request.logprobs is not None or request.return_token_ids,
        echoed=tuple(_echoed(request, tokenizer)) if request.echo else (),
        only_prompts=request.max_tokens == 0,
    )


def _prompts(request: SynthesizeRequest | CompletionRequest, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    if isinstance(request, SynthesizeRequest):
        [d1_ids] = encode_texts(tokenizer, [request.document])
        return [prompt_ids(d1_ids, special_ids(tokenizer))]
    return [
        ids_of(prompt, tokenizer, with_bos=request.add_special_tokens) if isinstance(prompt, str) else prompt
        for prompt in request.prompts()
    ]


def ids_of(prompt: str, tokenizer: PreTrainedTokenizerFast, *, with_bos: bool) -> list[int]:
    """Of a prompt that is text."""
    [ids] = encode_texts(tokenizer, [prompt])
    return [special_ids(tokenizer).bos, *ids] if with_bos else ids


def refuse_unknown(named: dict[str, list[int]], vocab_size: int) -> Refusal | None:
    """What is said of token ids, by the field that holds them, where the model has no such token."""
    for field, tokens in named.items():
        if (last := max(tokens, default=0)) >= vocab_size:
            message = f"{field}: {last} is no token of this model: its ids end at {vocab_size - 1}"
            return Refusal(400, message, param=field)
    return None


def _echoed(request: CompletionRequest, tokenizer: PreTrainedTokenizerFast) -> Iterator[Echoed]:
    for prompt in request.prompts():
        if isinstance(prompt, str):
            yield Echoed(prompt, from_token=int(request.add_special_tokens))
        else:
            yield Echoed(tokenizer.decode(prompt), from_token=0)


def _sampling(request: CompletionRequest) -> Sampling:
    stop = request.stop or ()
    return Sampling(
        request.max_tokens or 1,  # the engine always writes something
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
        logprobs=request.logprobs,
        prompt_logprobs=request.logprobs if request.echo else None,
        logit_bias=tuple((int(token), bias) for token, bias in request.logit_bias.items()),
    )
