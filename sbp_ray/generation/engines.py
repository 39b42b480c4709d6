"""Requests samples from the engines until each of them is there.

Only an engine's refusal ends a sample without a document. The text of an engine that dies or stands still is lost:
what it did not finish goes to another engine, with the same seeds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from sbp_ray.engine.messages import (
    Alive,
    EngineLostError,
    OtherModelError,
    RefusedSample,
    SampledDocument,
    SampleRequest,
    Sampling,
)
from sbp_ray.errors import SbpError, one_line
from sbp_ray.logs import duration

logger = logging.getLogger(__name__)

_MAX_LOSSES = 20  # of one request: by then it is likelier to kill its engines than to meet them when they die
_LONGEST_PAUSE_S = 5.0
_WARN_EVERY_S = 10.0


class Engines:
    """The engines behind a deployment handle."""

    def __init__(self, handle: Any, identity: dict[str, Any], *, silent_for_s: float, give_up_after_s: float) -> None:
        """
        Args:
            handle: of the replicas, streaming.
            identity: what they are to be, see `identity_of`: a service may get another model while it is used.
            silent_for_s: an engine that has accepted a request and sends nothing for so long stands still.
            give_up_after_s: how long no engine may have sent anything before an error is raised.
        """
        self._handle, self._identity = handle, identity
        self._silent_for_s, self._give_up_after_s = silent_for_s, give_up_after_s
        self._heard_at: float | None = None
        self._last_error = "no engine accepted it"
        self._warned_at = float("-inf")

    async def sample(
        self, name: str, prompt: list[int], seeds: dict[int, int], sampling: Sampling
    ) -> AsyncIterator[SampledDocument | RefusedSample]:
        """Samples of one prompt, by their seeds, in the order in which they are done.

        Raises:
            SbpError: no engine has been heard of for `give_up_after_s`, `name` has lost `_MAX_LOSSES` of them, or they
                have another model by now.
            RayTaskError: the replica's code failed: our bug.
        """
        left, losses, pauses, avoided = dict(seeds), 0, 0, ""
        if self._heard_at is None:
            self._heard_at = time.monotonic()
        while left:
            replica = ""
            request = SampleRequest(prompt, dict(left), sampling, self._identity)
            answers = self._handle.sample.remote(request, not_on=(avoided,))
            try:
                while (answer := await self._next(answers, is_accepted=bool(replica))) is not None:
                    if isinstance(answer, Alive):
                        replica = answer.replica
                    elif left.pop(answer.sample, None) is not None:
                        yield answer
                self._last_error = "its stream ended early"
            except (RayError, RayServeException, TimeoutError) as error:
                if isinstance(error, RayTaskError) and isinstance(error.cause, OtherModelError):
                    raise SbpError(
                        "the service whose engines were used has another model or other settings by now: run the same "
                        "command again to go on with engines of its own"
                    ) from None
                if not _may_pass(error):
                    raise
                self._last_error = f"{type(error).__name__}: {one_line(error)}"
            finally:
                answers.cancel()
            if left:
                losses += bool(replica)
                pauses += 1
                avoided = replica
                self._warn(name)
                self._give_up_in_time(name, losses)
                await asyncio.sleep(min(pauses, _LONGEST_PAUSE_S))

    async def _next(self, answers: Any, *, is_accepted: bool) -> Alive | SampledDocument | RefusedSample | None:
        """The next message; None at the end.

        A request that no engine has accepted yet waits for as long as any engine is heard of: they may all be full.
        """
        coming = asyncio.ensure_future(anext(answers, None))
        try:
            while True:
                limit_s = self._silent_for_s if is_accepted else self._give_up_after_s - self._silence_s()
                done, _ = await asyncio.wait({coming}, timeout=max(limit_s, 0))
                if done:
                    answer = coming.result()
                    self._heard_at = time.monotonic()
                    return answer
                if is_accepted or self._silence_s() >= self._give_up_after_s:
                    raise TimeoutError(f"nothing came for {duration(self._silent_for_s)}")
        finally:
            coming.cancel()

    def _silence_s(self) -> float:
        assert self._heard_at is not None
        return time.monotonic() - self._heard_at

    def _give_up_in_time(self, name: str, losses: int) -> None:
        if self._silence_s() >= self._give_up_after_s:
            raise SbpError(
                f"no engine has answered for {duration(self._silence_s())} (last: {self._last_error}): see what "
                "`serve status` says of them, then run the same command again to go on"
            )
        if losses >= _MAX_LOSSES:
            raise SbpError(
                f"d1 {name} was with {losses} engines that died or stood still (last: {self._last_error}), "
                "while others worked: see the engines' logs, then run the same command again to go on"
            )

    def _warn(self, name: str) -> None:
        """An engine that dies ends hundreds of requests: one line says so for all of them."""
        if time.monotonic() - self._warned_at >= _WARN_EVERY_S:
            self._warned_at = time.monotonic()
            logger.warning(f"synthesize | d1 {name} and perhaps others are sent again: {self._last_error}")


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may do better: all but an exception of the replica's own code."""
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, EngineLostError | RayServeException | RayError)
    return True
