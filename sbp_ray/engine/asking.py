"""How the ingress asks the replicas: one after the other, until one has room."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from sbp_ray.engine.messages import CompletionRequest, EngineLostError, Refusal, SynthesizeRequest

_MAX_ASKED = 8


async def first_with_room(
    write: Callable[..., Any], body: SynthesizeRequest | CompletionRequest
) -> tuple[AsyncGenerator[Any, None], Any]:
    """The messages of the first replica that has room, and the first of them; of the last one asked, if none has.

    Every one is asked once: the router avoids those that have refused, until none is left and it names one again.
    """
    refused: list[Refusal] = []
    while True:
        pieces = _from_replica(write(body, not_on=tuple(refusal.replica for refusal in refused)))
        first = await anext(pieces)
        if not isinstance(first, Refusal) or first.status != 429:
            return pieces, first
        if first.replica in {refusal.replica for refusal in refused} or len(refused) + 1 == _MAX_ASKED:
            soonest = min([*refused, first], key=lambda refusal: refusal.retry_after_s or 0)
            return pieces, soonest
        await pieces.aclose()
        refused.append(first)


async def _from_replica(answers: Any) -> AsyncGenerator[Any, None]:
    """The replica's messages; closing it stops the replica.

    Raises:
        EngineLostError: it died before the last of them.
    """
    try:
        async for answer in answers:
            yield answer
    except RayTaskError as error:
        if not isinstance(error.cause, EngineLostError):
            raise
        raise EngineLostError from None
    except (RayError, RayServeException):
        raise EngineLostError from None
    finally:
        answers.cancel()
