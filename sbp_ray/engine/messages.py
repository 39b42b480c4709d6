"""What travels to and from the synthesizer: HTTP bodies, and single draws inside the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

MAX_SAMPLES = 64

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class SynthesizeRequest(BaseModel):
    """Body of `POST /v1/synthesize`: write `n` documents related to the one sent."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    document: str
    """d1, as plain text; marks of the pair format that are spelt out in it are ordinary characters."""
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    """Documents to write."""
    max_tokens: PositiveInt | None = None
    """Longest document to write; without it, what the window leaves."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Sampling temperature; 0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of the sampling distribution; 1 samples from all of it."""
    seed: Seed | None = None
    """Equal requests with equal seeds draw equal documents; without it, a seed is drawn and told in the answer."""
    stream: bool = False
    """Answer with server-sent events while the documents are being written."""

    @field_validator("document")
    @classmethod
    def _has_text(cls, document: str) -> str:
        if not document.strip():
            raise ValueError("the document is empty")
        try:
            document.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("the document is not valid Unicode text") from None
        return document


class SynthesizedDocument(BaseModel):
    """One written document. In a stream, `text` is what was added, and the last three come with the last piece."""

    index: int
    text: str
    finish_reason: str | None = None
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
    """Answer of `POST /v1/synthesize`; in a stream each event holds one, with the pieces that are new."""

    id: str
    model: str
    synthesizer: str
    """Fingerprint of the checkpoint that wrote the documents."""
    seed: int
    documents: list[SynthesizedDocument]
    usage: Usage | None = None


@dataclass(frozen=True)
class Refusal:
    """Why a well-formed request cannot be served; the ingress turns it into an HTTP error."""

    status: int
    message: str


@dataclass(frozen=True)
class Draw:
    """One document to draw, in tokens."""

    prompt_ids: list[int]
    seed: int
    max_tokens: int
    temperature: float
    top_p: float


@dataclass(frozen=True)
class Drawn:
    """The document that was drawn."""

    input_ids: list[int]
    """Without the <eos> that ended it."""
    finish_reason: str


def sample_seed(*parts: int | str) -> int:
    """The seed that follows from a run's seed, a document and a sample number: 63 bits, the same everywhere."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
