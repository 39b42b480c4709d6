"""What travels inside the cluster: between the ingress or the batch job and a replica."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sbp_ray.text.hashing import hash64

MODEL_ID = "synthesizer"
DEPLOYMENT = "SynthesizerServer"


@dataclass(frozen=True)
class Refusal:
    """Why a well-formed request cannot be served; the ingress turns it into an HTTP error."""

    status: int
    message: str
    retry_after_s: int | None = None
    replica: str = ""
    param: str | None = None
    """The field of the request that is to blame."""


@dataclass(frozen=True)
class ScoredToken:
    """A token of the prompt or of the text."""

    token_id: int
    text: str
    logprob: float | None = None
    """Nats, before temperature and all else that shapes sampling; None where it was not asked for, or has nothing
    before it."""
    top: dict[str, float] | None = None
    """The likeliest tokens at its place, by their text."""


@dataclass(frozen=True)
class Delta:
    """Text that was added to one sample; `seed` and `finish_reason` come with its last delta."""

    index: int
    text: str
    num_tokens: int
    """Of the sample so far, the <eos> that ended it not counted."""
    finish_reason: str | None = None
    seed: int | None = None
    tokens: tuple[ScoredToken, ...] = ()
    """Of the text, where the request asks for them."""

    def after(self, before: Delta | None) -> Delta:
        """This and what came before it of the same sample, as one."""
        return replace(self, text=before.text + self.text, tokens=before.tokens + self.tokens) if before else self


@dataclass(frozen=True)
class Accepted:
    """The replica's first word on a request that it serves. It comes with the first text: a message of its own would
    take a CPU that writes this text."""

    prompt_tokens: int
    seed: int
    synthesizer: str
    deltas: list[Delta]


@dataclass(frozen=True)
class Sampling:
    """How to sample; the same for all samples of a request."""

    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    """How many of the likeliest tokens to tell at each place, besides the one that was sampled."""
    prompt_logprobs: int | None = None
    """The same, of the prompt."""


@dataclass(frozen=True)
class SampleRequest:
    """Samples of one prompt, all from one engine, so that they share the prompt's part of its cache."""

    prompt_ids: list[int]
    seeds: dict[int, int]
    """By the sample's number, its seed."""
    sampling: Sampling
    identity: dict[str, Any]
    """Of the engines that are to write them, see `identity_of`."""


@dataclass(frozen=True)
class SampledDocument:
    """A document that an engine wrote."""

    sample: int
    input_ids: list[int]
    """Without the <eos> that ended it."""
    finish_reason: str
    num_cached_tokens: int = 0
    """Tokens of the prompt that the engine had in its cache."""
    read_outside: int = 0
    """Tokens of the prompt as an outside model counts them, where one wrote."""
    written_outside: int = 0
    """Tokens of the answer, likewise."""


@dataclass(frozen=True)
class Alive:
    """The engine has the request and makes progress: a replica's first message, repeated every few seconds."""

    replica: str


class OtherModelError(Exception):
    """The service has another model by now, or computes otherwise, than the one that was asked for."""


class EngineLostError(Exception):
    """The engine, or the replica, that was writing has died; another may do the same."""


@dataclass(frozen=True)
class RefusedSample:
    """A sample that the engine will never write."""

    sample: int
    reason: str
    drop: str = "refused_by_engine"
    """What it is counted as."""


def sample_seed(*parts: int | bytes) -> int:
    """The seed that follows from a run's seed, a document and a sample number: 63 bits, the same everywhere."""
    return hash64("seed", *parts) >> 1
