"""The built-in arms: what each trains on, and the one thing in which a control differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sbp_ray.config import Config
from sbp_ray.evaluation import study

BASELINE, ORACLE = study.BASELINE, study.ORACLE


@dataclass(frozen=True)
class BuiltIn:
    """How an arm's training comes about."""

    says: str
    """In a report's table."""
    has_synthetic: bool = True
    """Whether it trains on synthetic text too."""
    overrides: tuple[str, ...] = ()
    """Settings in which it differs from the base."""
    base_lm_writes: bool = False
    """The base LM, untuned, writes the synthetic text."""
    outside_writes: bool = False
    """An outside model writes it, which the arm's `synthesize.rephrase` names."""
    base_lm_embeds: bool = False
    """The base LM's states are the vectors that pairs are mined with."""
    is_tuned: bool = False
    """Its settings come from the experiment's sweep."""
    of_many: Literal["averaged", "taught by"] | None = None
    """It is several models of another arm, whose probabilities are averaged, or that one learns."""


BUILT_IN = {
    BASELINE: BuiltIn("the real text, again and again", has_synthetic=False),
    "sbp": BuiltIn("real text, and what the synthesizer wrote"),
    ORACLE: BuiltIn("as many tokens of more real text", has_synthetic=False),
    "random_pairs": BuiltIn("as sbp, the synthesizer tuned on random pairs", overrides=("pair.source=random",)),
    "unconditional": BuiltIn(
        "as sbp, the text sampled from the base LM without d1",
        overrides=("synthesize.condition=none",),
        base_lm_writes=True,
    ),
    "alone": BuiltIn(
        "as sbp, the synthesizer tuned on the same d2 without d1, and sampled without d1",
        overrides=("tune.condition=none", "synthesize.condition=none"),
    ),
    "untuned": BuiltIn(
        "as sbp, the base LM going on with the first half of d1",
        overrides=("synthesize.condition=continue",),
        base_lm_writes=True,
    ),
    "own_embedder": BuiltIn(
        "as sbp, the pairs mined with the base LM's mean states",
        overrides=("embed.pooling=mean_of_states",),
        base_lm_embeds=True,
    ),
    "regularised": BuiltIn("repetition with ten times the weight decay", has_synthetic=False),
    "tuned": BuiltIn("repetition, its settings swept on the development split", has_synthetic=False, is_tuned=True),
    "ensemble": BuiltIn("several models of an arm, their probabilities averaged", of_many="averaged"),
    "distilled": BuiltIn("one model taught by several of an arm, by their mean probabilities", of_many="taught by"),
    "token_noise": BuiltIn(
        "repetition with a tenth of the tokens shown otherwise than they are",
        has_synthetic=False,
        overrides=("pretrain.token_noise=0.1",),
    ),
    "in_context": BuiltIn(
        "the real text again and again, each document read after related ones",
        has_synthetic=False,
        overrides=("pretrain.in_context=true",),
    ),
    "rephrase": BuiltIn("as sbp, each d1 rewritten by an outside model", outside_writes=True),
    "megadoc": BuiltIn("as sbp, each d1 read after all that was written from it", overrides=("mixture.megadocs=true",)),
    "synthetic_first": BuiltIn("as sbp, synthetic text first and real text last", overrides=("mixture.real_tail=1",)),
    "duplicates_kept": BuiltIn(
        "as sbp, with pairs of near-duplicates, and with written copies",
        overrides=(
            "pair.max_jaccard=1",
            "pair.max_containment=1",
            "pair.max_content_overlap=1",
            "synthesize.max_copy=1",
            "synthesize.max_jaccard=1",
        ),
    ),
}


def overrides_of(name: str, base: Config) -> tuple[str, ...]:
    """Settings in which a built-in arm differs from the base."""
    if name == "regularised":
        return (f"pretrain.weight_decay={10 * base.pretrain.weight_decay}",)
    return BUILT_IN[name].overrides
