"""A chat model behind an OpenAI-compatible endpoint: what its answers and its failures come to."""

from __future__ import annotations

from typing import Any, NamedTuple

import openai

from sbp_ray.errors import SbpError, one_line

FAILURES = (openai.OpenAIError, ValueError)
"""What a request may raise; a `ValueError` is an answer that is no completion."""
# Asking again does not help after such a status.
_NEEDS_A_HAND = (401, 403, 404)
_ASK_AGAIN = (408, 409, 429)


class Answer(NamedTuple):
    """What the model said, and what that took."""

    text: str | None
    """None where it said nothing, for the reason in `failure`."""
    is_cut: bool = False
    """Whether it came to the limit of tokens."""
    failure: str = ""
    input_tokens: int = 0
    output_tokens: int = 0


def read_answer(completion: Any) -> Answer:
    """Of what the client made of a body."""
    usage = getattr(completion, "usage", None)
    tokens = ((usage.prompt_tokens or 0), (usage.completion_tokens or 0)) if usage else (0, 0)
    choices = getattr(completion, "choices", None)
    if not choices or choices[0].message is None:
        return Answer(None, False, "nonsense", *tokens)
    message, finish = choices[0].message, choices[0].finish_reason
    if message.refusal or finish == "content_filter":
        return Answer(None, False, "refused", *tokens)
    return Answer(message.content or "", finish == "length", "", *tokens)


def why_it_failed(error: Exception) -> str:
    """One of `FAILURES` in a few words."""
    if isinstance(error, openai.APITimeoutError):
        return "timed out"
    if isinstance(error, openai.APIConnectionError):
        return "could not be reached"
    return f"status {error.status_code}" if isinstance(error, openai.APIStatusError) else "nonsense"


def may_pass(error: Exception) -> bool:
    """Whether the same request may do better another time: the endpoint is busy, fails or is not there."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in _ASK_AGAIN or error.status_code >= 500
    return isinstance(error, openai.APIConnectionError)


def refuse_what_needs_a_hand(error: Exception, where: str, model: str, base_url: str, api_key_env: str) -> None:
    """Raises SbpError where no request will do better before somebody changes a setting, which lies at `where`."""
    if isinstance(error, openai.APIStatusError) and error.status_code in _NEEDS_A_HAND:
        raise SbpError(
            f"{where}: {base_url} refuses {model} with {error.status_code} ({one_line(error)}): mend base_url or "
            f"model, or set {api_key_env}"
        ) from None
