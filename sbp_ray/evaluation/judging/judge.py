"""The judge: an OpenAI-compatible endpoint, never taken for having answered where it failed."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

from sbp_ray.config import JudgeConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.judging.cases import Case, labelled_cases, read_verdict
from sbp_ray.logs import Progress
from sbp_ray.outside_model import FAILURES, Answer, read_answer, refuse_what_needs_a_hand, why_it_failed


class Judge:
    """Asks, and counts what it cost and what failed."""

    def __init__(self, cfg: JudgeConfig) -> None:
        self._cfg = cfg
        self._client = openai.OpenAI(
            base_url=cfg.base_url,
            api_key=os.environ.get(cfg.resources.api_key_env) or "none",
            timeout=cfg.resources.timeout_s,
            max_retries=cfg.resources.attempts - 1,
        )
        self._lock = threading.Lock()
        self.failures: Counter[str] = Counter()
        """Questions without a verdict, by the reason."""
        self.num_skipped = 0
        """Questions that were not asked, since too many had failed."""
        self.input_tokens = self.output_tokens = 0

    def require(self) -> None:
        """Ask one labelled case, to know before hours are spent that there is a judge.

        Raises:
            SbpError: it cannot be reached, or answers no verdict.
        """
        if self.verdict(labelled_cases()[0]) is None:
            [why] = self.failures
            raise SbpError(
                f"benchmarks.judge: {self._cfg.model} at {self._cfg.base_url} gave no verdict on a simple case "
                f"({why}): mend base_url, model, resources.timeout_s or max_answer_tokens, or leave the judge out"
            )

    def verdicts(self, cases: Sequence[Case], what: str) -> list[bool | None]:
        """YES or NO for each case, in order; None where there is none."""
        progress = Progress(f"judge, {what}", len(cases), "verdicts")

        def one(case: Case) -> bool | None:
            found = self.verdict(case)
            with self._lock:
                progress.advance()
            return found

        with ThreadPoolExecutor(self._cfg.resources.at_once) as pool:
            return list(pool.map(one, cases))

    def verdict(self, case: Case) -> bool | None:
        """YES is True; None where there is no verdict, or without asking once the budget of failures is spent."""
        with self._lock:
            if self.failures.total() > self._cfg.resources.max_failures:
                self.num_skipped += 1
                return None
        found, failure = self._ask(case)
        if failure is not None:
            with self._lock:
                self.failures[failure] += 1
        return found

    def _ask(self, case: Case) -> tuple[bool | None, str | None]:
        """A verdict, or why there is none. The client asks again where the endpoint is busy, fails or is not there."""
        try:
            answer = self._client.chat.completions.create(
                model=self._cfg.model,
                messages=[{"role": "user", "content": case.prompt(self._cfg.max_chars)}],
                max_tokens=self._cfg.max_answer_tokens,
                temperature=0.0,
            )
        except FAILURES as error:
            resources = self._cfg.resources
            refuse_what_needs_a_hand(
                error, "benchmarks.judge", self._cfg.model, self._cfg.base_url, resources.api_key_env
            )
            return None, why_it_failed(error)
        return self._read(read_answer(answer))

    def _read(self, answer: Answer) -> tuple[bool | None, str | None]:
        with self._lock:
            self.input_tokens += answer.input_tokens
            self.output_tokens += answer.output_tokens
        if answer.text is None:
            return None, answer.failure
        found = read_verdict(answer.text)
        if found is None:
            return None, "cut off" if answer.is_cut else "nonsense"
        return found, None

    def counted(self) -> dict[str, Any]:
        """Failures and tokens so far."""
        return {
            "failures": dict(sorted(self.failures.items())),
            "skipped": self.num_skipped,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }
