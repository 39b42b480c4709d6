"""`/tokenize` and `/detokenize`, in the form of vLLM's: which tokens a text is here, and which text tokens are."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerFast

from sbp_ray.engine.bodies import NullIsAbsent, Text, TokenId
from sbp_ray.engine.messages import MODEL_ID, Refusal
from sbp_ray.engine.planning import ids_of, refuse_unknown


class TokenizeRequest(NullIsAbsent):
    """Body of `POST /tokenize`."""

    prompt: Text
    """As in `/v1/completions`."""
    model: str = MODEL_ID
    """The service's only model, `synthesizer`."""
    add_special_tokens: bool = True
    """Whether <bos> is put before the text, as `/v1/completions` does."""
    return_token_strs: bool = False
    """Have the tokens as the tokenizer spells them, too."""


class TokenizeResponse(BaseModel):
    """What a text comes to."""

    count: int
    max_model_len: int
    """Tokens that prompt and text may take together."""
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(NullIsAbsent):
    """Body of `POST /detokenize`."""

    tokens: Annotated[list[TokenId], Field(max_length=1_000_000)]
    model: str = MODEL_ID
    """The service's only model, `synthesizer`."""


class DetokenizeResponse(BaseModel):
    """What tokens come to."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    prompt: str
    """Marks of the pair format are spelt out in it."""


def tokenize(request: TokenizeRequest, tokenizer: PreTrainedTokenizerFast, window: int) -> TokenizeResponse:
    """The tokens that the same text has as a prompt."""
    ids = ids_of(request.prompt, tokenizer, with_bos=request.add_special_tokens)
    names = tokenizer.convert_ids_to_tokens(ids) if request.return_token_strs else None
    return TokenizeResponse(count=len(ids), max_model_len=window, tokens=ids, token_strs=names)


def detokenize(
    request: DetokenizeRequest, tokenizer: PreTrainedTokenizerFast, vocab_size: int
) -> DetokenizeResponse | Refusal:
    """The text of tokens."""
    refusal = refuse_unknown({"tokens": request.tokens}, vocab_size)
    return refusal or DetokenizeResponse(prompt=tokenizer.decode(request.tokens))
