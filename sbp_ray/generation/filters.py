"""Why a document is not kept, and how often real text would not be kept for the same reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence

from sbp_ray.config import SynthesizeConfig
from sbp_ray.engine.messages import SampledDocument
from sbp_ray.text.quality import repetition_share
from sbp_ray.text.shingles import containment, shingle_hashes

TOO_LONG = "prompt_too_long"
REFUSED = "refused_by_engine"
NO_PAIR = "no_pair"
"""Of a d1 that has no related document, where pairs are rewritten."""
BAD = (TOO_LONG, REFUSED)
"""Reasons of samples that were never written: they are also listed in quarantine."""


def drop_reason(
    written: SampledDocument, d1_ids: Sequence[int], cfg: SynthesizeConfig, *, text_ids: Container[int]
) -> str | None:
    """Why a document is not kept, the first reason of those below; None for a sound one.

    Args:
        written: what the synthesizer wrote.
        d1_ids: the document it was given.
        text_ids: tokens that stand for text; others (marks of the pair format, unused rows of the embedding) do not
            belong inside a document.
    """
    ids = written.input_ids
    if written.finish_reason != "stop" and not cfg.keep_unfinished:
        return "unfinished"
    if len(ids) < cfg.min_tokens:
        return "too_short"
    if not all(token in text_ids for token in ids):
        return "not_text"
    if repetition_share(ids) > cfg.max_repetition:
        return "looping"
    if containment(shingle_hashes(ids), shingle_hashes(d1_ids)) > cfg.max_copy:
        return "copy_of_d1"
    return None


def real_text_drops(documents: Iterable[Sequence[int]], cfg: SynthesizeConfig) -> dict[str, int]:
    """How many real documents the same limits would drop; those that compare d2 with its d1 do not apply."""
    drops: Counter[str] = Counter()
    for ids in documents:
        if len(ids) > cfg.max_tokens and not cfg.keep_unfinished:
            drops["unfinished"] += 1
        elif len(ids) < cfg.min_tokens:
            drops["too_short"] += 1
        elif repetition_share(ids) > cfg.max_repetition:
            drops["looping"] += 1
    return dict(drops)
