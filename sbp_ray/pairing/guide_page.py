"""`guide.md` beside the pairs: what to look at before a threshold is chosen, texts included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PairConfig
from sbp_ray.pairing.candidates import MEASURES
from sbp_ray.pairing.guide import GUIDE, Sample
from sbp_ray.shards import fetch_rows

PAGE = "guide.md"
_SHOWN_CHARS = 400
_EXAMPLES = 3
_REASONS = {
    "below_min_cosine": "less similar than `pair.min_cosine`",
    "above_max_cosine": "more similar than `pair.max_cosine`",
    "near_duplicate_jaccard": "more of all shingles in common than `pair.max_jaccard`",
    "near_duplicate_containment": "one text holds more of the other's shingles than `pair.max_containment`",
    "near_duplicate_update": "one text and its update: content words in common above `pair.max_content_overlap`",
    "form_only": "alike in form only: content words in common below `pair.min_content_overlap`",
    "d2_cap": "a document that is d2 of more than `pair.max_as_d2` pairs",
    "d1_cap": "a document that is d1 of more than `pair.max_as_d1` pairs",
}


def write_guide_page(cfg: PairConfig, drops: Mapping[str, int], *, corpus: Artifact, out: Artifact) -> None:
    """Write the page of the train split, from `guide.json` and the texts of its sample pairs.

    Args:
        drops: how many each reason kept out.

    Raises:
        SbpError: a shard of the corpus is missing.
    """
    guide = out.read_json(GUIDE)["train"]
    ids = {bytes.fromhex(sample[side]) for sample in guide["samples"] for side in ("d1_id", "d2_id")}
    table = fetch_rows(corpus, "train", sorted(ids), ["text"], skips_missing=True)
    texts = {
        doc_id.hex(): text for doc_id, text in zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True)
    }
    samples = [sample for sample in guide["samples"] if {sample["d1_id"], sample["d2_id"]} <= texts.keys()]
    out.write_bytes(PAGE, "\n".join([*_lines(cfg, guide, drops, samples, texts), ""]).encode())


def _lines(
    cfg: PairConfig,
    guide: Mapping[str, Any],
    drops: Mapping[str, int],
    samples: Sequence[Sample],
    texts: Mapping[str, str],
) -> Iterator[str]:
    yield from ("# Choosing the pairs", "", _recommendation(cfg, guide["recommended"]), "")
    yield "A measure of the pairs' texts, not of their worth: read the pairs below before you follow it. Then"
    yield "`--redo pair pair.min_cosine=…`; nothing before `pair` is computed again."
    yield from ("", "## What each threshold gives", "")
    yield "| `min_cosine` | documents with a pair | pairs | near-duplicates | of the band's pairs share content words |"
    yield "|---|---|---|---|---|"
    for row, band in zip(guide["thresholds"], guide["bands"], strict=True):
        fit = band["listed"] - sum(band[reason] for reason in _REASONS if reason in band)
        share = f"{band['related'] / fit:.0%}" if fit else "–"
        counts = f"{row['documents_share']:.1%} | {row['pairs']:,} | {row['duplicate_share']:.1%}"
        yield f"| {row['min_cosine']:.2f} | {counts} | {share} |"
    yield from ("", "## What was dropped", "")
    for reason, number in drops.items():
        yield from (f"### {number:,} {reason}: {_REASONS[reason]}", "")
        for sample in [sample for sample in samples if sample["dropped"] == reason][-_EXAMPLES:]:
            yield from _pair(sample, texts)
    yield from ("## Pairs by cosine, drawn at random", "")
    for edge in sorted({sample["band"] for sample in samples}, key=float, reverse=True):
        inside = " (below `min_cosine`)" if float(edge) < cfg.min_cosine else ""
        yield from (f"### From {edge}{inside}", "")
        for sample in samples:
            if sample["band"] == edge and not sample["dropped"]:
                yield from _pair(sample, texts)


def _recommendation(cfg: PairConfig, recommended: Mapping[str, Any]) -> str:
    threshold = recommended["min_cosine"]
    if threshold is None:
        return f"No `pair.min_cosine` is recommended (now {cfg.min_cosine:.2f}): {recommended['reason']}."
    return f"Recommended: **`pair.min_cosine={threshold:.2f}`** (now {cfg.min_cosine:.2f}): {recommended['reason']}."


def _pair(sample: Sample, texts: Mapping[str, str]) -> Iterator[str]:
    numbers = [f"cosine {sample['cosine']:.3f}", *(f"{name.replace('_', ' ')} {sample[name]:.2f}" for name in MEASURES)]
    yield from (f"{', '.join(numbers)} ({sample['d1_id']} {sample['d2_id']})", "")
    for side in ("d1_id", "d2_id"):
        text = " ".join(texts[sample[side]].split())
        cut = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} […]"
        yield from (f"    {cut}", "")  # indented: nothing in it is taken for Markdown
