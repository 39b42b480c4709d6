"""What d1 is worth to each sample: log p(d2 | d1) - log p(d2) under the synthesizer, in nats a token of d2.

The two terms are d2 after its d1, and d2 with nothing to condition on, formatted as for the conditional gain on
held-out pairs. One model in one arithmetic scores both, since the gain is a small difference of two large numbers: an
engine's own log-probabilities would spare the first pass, but they are of another type and depend on its batches.

    scratch/gains/part-00003.parquet   the gain of each row of a merged shard, in its order
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
from sbp_ray.shards import SCRATCH, Item, Stats, Step, shard_name
from sbp_ray.text.pair_format import Example, pair_example, unconditional_example
from sbp_ray.text.tokenizer import load_tokenizer, special_ids

# R = rows of a shard

LOW_GAIN, NOT_BEST = "low_gain", "not_best"
_BATCH_ROWS = 1024
_BIN_NATS = 0.01  # of the histogram, which tells the distribution without reading the gains of all shards
_SHARES = (0.1, 0.5, 0.9)


def gain_name(shard: int) -> str:
    """Of the gains of a merged shard."""
    return shard_name(f"{SCRATCH}/gains", shard)


def gain_step(
    cfg: SynthesizeConfig, items: Sequence[Item], *, corpus: Artifact, synthesizer: Artifact, out: Artifact
) -> Step:
    """Score the samples of merged shards."""
    return Step(
        "synthesize-gains",
        GainScorer,
        (cfg, corpus, synthesizer, out),
        items,
        lambda item: gain_name(item["shard"]),
        resources=cfg.resources.scoring,
        keeps_worker=True,
    )


class GainScorer:
    """Scores the samples of one merged shard, which its worker's model wrote."""

    def __init__(self, cfg: SynthesizeConfig, corpus: Artifact, synthesizer: Artifact, out: Artifact) -> None:
        from sbp_ray.scoring import load_model

        folder = synthesizer.local_copy("model")
        self._cfg, self._corpus, self._out = cfg, corpus, out
        self._model, self._special = load_model(folder, cfg.resources.scoring), special_ids(load_tokenizer(folder))

    def __call__(self, item: Mapping[str, Any]) -> Stats:
        start = time.monotonic()
        shard, out = item["shard"], self._out
        parts, num_positions = [np.empty(0)], 0
        d1 = read_shard(self._corpus, shard_name("train", shard), ["doc_id", "input_ids"])
        with out.fs.open_input_file(out.path(merged_name(shard))) as file:
            columns = ["d1_id", "input_ids", "finish_reason"]
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns):
                d1_rows = d1.take(pc.index_in(batch["d1_id"], d1["doc_id"].combine_chunks()))
                gains, positions = self._score(d1_rows["input_ids"].to_pylist(), batch.to_pylist())
                parts.append(gains)
                num_positions += positions
        gain_R = np.concatenate(parts).astype(np.float32)
        stats = _count_gains(gain_R, self._cfg) | {"tokens_scored": num_positions}
        stats["seconds"] = round(time.monotonic() - start, 3)
        out.write_table(gain_name(shard), pa.table({"gain_nats": gain_R}), stats=stats)
        return {"documents": len(gain_R), "tokens": num_positions}

    def _score(self, d1_ids: list[list[int]], rows: list[dict[str, Any]]) -> tuple[NDArray[np.float64], int]:
        """Nats a token of each row, and the positions that were read to know them."""
        from sbp_ray.scoring import sum_nll

        given, alone = [], []
        for d1, row in zip(d1_ids, rows, strict=True):
            given.append(pair_example(d1, row["input_ids"], self._special))
            alone.append(unconditional_example(row["input_ids"], self._special))
            if row["finish_reason"] != "stop":  # no <eos> was written
                given[-1], alone[-1] = (Example(e.input_ids[:-1], e.first_supervised) for e in (given[-1], alone[-1]))
        nll = sum_nll(self._model, [*given, *alone], batch_tokens=self._cfg.resources.scoring.batch_tokens)
        saved = nll[len(given) :] - nll[: len(given)]
        positions = sum(len(example.input_ids) for example in (*given, *alone))
        return saved / [example.num_supervised for example in given], positions


def choose_by_gain(
    cfg: SynthesizeConfig, gain_R: NDArray[np.float32], d1_id_R: NDArray[np.bytes_], is_kept_R: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """Of the rows that are kept so far, by reason those that are dropped for their gain.

    Of equal gains the earlier sample is the better.
    """
    is_high_R = np.ones(len(gain_R), bool) if cfg.min_gain_nats is None else gain_R >= np.float32(cfg.min_gain_nats)
    is_open_R = is_kept_R & is_high_R
    d1_R = np.unique(d1_id_R, return_inverse=True)[1]
    order_R = np.lexsort((-gain_R, d1_R, ~is_open_R))
    is_first_R = np.diff(d1_R[order_R], prepend=-1) != 0
    places_R = np.arange(len(order_R))
    rank_R = np.empty_like(places_R)
    rank_R[order_R] = places_R - np.maximum.accumulate(np.where(is_first_R, places_R, 0))
    is_worse_R = rank_R >= (cfg.keep_best or len(rank_R))
    return {LOW_GAIN: is_kept_R & ~is_high_R, NOT_BEST: is_open_R & is_worse_R}


# What a manifest says of them


def _count_gains(gain_R: NDArray[np.float32], cfg: SynthesizeConfig) -> Stats:
    bins = Counter(np.floor(gain_R / _BIN_NATS).astype(int).tolist())
    return {
        "samples": len(gain_R),
        "high": len(gain_R) if cfg.min_gain_nats is None else int((gain_R >= np.float32(cfg.min_gain_nats)).sum()),
        "sum_nats": float(gain_R.sum(dtype=np.float64)),
        "histogram": {str(number): count for number, count in bins.items()},
    }


def summarise_gains(counted: Stats) -> Stats:
    """Added counts of shards, with the mean and some quantiles, to 0.01 nats, in place of the histogram."""
    bins = sorted((int(number), count) for number, count in counted["histogram"].items())
    reached = np.cumsum([count for _, count in bins])
    places = [int(np.searchsorted(reached, share * counted["samples"])) for share in _SHARES if bins]
    return {
        "samples": counted["samples"],
        "mean_nats": round(counted["sum_nats"] / counted["samples"], 4) if bins else None,
        "quantiles_nats": {
            str(share): round(bins[place][0] * _BIN_NATS, 2) for share, place in zip(_SHARES, places, strict=False)
        },
        "tokens_scored": counted["tokens_scored"],
        "seconds": round(counted["seconds"], 1),
    }


def refuse_if_none_is_high(cfg: SynthesizeConfig, counted: Stats) -> None:
    """
    Raises:
        SbpError: there are samples, and none reaches `min_gain_nats`.
    """
    if counted["samples"] and not counted["high"]:
        found = summarise_gains(counted)
        shares = ", ".join(f"{nats:.2f} at {float(share):.0%}" for share, nats in found["quantiles_nats"].items())
        raise SbpError(
            f"synthesize.min_gain_nats={cfg.min_gain_nats} keeps none of {found['samples']:,} samples: d1 is worth "
            f"{found['mean_nats']:.2f} nats a token to them on average, {shares}: lower it, with --redo synthesize"
        )
