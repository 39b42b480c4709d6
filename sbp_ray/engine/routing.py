"""Which replica gets a request: of two, drawn from those that have not failed it yet, the one with less to do."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from ray.serve.request_router import LocalityMixin, PendingRequest, RequestRouter, RunningReplica


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
