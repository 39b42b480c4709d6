"""corpus, pairs, base_lm -> synthesizer: the base LM learns to write d2 given d1."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sbp_ray.artifacts import Artifact
from sbp_ray.config import TuneConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.intervals import connected_groups, estimate_over_groups
from sbp_ray.mixing import Mixture
from sbp_ray.model import read_base_shape
from sbp_ray.rounds import round_of
from sbp_ray.scoring import load_model, sum_nll
from sbp_ray.shards import Stats, fetch_rows, list_shards
from sbp_ray.steps import call_each
from sbp_ray.text.pair_format import PAIR_MARKS, Example, pair_example, unconditional_example
from sbp_ray.text.tokenizer import SpecialIds, load_tokenizer, special_ids
from sbp_ray.training.launch import run_plan
from sbp_ray.training.packed import Packed, read_packed
from sbp_ray.training.pair_rows import PAIR_ROWS, SOURCES, UNREAD, pack_pairs
from sbp_ray.training.preflight import (
    refuse_missing_choice,
    refuse_missing_gpu,
    refuse_other_tokenizer,
    refuse_short_context,
)
from sbp_ray.training.training_plan import MODEL_FOLDER, TrainingPlan, rows_folder

logger = logging.getLogger(__name__)

STAGE = "tune"
GAINS = "held_out_gains.parquet"
"""Of each held-out pair: the group it is drawn with, supervised tokens of d2, and its NLL under each of `VIEWS`."""
VIEWS = {"nll_given_d1": "given_d1", "nll_given_random": "given_random", "nll_alone": "alone"}


def tune_synthesizer(cfg: TuneConfig, *, corpus: Artifact, pairs: Artifact, base_lm: Artifact, out: Artifact) -> Stats:
    """Tune the base LM on log p(d2 | d1), and measure on held-out pairs what d1 is worth.

    Raises:
        SbpError: there are no train pairs, or none is short enough, or they may exceed the base LM's context; the base
            LM has another tokenizer; the training diverged; the export was refused.
    """
    refuse_missing_gpu("tune", cfg)
    shape, vocab_size = read_base_shape(str(base_lm.local_copy(MODEL_FOLDER)))
    tokenizer = load_tokenizer(corpus.local_copy("tokenizer"))
    refuse_short_context("tune", cfg, shape.max_positions)
    refuse_other_tokenizer(tokenizer, base_lm.local_copy(MODEL_FOLDER), vocab_size)
    special = special_ids(tokenizer)
    pack_pairs(cfg, corpus=corpus, pairs=pairs, special=special, vocab_size=vocab_size, out=out)
    packed = {name: read_packed(out, name) for name in SOURCES.values()}
    development = packed[SOURCES["development"]].source
    for source in packed.values():
        source.stats.pop("shortest_pair", None)  # of one shard; it does not add up
    train = packed[SOURCES["train"]]
    _refuse_no_pairs(cfg, train, out)
    refuse_missing_choice("tune", cfg, development)
    # Fewer pairs than all were packed where `num_epochs` is below 1: one pass over them is what it asks for.
    num_rows = train.stats.get(PAIR_ROWS, train.source.num_rows)
    num_steps = math.ceil(max(1, cfg.num_epochs) * num_rows / cfg.batch_rows)
    plan = TrainingPlan(
        stage=STAGE,
        config=cfg,
        mixture=Mixture(train.source, None, num_steps * cfg.batch_rows, 0, cfg.seed),
        num_steps=num_steps,
        out=out,
        validation=packed[SOURCES["validation"]].source,
        development=development,
        tokenizer=corpus,
        vocab_size=vocab_size,
        special=special,
        model=shape,
        base=base_lm,
    )
    return {
        "round": round_of(base_lm) + 1,
        **run_plan(plan, packed),
        "drops": train.stats["drops"],
        "validation": {"pairs": 0} if cfg.condition == "none" else _measure_gain(cfg, corpus, pairs, special, out),
    }


def _refuse_no_pairs(cfg: TuneConfig, train: Packed, out: Artifact) -> None:
    if train.source.num_rows:
        return
    num_pairs = train.stats.get("pairs", 0)
    if not num_pairs:
        raise SbpError("there are no train pairs: lower pair.min_cosine, or add related documents")
    if train.stats["drops"][UNREAD] == num_pairs:
        raise SbpError(f"tune.num_epochs={cfg.num_epochs} reads none of the {num_pairs:,} train pairs: raise it")
    shortest = min(
        out.read_stats(file)["shortest_pair"] for file in out.files(rows_folder(train.source.name), ".parquet")
    )
    setting, longest = cfg.longest_document()
    raise SbpError(
        f"none of the {num_pairs - train.stats['drops'][UNREAD]:,} train pairs fits tune.{setting}={longest}, "
        f"the shortest has {shortest} tokens: raise tune.{setting}"
    )


# What d1 is worth


class HeldOutPair(NamedTuple):
    """Three ways to see one d2."""

    given_d1: Example
    given_random: Example
    alone: Example
    groups: tuple[str, str]
    """Of d1 and of d2."""


def choose_held_out_pairs(
    cfg: TuneConfig, corpus: Artifact, pairs: Artifact, special: SpecialIds, context: int
) -> list[HeldOutPair]:
    """Validation pairs, as many from each shard, each d2 also after a document of another group and alone."""
    files = list_shards(pairs, "validation")
    rng = np.random.default_rng(cfg.seed)
    ids: list[tuple[bytes, bytes]] = []
    for file in files:
        table = pairs.read_table(file, columns=["d1_id", "d2_id"])
        chosen = rng.permutation(len(table))[: -(-cfg.max_validation_pairs // len(files))]
        table = table.take(np.sort(chosen))
        ids += zip(table["d1_id"].to_pylist(), table["d2_id"].to_pylist(), strict=True)
    ids = ids[: cfg.max_validation_pairs]
    strangers = sorted({doc_id for pair in ids for doc_id in pair})
    rows = fetch_rows(corpus, "validation", strangers, ["input_ids", "group"])
    texts, groups = (dict(zip(strangers, rows[name].to_pylist(), strict=True)) for name in ("input_ids", "group"))
    made = []
    for d1_id, d2_id in ids:
        others = (strangers[i] for i in rng.permutation(len(strangers)))
        room = context - len(texts[d2_id]) - PAIR_MARKS  # for d1
        unrelated = (o for o in others if groups[o] != groups[d2_id] and len(texts[o]) <= room)
        stranger = next(unrelated, None)
        if stranger is not None and len(texts[d1_id]) <= room and len(texts[d2_id]):
            given_d1, given_random = (pair_example(texts[o], texts[d2_id], special) for o in (d1_id, stranger))
            alone = unconditional_example(texts[d2_id], special)
            made.append(HeldOutPair(given_d1, given_random, alone, (groups[d1_id], groups[d2_id])))
    return made


def _measure_gain(cfg: TuneConfig, corpus: Artifact, pairs: Artifact, special: SpecialIds, out: Artifact) -> Stats:
    """NLL a token of held-out d2 given d1, given an unrelated document, and alone; in one worker of the cluster."""
    [(_, gain)] = call_each(_score_pairs, [cfg], corpus, pairs, special, out, resources=cfg.resources)
    if gain["pairs"]:
        logger.info(
            f"{STAGE} | held-out d2, nats a token: {gain['nll_given_d1']:.3f} given d1, "
            f"{gain['nll_given_random']:.3f} given an unrelated document, {gain['nll_alone']:.3f} alone"
        )
    else:
        logger.warning(f"{STAGE} | no held-out pairs with an unrelated document: the gain from d1 is not measured")
    return gain


def _score_pairs(cfg: TuneConfig, corpus: Artifact, pairs: Artifact, special: SpecialIds, out: Artifact) -> Stats:
    model = load_model(out.local_copy("model"), cfg.resources)
    examples = choose_held_out_pairs(cfg, corpus, pairs, special, model.config.max_position_embeddings)
    if not examples:
        return {"pairs": 0, **dict.fromkeys(VIEWS)}
    scored, gain = score_held_out_pairs(model, examples, cfg.resources.micro_batch_rows * cfg.seq_len)
    out.write_table(GAINS, scored)
    return {"pairs": len(examples)} | gain


def score_held_out_pairs(model: Any, examples: Sequence[HeldOutPair], batch_tokens: int) -> tuple[pa.Table, Stats]:
    """A row of `GAINS` for each pair, and what `summarize_gain` makes of them."""
    nll = {
        name: sum_nll(model, [getattr(pair, view) for pair in examples], batch_tokens=batch_tokens)
        for name, view in VIEWS.items()
    }
    tokens_N = np.array([pair.alone.num_supervised for pair in examples], np.int64)
    groups_N = connected_groups(*zip(*(pair.groups for pair in examples), strict=True))
    return pa.table({"group": groups_N, "tokens": tokens_N, **nll}), summarize_gain(tokens_N, nll, groups_N)


def summarize_gain(tokens_N: np.ndarray, nll: Mapping[str, np.ndarray], groups_N: Sequence[str]) -> Stats:
    """Nats a token of each view, and what d1 saves over the others, each pair beside itself, over groups of pairs."""
    saved = {
        f"saved_over_{other}": estimate_over_groups(nll[f"nll_{view}"] - nll["nll_given_d1"], tokens_N, groups_N)
        for other, view in (("random", "given_random"), ("nothing", "alone"))
    }
    return {name: float(nll_N.sum() / tokens_N.sum()) for name, nll_N in nll.items()} | saved
