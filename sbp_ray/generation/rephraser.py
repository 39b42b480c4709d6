"""An outside model in the place of the engines: asked for one sample after another until each of them is there.

`Rephraser.sample` yields what `Engines.sample` does, so segments, merging and filters are the same. A sample that the
endpoint is too busy for, fails at or does not answer is asked for again, with the same seed; whether that gives the
same text is the endpoint's affair. Only an answer without a text, a refusal, or failure after failure at what answers
others ends a sample without a document.
`require_rephrasers` has each endpoint that a plan needs rewrite a sentence before anything runs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import openai
from transformers import PreTrainedTokenizerFast

from sbp_ray.config import RephraseConfig, SynthesizeConfig
from sbp_ray.engine.messages import RefusedSample, SampledDocument, Sampling
from sbp_ray.errors import SbpError
from sbp_ray.generation.filters import NO_PAIR
from sbp_ray.logs import duration
from sbp_ray.nodes import Node
from sbp_ray.outside_model import FAILURES, Answer, may_pass, read_answer, refuse_what_needs_a_hand, why_it_failed
from sbp_ray.text.tokenizer import encode_texts

_WHERE = "synthesize.rephrase"
_INSTRUCTIONS = {
    "d1": "Write the text below once more in other words. Keep every fact, add none, and answer with the new text "
    "alone.\n\n{d1}",
    "pair": "Below are two texts on related things. Write a new text of your own, about as long as one of them, from "
    "what both say. Add no facts, and answer with the new text alone.\n\nFirst text:\n{d1}\n\nSecond text:\n{d2}",
}
_TRIAL = {"d1": "The bridge at Aldern was built in 1911.", "d2": "Aldern lies on the river Wend."}
_TRIAL_TOKENS = 256
_LONGEST_PAUSE_S = 5.0
_MOST_ATTEMPTS = 20  # at one sample, full houses aside: then the trial tells whether the endpoint is to blame


class Rephraser:
    """The outside model behind its endpoint."""

    def __init__(
        self,
        cfg: RephraseConfig,
        tokenizer: PreTrainedTokenizerFast,
        *,
        give_up_after_s: float,
    ) -> None:
        """
        Args:
            tokenizer: of the corpus.
            give_up_after_s: how long the endpoint may give no answer at all before an error is raised.
        """
        self._cfg, self._tokenizer, self._give_up_after_s = cfg, tokenizer, give_up_after_s
        self.related: dict[str, Sequence[str]] = {}
        """For pairs, the d2 of each d1 by its id in hex."""
        self._client = openai.AsyncOpenAI(
            base_url=cfg.resources.base_url,
            api_key=os.environ.get(cfg.resources.api_key_env) or "none",
            timeout=cfg.resources.timeout_s,
            max_retries=0,
        )
        self._heard_at: float | None = None

    def forget(self, d1: Iterable[str]) -> None:
        """The d2 of these d1, all of whose samples are there."""
        for name in d1:
            del self.related[name]

    async def sample(
        self, name: str, prompt: list[int], seeds: dict[int, int], sampling: Sampling
    ) -> AsyncIterator[SampledDocument | RefusedSample]:
        """Samples from one d1, given as its tokens, by their seeds, in the order in which they are done.

        Raises:
            SbpError: the endpoint refuses the model or the key, or has not answered for `give_up_after_s`.
        """
        self._heard_at = self._heard_at or time.monotonic()
        d1 = self._tokenizer.decode(prompt)
        asked = [asyncio.ensure_future(self._ask(name, d1, *one, sampling)) for one in seeds.items()]
        try:
            for done in asyncio.as_completed(asked):
                yield await done
        finally:
            for task in asked:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*asked, return_exceptions=True)

    async def _ask(
        self, name: str, d1: str, sample: int, seed: int, sampling: Sampling
    ) -> SampledDocument | RefusedSample:
        shown = {"d1": d1}
        if self._cfg.of == "pair":
            related = self.related.get(name)
            if not related:
                return RefusedSample(sample, "no pair has it as d1", drop=NO_PAIR)
            shown["d2"] = related[sample % len(related)]
        attempts = to_blame = 0
        while True:
            attempts += 1
            try:
                completion = await self._client.chat.completions.create(**_request(self._cfg, shown, sampling, seed))
            except FAILURES as error:
                _refuse_what_needs_a_hand(self._cfg, error)
                failure = why_it_failed(error)
                if not may_pass(error):
                    self._heard_at = time.monotonic()
                    return RefusedSample(sample, failure)
                self._give_up_in_time(failure)
                to_blame += not isinstance(error, openai.RateLimitError)
                if to_blame == _MOST_ATTEMPTS:
                    if await self._answers_the_trial(sampling):
                        return RefusedSample(sample, f"{failure}, {attempts} times")
                    to_blame = 0
                await asyncio.sleep(min(attempts, _LONGEST_PAUSE_S))
            else:
                self._heard_at = time.monotonic()
                return self._read(read_answer(completion), sample, sampling)

    async def _answers_the_trial(self, sampling: Sampling) -> bool:
        """Whether the endpoint answers others: in an outage no sample is to blame."""
        try:
            await self._client.chat.completions.create(**_trial_request(self._cfg, sampling))
        except FAILURES:
            return False
        self._heard_at = time.monotonic()
        return True

    def _read(self, answer: Answer, sample: int, sampling: Sampling) -> SampledDocument | RefusedSample:
        if answer.text is None or not answer.text.strip():
            return RefusedSample(sample, answer.failure or "an empty answer")
        [ids] = encode_texts(self._tokenizer, [answer.text.strip()])
        finish = "length" if answer.is_cut or len(ids) > sampling.max_tokens else "stop"
        return SampledDocument(sample, ids, finish, 0, answer.input_tokens, answer.output_tokens)

    def _give_up_in_time(self, failure: str) -> None:
        assert self._heard_at is not None
        silence_s = time.monotonic() - self._heard_at
        if silence_s >= self._give_up_after_s:
            raise SbpError(
                f"{_WHERE}: {self._cfg.resources.base_url} has not answered for {duration(silence_s)} (last: "
                f"{failure}): mend that and run the same command again to go on"
            )


def make_prompt(cfg: RephraseConfig, shown: Mapping[str, str]) -> str:
    """The instruction with the documents in it. Neither may hold the other's mark: they are put in at once."""
    instruction = cfg.instruction or _INSTRUCTIONS[cfg.of]
    parts = instruction.split("{d1}")
    if "d2" not in shown:
        return shown["d1"].join(parts)
    return shown["d1"].join(shown["d2"].join(part.split("{d2}")) for part in parts)


def require_rephrasers(nodes: Iterable[Node]) -> None:
    """Ask the outside models of artifacts that are to be made, each once.

    Raises:
        SbpError: see `require_rephraser`.
    """
    asked: list[RephraseConfig] = []
    for node in nodes:
        cfg = node.config.synthesize
        if node.stage.job == "synthesize" and cfg.rephrase and cfg.rephrase not in asked:
            require_rephraser(cfg)
            asked.append(cfg.rephrase)


def require_rephraser(synthesize: SynthesizeConfig) -> None:
    """Have a sentence rewritten as the samples will be, to know before hours are spent that there is someone to do it.

    Raises:
        SbpError: the endpoint cannot be reached, is too slow, refuses, or answers no text.
    """
    assert synthesize.rephrase is not None
    cfg, sampling = synthesize.rephrase, Sampling(synthesize.max_tokens, synthesize.temperature, synthesize.top_p)
    client = openai.OpenAI(
        base_url=cfg.resources.base_url,
        api_key=os.environ.get(cfg.resources.api_key_env) or "none",
        timeout=cfg.resources.timeout_s,
        max_retries=1,
    )
    try:
        answer = read_answer(client.chat.completions.create(**_trial_request(cfg, sampling)))
        failure = answer.failure or ("" if (answer.text or "").strip() else "an empty answer")
    except FAILURES as error:
        _refuse_what_needs_a_hand(cfg, error)
        failure = why_it_failed(error)
    if failure:
        raise SbpError(
            f"{_WHERE}: {cfg.model} at {cfg.resources.base_url} did not rewrite a sentence ({failure}): mend model, "
            "resources.base_url or resources.timeout_s, or leave the outside model out"
        )


def _trial_request(cfg: RephraseConfig, sampling: Sampling) -> dict[str, Any]:
    """As a sample's, but for the text and its length: an endpoint refuses fields as well as texts."""
    return _request(cfg, _TRIAL, sampling, seed=0) | {"max_tokens": _TRIAL_TOKENS}


def _request(cfg: RephraseConfig, shown: Mapping[str, str], sampling: Sampling, seed: int) -> dict[str, Any]:
    return {
        "model": cfg.model,
        "messages": [{"role": "user", "content": make_prompt(cfg, shown)}],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }


def _refuse_what_needs_a_hand(cfg: RephraseConfig, error: Exception) -> None:
    refuse_what_needs_a_hand(error, _WHERE, cfg.model, cfg.resources.base_url, cfg.resources.api_key_env)
