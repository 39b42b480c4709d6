"""How likely the synthesizer holds each sample, and what d1 is worth to it; by which samples can be chosen.

    nll_nats    -log p(d2 | prompt), in nats a token of d2
    gain_nats   log p(d2 | d1) - log p(d2), likewise: d2 after its d1 beside d2 with nothing to condition on, formatted
                as for the conditional gain on held-out pairs

One model in one arithmetic scores both terms, since the gain is a small difference of two large numbers: an engine's
own log-probabilities would spare the first pass, but they are of another type and depend on the engine's batches.

    scratch/scores/part-00003.parquet   the scores of each row of a merged shard, in its order
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import SynthesizeConfig
from sbp_ray.errors import SbpError
from sbp_ray.generation.d1 import read_shard
from sbp_ray.generation.merging import merged_name
from sbp_ray.schema import SYNTHETIC
from sbp_ray.shards import Stats, shard_name
from sbp_ray.steps import SCRATCH, Item, Step
from sbp_ray.text.pair_format import Example, control_prompt_ids, join_tokens, unconditional_example
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

# R = rows of a shard

NLL, GAIN = "nll_nats", "gain_nats"
SCORES = pa.schema([SYNTHETIC.field(name) for name in (NLL, GAIN)])
UNLIKELY, LOW_GAIN, NOT_BEST = "unlikely", "low_gain", "not_best"
SCORES_FOLDER = f"{SCRATCH}/scores"
_BATCH_ROWS = 1024
_BIN_NATS = 0.01  # of the histograms, which tell the distributions without reading the scores of all shards
_SHARES = (0.1, 0.5, 0.9)


def scores_name(shard: int) -> str:
    """Of the scores of a merged shard."""
    return shard_name(SCORES_FOLDER, shard)


def score_step(
    cfg: SynthesizeConfig, items: Sequence[Item], *, corpus: Artifact, synthesizer: Artifact, out: Artifact
) -> Step:
    """Score the samples of merged shards."""
    return Step(
        "synthesize-scores",
        SampleScorer,
        (cfg, corpus, synthesizer, out),
        items,
        lambda item: scores_name(item["shard"]),
        resources=cfg.resources.scoring,
        keeps_worker=True,
    )


class SampleScorer:
    """Scores the samples of one merged shard by the model that wrote them."""

    def __init__(self, cfg: SynthesizeConfig, corpus: Artifact, synthesizer: Artifact, out: Artifact) -> None:
        from sbp_ray.scoring import load_model

        folder = synthesizer.local_copy("model")
        self._cfg, self._corpus, self._out = cfg, corpus, out
        self._model, self._special = load_model(folder, cfg.resources.scoring), special_ids(load_tokenizer(folder))

    def __call__(self, item: Mapping[str, Any]) -> Stats:
        start = time.monotonic()
        shard, out = item["shard"], self._out
        parts, num_positions = [SCORES.empty_table()], 0
        d1 = read_shard(self._corpus, shard_name("train", shard), ["doc_id", "input_ids"])
        with out.fs.open_input_file(out.path(merged_name(shard))) as file:
            columns = ["d1_id", "input_ids", "finish_reason"]
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns):
                d1_rows = d1.take(pc.index_in(batch["d1_id"], d1["doc_id"].combine_chunks()))
                scores, positions = self._score(d1_rows["input_ids"].to_pylist(), batch.to_pylist())
                parts.append(scores)
                num_positions += positions
        table = pa.concat_tables(parts)
        stats = _count_scores(table, self._cfg) | {"tokens_scored": num_positions}
        stats["seconds"] = round(time.monotonic() - start, 3)
        out.write_table(scores_name(shard), table, stats=stats)
        return {"documents": len(table), "tokens": num_positions}

    def _score(self, d1_ids: list[list[int]], rows: list[dict[str, Any]]) -> tuple[pa.Table, int]:
        """Scores of each row, and the positions that were read to know them."""
        given, alone = [], []
        for d1, row in zip(d1_ids, rows, strict=True):
            prompt = control_prompt_ids(self._cfg.condition, d1, self._special)
            end = [self._special.eos] if row["finish_reason"] == "stop" else []  # else no <eos> was written
            given.append(Example(join_tokens(prompt, row["input_ids"], end), len(prompt)))
            whole = unconditional_example(row["input_ids"], self._special)
            alone.append(whole if end else Example(whole.input_ids[:-1], whole.first_supervised))
        nll = {NLL: self._nll(given)}
        if self._cfg.needs_gain:
            nll[GAIN] = self._nll(alone) - nll[NLL]
        read = given + (alone if self._cfg.needs_gain else [])
        nothing = pa.nulls(len(rows), pa.float32())
        columns = [pa.array(nll[name], pa.float32()) if name in nll else nothing for name in SCORES.names]
        return pa.table(columns, schema=SCORES), sum(len(example.input_ids) for example in read)

    def _nll(self, examples: list[Example]) -> NDArray[np.float64]:
        """Nats a token of each."""
        from sbp_ray.scoring import sum_nll

        nll = sum_nll(self._model, examples, batch_tokens=self._cfg.resources.scoring.batch_tokens)
        return nll / [example.num_supervised for example in examples]


def choose_by_scores(
    cfg: SynthesizeConfig, scores: pa.Table, d1_id_R: NDArray[np.bytes_], is_kept_R: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """Of the rows that are kept so far, by reason those that are dropped for their scores.

    Of equally good samples the earlier one is kept.
    """
    is_unlikely_R, is_low_R = _find_bad(cfg, scores)
    is_open_R = is_kept_R & ~is_unlikely_R & ~is_low_R
    badness_R = scores[NLL].to_numpy() if cfg.best_by == "likelihood" else -scores[GAIN].to_numpy()
    d1_R = np.unique(d1_id_R, return_inverse=True)[1]
    order_R = np.lexsort((badness_R, d1_R, ~is_open_R))
    is_first_R = np.diff(d1_R[order_R], prepend=-1) != 0
    places_R = np.arange(len(order_R))
    rank_R = np.empty_like(places_R)
    rank_R[order_R] = places_R - np.maximum.accumulate(np.where(is_first_R, places_R, 0))
    return {
        UNLIKELY: is_kept_R & is_unlikely_R,
        LOW_GAIN: is_kept_R & is_low_R & ~is_unlikely_R,
        NOT_BEST: is_open_R & (rank_R >= (cfg.keep_best or len(rank_R))),
    }


def _find_bad(cfg: SynthesizeConfig, scores: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows are too unlikely, and to which d1 is worth too little."""
    none_R = np.zeros(len(scores), bool)
    is_unlikely_R = none_R if cfg.max_nll_nats is None else ~(scores[NLL].to_numpy() <= np.float32(cfg.max_nll_nats))
    is_low_R = none_R if cfg.min_gain_nats is None else ~(scores[GAIN].to_numpy() >= np.float32(cfg.min_gain_nats))
    return is_unlikely_R, is_low_R


# What a manifest says of them


def _count_scores(scores: pa.Table, cfg: SynthesizeConfig) -> Stats:
    is_unlikely_R, is_low_R = _find_bad(cfg, scores)
    stats: Stats = {"samples": len(scores), "good": int((~is_unlikely_R & ~is_low_R).sum())}
    for name in SCORES.names:
        value_R = scores[name].drop_null().to_numpy()
        if len(value_R):
            bins = Counter(np.floor(value_R / _BIN_NATS).astype(int).tolist())
            histogram = {str(number): count for number, count in bins.items()}
            stats[name] = {"sum": float(value_R.sum(dtype=np.float64)), "histogram": histogram}
    return stats


def summarise_scores(counted: Stats) -> Stats:
    """Added counts of shards, with means and some quantiles, to 0.01 nats, in place of the histograms."""
    summary = {"samples": counted["samples"]}
    for name in counted.keys() & {*SCORES.names}:
        bins = sorted((int(number), count) for number, count in counted[name]["histogram"].items())
        reached = np.cumsum([count for _, count in bins])
        summary[name] = {"mean": round(counted[name]["sum"] / counted["samples"], 4)} | {
            f"{share:.0%}": round(bins[np.searchsorted(reached, share * counted["samples"])][0] * _BIN_NATS, 2)
            for share in _SHARES
        }
    return summary | {"tokens_scored": counted["tokens_scored"], "seconds": round(counted["seconds"], 1)}


def describe_scores(summary: Stats) -> str:
    """How the scores lie, in a line: `gain_nats 0.47 on average, 0.27 at 10%, …`."""
    parts = []
    for name in SCORES.names:
        if name in summary:
            quantiles = ", ".join(f"{nats:.2f} at {share}" for share, nats in summary[name].items() if share != "mean")
            parts.append(f"{name} {summary[name]['mean']:.2f} on average, {quantiles}")
    return "; ".join(parts)


def refuse_if_none_is_good(cfg: SynthesizeConfig, counted: Stats) -> None:
    """Raises SbpError where there are samples, and none is within the limits."""
    if counted["samples"] and not counted["good"]:
        limits = {"max_nll_nats": cfg.max_nll_nats, "min_gain_nats": cfg.min_gain_nats}
        given = ", ".join(f"synthesize.{name}={limit}" for name, limit in limits.items() if limit is not None)
        raise SbpError(
            f"{given} keeps none of {counted['samples']:,} samples, whose scores are, in nats a token, "
            f"{describe_scores(summarise_scores(counted))}: set another limit, with --redo synthesize"
        )
