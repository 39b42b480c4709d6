"""What travels to and from the synthesizer: HTTP bodies, and draws inside the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from sbp_ray.text.hashing import hash64

MODEL_ID = "synthesizer"
DEPLOYMENT = "SynthesizerServer"
MAX_SAMPLES = 64

Seed = Annotated[int, Field(ge=0, lt=2**63)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(max_length=10_000_000)]


def _valid_unicode(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode text") from None
    return text


class WriteRequest(BaseModel):
    """What both endpoints that write take."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    """Texts to write for each document or prompt."""
    max_tokens: PositiveInt | None = None
    """Longest text to write."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature; 0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of the sampling distribution; 1 samples from all of it."""
    seed: Seed | None = None
    """Equal requests with equal seeds draw equal texts; without it, a seed is drawn and told in the answer."""
    stream: bool = False
    """Answer with server-sent events while the text is being written."""
    timeout_s: PositiveFloat | None = None
    """Give up after so many seconds; the service's own deadline holds too."""


class SynthesizeRequest(WriteRequest):
    """Body of `POST /v1/synthesize`: write `n` documents related to the one sent."""

    document: Text
    """d1, as plain text; marks of the pair format that are spelt out in it are ordinary characters."""
    max_tokens: PositiveInt | None = None
    """Longest document to write; without it, what the window leaves."""

    @field_validator("document")
    @classmethod
    def _has_text(cls, document: str) -> str:
        if not document.strip():
            raise ValueError("the document is empty")
        return _valid_unicode(document)


class StreamOptions(BaseModel):
    """OpenAI's options of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


Prompt = Annotated[str, Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(WriteRequest):
    """Body of `POST /v1/completions`: the fields of OpenAI's that this service honours; others are refused by name."""

    model: str
    """The service's only model, `synthesizer`."""
    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_SAMPLES)]
    """Text or token ids, or several of them."""
    max_tokens: PositiveInt | None = 16
    """Longest completion of each prompt, as in OpenAI's API."""
    stop: Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] | None = None  # fmt: skip  # noqa: E501
    """Texts that end a completion; they are not part of it."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """As in OpenAI's API."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """As in OpenAI's API."""
    stream_options: StreamOptions | None = None
    """`{"include_usage": true}` ends a stream with its token counts."""
    user: str | None = None
    """Accepted and ignored."""

    @model_validator(mode="after")
    def _texts_are_valid(self) -> CompletionRequest:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        for text in [*self.prompts(), *stops]:
            if isinstance(text, str):
                _valid_unicode(text)
        return self

    def prompts(self) -> list[str | list[int]]:
        """One entry for each prompt, however they were written."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class SynthesizedDocument(BaseModel):
    """One written document. In a stream, `text` is what was added, and the last three come with the last delta."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    """`stop`: the document ended by itself; `length`: it was cut at `max_tokens`."""
    num_tokens: int | None = None
    seed: int | None = None
    """Sending it as the request's seed does not repeat the document: it follows from the request's seed and `index`."""


class Usage(BaseModel):
    """Token counts as OpenAI's endpoints name them. Samples share the prompt: it is counted once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class SynthesizeResponse(BaseModel):
    """Answer of `POST /v1/synthesize`; in a stream each event holds one, with the deltas that are new."""

    id: str
    model: str
    synthesizer: str
    """Fingerprint of the checkpoint that wrote the documents."""
    seed: int
    documents: list[SynthesizedDocument]
    usage: Usage | None = None


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None = None
    code: int


class ErrorResponse(BaseModel):
    """Body of every answer that is an error."""

    error: ErrorDetail


# Inside the cluster: between the ingress or the batch job and a replica


@dataclass(frozen=True)
class Refusal:
    """Why a well-formed request cannot be served; the ingress turns it into an HTTP error."""

    status: int
    message: str
    retry_after_s: int | None = None
    replica: str = ""


@dataclass(frozen=True)
class Delta:
    """Text that was added to one sample; `seed` and `finish_reason` come with its last delta."""

    index: int
    text: str
    num_tokens: int
    """Of the sample so far, the <eos> that ended it not counted."""
    finish_reason: str | None = None
    seed: int | None = None


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
    """How to draw; the same for all samples of a request."""

    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


@dataclass(frozen=True)
class Draws:
    """Samples of one prompt, drawn by one engine so that they share the prompt's part of its cache."""

    prompt_ids: list[int]
    seeds: dict[int, int]
    """By the sample's number, its seed."""
    sampling: Sampling


@dataclass(frozen=True)
class Drawn:
    """A document that was drawn."""

    sample: int
    input_ids: list[int]
    """Without the <eos> that ended it."""
    finish_reason: str
    num_cached_tokens: int = 0
    """Tokens of the prompt that the engine had in its cache."""


@dataclass(frozen=True)
class Alive:
    """The request is taken on, and its engine goes forward: a replica's first word on draws, and every few seconds."""

    replica: str


class EngineLostError(Exception):
    """The engine, or the replica, that was writing has died; another may do the same."""


@dataclass(frozen=True)
class Refused:
    """A sample that the engine will never draw."""

    sample: int
    reason: str


def sample_seed(*parts: int | bytes) -> int:
    """The seed that follows from a run's seed, a document and a sample number: 63 bits, the same everywhere."""
    return hash64("seed", *parts) >> 1
