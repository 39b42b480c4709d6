"""Bodies of the endpoint's requests and answers.

`WriteRequest` has what both endpoints take that write; `SynthesizeRequest` and `CompletionRequest` add their own. What
is wrong with a body pydantic finds, and `first_fault` tells in one sentence. Below are the answers, and the form of
every error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

MAX_SAMPLES = 64
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024  # of a request: vLLM's sampler on GPUs has room for no more, and the engine dies of it

Seed = Annotated[int, Field(ge=0, lt=2**63)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(max_length=10_000_000)]


class NullIsAbsent(BaseModel):
    """A body in which a field that is null is one that is not there, as in OpenAI's API."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body


class WriteRequest(NullIsAbsent):
    """What both endpoints that write take."""

    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    """Texts to write for each document or prompt."""
    max_tokens: PositiveInt | None = None
    """Longest text to write."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature; 0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of the sampling distribution; 1 samples from all of it."""
    seed: Seed | None = None
    """Equal requests with equal seeds draw equal texts; without it, the service chooses a seed and returns it."""
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
        return document


class StreamOptions(NullIsAbsent):
    """OpenAI's and vLLM's options of a stream."""

    include_usage: bool = False
    """End the stream with its token counts."""
    continuous_usage_stats: bool = False
    """Have the token counts so far in each event."""
    include_obfuscation: bool = False
    """Accepted and ignored: nothing is ever added to hide the lengths of texts."""


Prompt = Annotated[str, Field(min_length=1)] | Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(WriteRequest):
    """Body of `POST /v1/completions`: the fields of OpenAI's API, and of vLLM's, that this service honours.

    What would change the text and is not offered is refused by name; what asks for nothing is accepted.
    """

    model: str
    """The service's only model, `synthesizer`."""
    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_SAMPLES)]
    """Text or token ids, or several of them."""
    max_tokens: Annotated[int, Field(ge=0)] = 16
    """Longest completion of each prompt, as in OpenAI's API; 0 only with `echo`."""
    stop: Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] | None = None  # fmt: skip  # noqa: E501
    """Texts that end a completion; they are not part of it."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """As in OpenAI's API."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """As in OpenAI's API."""
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_LOGIT_BIAS)] = Field(default_factory=dict)  # fmt: skip  # noqa: E501
    """Added to the logits of tokens, by their id, as in OpenAI's API."""
    best_of: int | None = None
    """Accepted where it is `n`: every text that is written is returned."""
    echo: Annotated[bool, Field(validate_default=True)] = False
    """Repeat the prompt before each of its completions."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """Tell the log-probability of each token, and so many of the likeliest at its place; with `echo` the prompt's too.
    They are the model's own, in nats, before temperature and penalties."""
    suffix: str = ""
    """There is no text after which to fill in."""
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    """Sample from so many of the likeliest tokens; 0 and -1 mean all. As in vLLM's API, like the fields that follow."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Leave out tokens less likely than this share of the likeliest one's probability."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Divides the logits of tokens that stand in the prompt or in the text so far."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """Shortest completion: before, nothing ends it."""
    ignore_eos: bool = False
    """Go on after the end of a document, to `max_tokens`."""
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] = Field(default_factory=list)
    """Tokens that end a completion."""
    return_token_ids: bool = False
    """Have `token_ids` in each choice."""
    add_special_tokens: bool = True
    """Whether a prompt that is text begins with <bos>, as the documents did that the synthesizer was tuned on."""
    stream_options: StreamOptions | None = None
    """What the events of a stream tell besides text."""
    user: str | None = None
    """Accepted and ignored."""

    @field_validator("best_of")
    @classmethod
    def _all_are_returned(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of not in (None, info.data.get("n")):
            raise ValueError(f"it is {best_of}, and n is {info.data.get('n')}: every text is returned: leave it out")
        return best_of

    @field_validator("suffix")
    @classmethod
    def _nothing_follows(cls, suffix: str) -> str:
        if suffix:
            raise ValueError("this service fills in nothing before a text: leave it out")
        return suffix

    @field_validator("min_tokens")
    @classmethod
    def _leaves_room(cls, min_tokens: int, info: ValidationInfo) -> int:
        if min_tokens > info.data.get("max_tokens", min_tokens):
            raise ValueError(f"it is {min_tokens}, more than max_tokens={info.data['max_tokens']}")
        return min_tokens

    @field_validator("logit_bias")
    @classmethod
    def _names_tokens(cls, logit_bias: dict[str, float]) -> dict[str, float]:
        if not all(token.isascii() and token.isdigit() and len(token) < 10 for token in logit_bias):
            raise ValueError("its keys must be token ids")
        return logit_bias

    @field_validator("echo")
    @classmethod
    def _something_is_wanted(cls, echo: bool, info: ValidationInfo) -> bool:
        if not echo and info.data.get("max_tokens") == 0:
            raise ValueError("max_tokens is 0, which is for scoring a prompt: set echo, or ask for more")
        return echo

    def prompts(self) -> list[str | list[int]]:
        """One entry for each prompt, however they were written."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


_WHAT_IS_SENT = {
    "prompt": "must be a text or a list of token ids, or a list of these",
    "stop": "must be a text or a list of texts, none of them empty",
}
_MORE_TELLING = ("too_long", "greater_than", "less_than", "value_error", "string_unicode")


def first_fault(errors: Sequence[Any]) -> tuple[str, str | None]:
    """What is wrong with a body, in one sentence that begins with the field, and the field.

    Args:
        errors: pydantic's. Of a field that may be one of several types there is one for each type: a limit that is
            broken tells more than a type that does not fit.
    """
    if errors[0]["type"] == "json_invalid":
        return "the body is not JSON", None
    where = [str(part) for part in errors[0]["loc"] if part != "body"]
    if not where:
        return errors[0]["msg"].removeprefix("Value error, "), None
    field = where[0][:100]
    if errors[0]["type"] == "extra_forbidden":
        return f"{'.'.join(where)[:100]}: this service has no such field", field
    of_field = [error for error in errors if field in error["loc"]]
    telling = [error for error in of_field if error["type"].startswith(_MORE_TELLING)]
    if field in _WHAT_IS_SENT:
        message = f"{field}: {telling[0]['msg'] if telling else _WHAT_IS_SENT[field]}"
        return message, field
    message = (telling or of_field)[0]["msg"].removeprefix("Value error, ")
    return f"{'.'.join(where)[:100]}: {message}", field


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
