"""From finished samples to rows of a segment: each with the reason why it is dropped, or with all its columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerFast

from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, SynthesizeConfig
from sbp_ray.engine.messages import RefusedSample, SampledDocument, sample_seed
from sbp_ray.generation.d1 import Source
from sbp_ray.generation.filters import TOO_LONG, drop_reason
from sbp_ray.rounds import round_of_text
from sbp_ray.text.contamination import read_evaluation_sets
from sbp_ray.text.hashing import hash_bytes
from sbp_ray.text.minhash import document_signature
from sbp_ray.text.pair_format import control_prompt_ids
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

_OF_KEPT_ROWS = ("signature", "text", "input_ids")


class FinishedSample(NamedTuple):
    """A sample that need not be requested again."""

    number: int
    """In its shard."""
    sample: int
    """Among the samples of its d1."""
    source: Source
    num_prompt: int
    result: SampledDocument | RefusedSample | None
    """None where d1 leaves no room to write."""


class Writer(NamedTuple):
    """Who writes."""

    version: str
    """The fingerprint of a synthesizer, or what an outside model is called."""
    round: int
    tokenizer: PreTrainedTokenizerFast


def find_writer(cfg: SynthesizeConfig, corpus: Artifact, synthesizer: Artifact | None) -> Writer:
    """The synthesizer, or the outside model, whose text gets the tokens of the corpus."""
    if cfg.rephrase is not None:
        return Writer(cfg.rephrase.model, 1, load_tokenizer(corpus.local_copy("tokenizer")))
    assert synthesizer is not None
    tokenizer = load_tokenizer(synthesizer.local_copy("model"))
    return Writer(synthesizer.fingerprint(), round_of_text(synthesizer), tokenizer)


class RowMaker:
    """Knows the writer, the limits of the filters and the evaluation sets."""

    def __init__(
        self,
        cfg: SynthesizeConfig,
        writer: Writer,
        decontaminate: DecontaminateConfig,
        *,
        window: int,
        shingle_tokens: int,
    ) -> None:
        """`window` is the most that the engine takes of d1 and d2 together."""
        self._cfg, self._window, self._shingle_tokens = cfg, window, shingle_tokens
        self._ngrams = read_evaluation_sets(decontaminate)
        self._writer, self._tokenizer = writer, writer.tokenizer
        self._special = special_ids(self._tokenizer)
        self._text_ids = frozenset(range(len(self._tokenizer))) - {*self._special}

    def make_prompt(self, source: Source) -> tuple[list[int], int]:
        """The prompt, and how many tokens may follow it; 0 where that is not enough for a document."""
        if self._cfg.rephrase is not None:
            return source.input_ids, self._room_after(0)
        prompt = control_prompt_ids(self._cfg.condition, source.input_ids, self._special)
        room = self._room_after(len(prompt))
        return prompt, room if room > self._cfg.min_tokens else 0

    def _room_after(self, num_prompt: int) -> int:
        is_ours = self._cfg.rephrase is None  # an outside model's window is its own affair
        return min(self._cfg.max_tokens, self._window - num_prompt) if is_ours else self._cfg.max_tokens

    def make_seed(self, source: Source, sample: int) -> int:
        """The seed by which a sample is written, whenever and wherever that is."""
        return sample_seed(self._cfg.seed, source.doc_id, sample)

    def make_rows(self, finished: Sequence[FinishedSample]) -> list[dict[str, Any]]:
        """Rows of `segments.SEGMENT`, in the order of the samples."""
        rows = [self._make_row(done) for done in finished]
        texts = ["" if row["reason"] else row["text"] for row in rows]
        for place, sets in self._ngrams.find(texts).items():
            rows[place] |= {"reason": "contaminated", "contaminated": sorted(sets)}
            rows[place] = {name: value for name, value in rows[place].items() if name not in _OF_KEPT_ROWS}
        return rows

    def _make_row(self, done: FinishedSample) -> dict[str, Any]:
        row = {"number": done.number, "d1_id": done.source.doc_id, "sample": done.sample}
        row |= {"num_prompt": done.num_prompt, "num_generated": 0, "num_cached": 0}
        if done.result is None:
            return row | {"reason": TOO_LONG, "detail": f"{done.num_prompt} tokens of {self._window}"}
        if isinstance(done.result, RefusedSample):
            return row | {"reason": done.result.drop, "detail": done.result.reason}
        ids = done.result.input_ids
        reason = drop_reason(done.result, done.source.input_ids, self._cfg, text_ids=self._text_ids)
        row |= {"reason": reason, "num_generated": len(ids), "num_cached": done.result.num_cached_tokens}
        row |= {"read_outside": done.result.read_outside, "written_outside": done.result.written_outside}
        if reason:
            return row
        text = self._tokenizer.decode(ids)
        return row | {
            "signature": document_signature(text, self._shingle_tokens)[0].tobytes(),
            "doc_id": hash_bytes("synthetic", done.source.doc_id, done.sample, num_bytes=16),
            "text": text,
            "input_ids": ids,
            "finish_reason": done.result.finish_reason,
            "synthesizer": self._writer.version,
            "round": self._writer.round,
            "seed": self.make_seed(done.source, done.sample),
            "temperature": self._cfg.temperature,
            "top_p": self._cfg.top_p,
            "max_tokens": self._room_after(done.num_prompt),
        }


def count_tokens(finished: Iterable[FinishedSample]) -> dict[str, int]:
    """What the coordinator adds up."""
    counts: Counter[str] = Counter()
    for done in finished:
        counts["documents"] += 1
        if isinstance(done.result, SampledDocument):
            counts["tokens"] += len(done.result.input_ids)
            counts["prompt_tokens"] += done.num_prompt
            counts["prompt_tokens_cached"] += done.result.num_cached_tokens
    return dict(counts)
