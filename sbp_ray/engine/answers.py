"""What a request's deltas come to: one JSON object, or the events of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.completion_choice import Logprobs

from sbp_ray.engine.bodies import (
    CompletionRequest,
    StreamOptions,
    SynthesizedDocument,
    SynthesizeRequest,
    SynthesizeResponse,
    Usage,
)
from sbp_ray.engine.messages import MODEL_ID, Accepted, Delta


class _Answer:
    """Collects deltas by sample."""

    def begin(self, accepted: Accepted) -> None:
        """The request is served: what is known of the answer before its text."""
        self._accepted = accepted
        self._samples: dict[int, Delta] = {}

    def add(self, deltas: list[Delta]) -> None:
        """Take in what was written."""
        for delta in deltas:
            self._samples[delta.index] = delta.after(self._samples.get(delta.index))

    def _count(self, deltas: list[Delta]) -> None:
        """What a stream needs of them."""
        self._samples |= {delta.index: delta for delta in deltas}

    def _in_order(self) -> list[Delta]:
        return [sample for _, sample in sorted(self._samples.items())]

    def _usage(self) -> Usage:
        prompt, written = self._accepted.prompt_tokens, sum(delta.num_tokens for delta in self._samples.values())
        return Usage(prompt_tokens=prompt, completion_tokens=written, total_tokens=prompt + written)


class SynthesizeAnswer(_Answer):
    """Of `POST /v1/synthesize`."""

    def __init__(self, request: SynthesizeRequest) -> None:
        self._id = f"syn-{uuid.uuid4().hex}"

    def whole(self) -> dict[str, Any]:
        return self._response([_document(delta) for delta in self._in_order()], self._usage())

    def events(self, deltas: list[Delta]) -> Iterator[dict[str, Any]]:
        """What the stream says of new deltas: one event, with a delta of each document that has one."""
        self._count(deltas)
        yield self._response([_document(delta) for delta in deltas])

    def last_events(self) -> Iterator[dict[str, Any]]:
        """The event before `[DONE]` has no documents, and the usage."""
        yield self._response([], self._usage())

    def _response(self, documents: list[SynthesizedDocument], usage: Usage | None = None) -> dict[str, Any]:
        return SynthesizeResponse(
            id=self._id,
            model=MODEL_ID,
            synthesizer=self._accepted.synthesizer,
            seed=self._accepted.seed,
            documents=documents,
            usage=usage,
        ).model_dump(exclude_none=True)


def _document(delta: Delta) -> SynthesizedDocument:
    if not delta.finish_reason:
        return SynthesizedDocument(index=delta.index, text=delta.text)
    return SynthesizedDocument.model_validate(
        {"index": delta.index, "text": delta.text, "num_tokens": delta.num_tokens}
        | {"finish_reason": delta.finish_reason, "seed": delta.seed}
    )


class CompletionAnswer(_Answer):
    """Of `POST /v1/completions`: OpenAI's objects, with the synthesizer's version as `system_fingerprint`.

    `seed` stands beside them; OpenAI's clients keep it as an extra field.
    """

    def __init__(self, request: CompletionRequest) -> None:
        self._id, self._created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._options = request.stream_options or StreamOptions()
        self._with_ids, self._with_logprobs = request.return_token_ids, request.logprobs is not None
        self._offsets: dict[int, int] = {}

    def whole(self) -> dict[str, Any]:
        return self._object([self._choice(delta) for delta in self._in_order()], self._usage())

    def events(self, deltas: list[Delta]) -> Iterator[dict[str, Any]]:
        """One event for each delta: OpenAI's clients look at the first choice only."""
        self._count(deltas)
        usage = self._usage() if self._options.continuous_usage_stats else None
        for delta in deltas:
            yield self._object([self._choice(delta)], usage)

    def last_events(self) -> Iterator[dict[str, Any]]:
        """The usage, if it was asked for."""
        if self._options.include_usage:
            yield self._object([], self._usage())

    def _object(self, choices: list[CompletionChoice], usage: Usage | None = None) -> dict[str, Any]:
        return Completion(
            id=self._id,
            choices=choices,
            created=self._created,
            model=MODEL_ID,
            object="text_completion",
            system_fingerprint=self._accepted.synthesizer,
            usage=CompletionUsage(**usage.model_dump()) if usage else None,
        ).model_dump() | {"seed": self._accepted.seed}

    def _choice(self, delta: Delta) -> CompletionChoice:
        extra: dict[str, Any] = {"token_ids": [token.token_id for token in delta.tokens]} if self._with_ids else {}
        # A delta that is not the last has no reason yet: null, as OpenAI's streams have it, though its class wants one.
        return CompletionChoice.model_construct(
            index=delta.index,
            text=delta.text,
            finish_reason=delta.finish_reason,
            logprobs=self._logprobs(delta) if self._with_logprobs else None,
            **extra,
        )

    def _logprobs(self, delta: Delta) -> Logprobs:
        """In OpenAI's form; the offsets go on where the sample's last delta ended."""
        offsets = [self._offsets.get(delta.index, 0)]
        for token in delta.tokens:
            offsets.append(offsets[-1] + len(token.text))
        self._offsets[delta.index] = offsets.pop()
        return Logprobs.model_construct(
            tokens=[token.text for token in delta.tokens],
            token_logprobs=[token.logprob for token in delta.tokens],
            top_logprobs=[token.top for token in delta.tokens],
            text_offset=offsets,
        )
