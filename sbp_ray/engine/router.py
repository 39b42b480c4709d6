"""Which replica gets a request: of two at random that have not failed the request yet, the one with less to do.

The router chooses among Serve's replicas; `write_where_there_is_room` calls it again until a replica has room.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import LocalityMixin, PendingRequest, RequestRouter, RunningReplica

from sbp_ray.engine.bodies import CompletionRequest, SynthesizeRequest
from sbp_ray.engine.messages import EngineLostError, Refusal

# A request that so many replicas refuse finds the whole service full.
_MAX_REPLICAS_TRIED = 8


class NotAgainRouter(LocalityMixin, RequestRouter):  # type: ignore[misc]  # Ray's classes are untyped
    """Serve's choice of the better of two, but a caller can name replicas that refused or lost its request: `not_on`.

    Serve's own sends such a request to the same replica again, which may well have the shortest queue: few large
    requests, or none since it stands still.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One try."""
        names = [replica.replica_id.unique_id for replica in candidate_replicas]
        not_on = []
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            not_on = pending_request.kwargs.get("not_on", ())
        return [[candidate_replicas[place] for place in two_of(names, not_on)]]


def two_of(names: list[str], not_on: Iterable[str], rng: Any = random) -> list[int]:
    """Places of at most two names that are not to be avoided; of any, where all are."""
    avoided = set(not_on)
    places = [place for place, name in enumerate(names) if name not in avoided] or list(range(len(names)))
    return rng.sample(places, min(2, len(places)))


async def write_where_there_is_room(
    write: Callable[..., Any], body: SynthesizeRequest | CompletionRequest
) -> tuple[AsyncGenerator[Any, None], Any]:
    """The messages of the first replica that has room, and the first message; the shortest refusal, if none has room.

    Every replica is tried once: the router avoids those that have refused, until none is left.
    """
    refused: list[Refusal] = []
    while True:
        deltas = _from_replica(write(body, not_on=tuple(refusal.replica for refusal in refused)))
        first = await anext(deltas)
        if not isinstance(first, Refusal) or first.status != 429:
            return deltas, first
        if first.replica in {refusal.replica for refusal in refused} or len(refused) + 1 == _MAX_REPLICAS_TRIED:
            soonest = min([*refused, first], key=lambda refusal: refusal.retry_after_s or 0)
            return deltas, soonest
        await deltas.aclose()
        refused.append(first)


async def _from_replica(answers: Any) -> AsyncGenerator[Any, None]:
    """The replica's messages; closing the generator stops the replica.

    Raises:
        EngineLostError: the replica died before its last message.
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
