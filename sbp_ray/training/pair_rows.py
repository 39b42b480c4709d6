"""pairs, corpus -> packed rows of pairs: each pair joined to the tokens of its two documents.

    wanted      worker of a shard of pairs: asks for its d2
    fetched     worker of a shard of the corpus: hands them out (both: `fetched_documents`)
    rows        worker of a shard of pairs: its d2 as they were handed out, its d1 from the corpus shard of the same
                number

Each corpus shard is read twice, however many there are, and each file that a worker commits is not made again. A worker
holds a shard of documents, or the ids of a shard's pairs and the tokens of their documents.

Not `ray.data.Dataset.join`: its shuffle would put the tokens of both documents of every pair into the object store
(60 M pairs of 4,096 tokens each: 2 TB), and begin anew when the driver dies.

Legend: N pairs, D documents, T tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import TuneConfig
from sbp_ray.doc_ids import id_numbers, ids_to_numpy
from sbp_ray.schema import Split
from sbp_ray.shards import Stats, list_shards, shard_name, splits_of
from sbp_ray.steps import Step, remove_scratch, run_steps
from sbp_ray.text.hashing import id_ranks
from sbp_ray.text.packing import best_fit
from sbp_ray.text.pair_format import DOCUMENT_MARKS, PAIR_MARKS, document_example, pair_example
from sbp_ray.text.tokenizer import SpecialIds
from sbp_ray.training.fetched_documents import (
    fetch_tokens,
    fetched_file,
    read_documents,
    read_fetched,
    rows_of,
    wanted_file,
    write_wanted,
)
from sbp_ray.training.packed import TokenLists, packing_resources, write_shard
from sbp_ray.training.training_plan import rows_folder

SOURCES: dict[Split, str] = {"train": "pairs", "validation": "validation", "development": "development"}
"""What the packed rows of a split's pairs are called."""
UNREAD = "beyond_num_epochs"
"""Why pairs are not packed that no step would read."""
PAIR_ROWS = "pair_rows"
"""Rows that the pairs would take, of a shard whose d2 are packed without their d1."""
_NO_PAIR = 2**62
"""`shortest_pair` of a shard without pairs."""


def pack_pairs(
    cfg: TuneConfig, *, corpus: Artifact, pairs: Artifact, special: SpecialIds, vocab_size: int, out: Artifact
) -> None:
    """Commit the rows of both splits' pairs, a shard for each shard of pairs, under `rows/`.

    Where `cfg.num_epochs` is less than 1, no more train pairs than it reads.

    Raises:
        SbpError: a shard is missing, or the corpus lacks a document of the pairs.
    """
    splits = splits_of(pairs)
    items = [{"split": split, "shard": shard} for split in splits for shard in range(len(list_shards(pairs, split)))]
    there = {name for split in splits for name in out.files(_folder(split), ".parquet")}
    if not there.issuperset(_file(item) for item in items):
        reads = [(made, split) for made in (corpus, pairs) for split in splits]
        ask = _ask_for_d2, cfg, corpus, pairs, out
        pack = _pack_shard, cfg, special, vocab_size, corpus, pairs, out
        steps = [
            Step("tune-wanted", partial, ask, items, wanted_file, reads=reads),
            Step("tune-fetched", partial, (fetch_tokens, corpus, out), items, fetched_file, reads=reads),
            Step("tune-rows", partial, pack, items, _file, reads=reads),
        ]
        run_steps(out, steps, packing_resources(cfg.resources))
    remove_scratch(out)


def _folder(split: Split) -> str:
    return rows_folder(SOURCES[split])


def _file(item: dict[str, Any]) -> str:
    return shard_name(_folder(item["split"]), item["shard"])


def _read_pairs(cfg: TuneConfig, pairs: Artifact, split: Split, shard: int, columns: list[str]) -> tuple[pa.Table, int]:
    """The pairs that are read, and how many there are. Held-out pairs are read all."""
    table = pairs.read_table(shard_name(split, shard), columns=["d1_id", "d2_id"])
    if split == "train" and cfg.num_epochs < 1:
        return table.filter(pa.array(choose_pairs(table, cfg.num_epochs))).select(columns), len(table)
    return table.select(columns), len(table)


def _ask_for_d2(cfg: TuneConfig, corpus: Artifact, pairs: Artifact, out: Artifact, item: dict[str, Any]) -> Stats:
    """Tell each shard of the corpus which of its documents are d2 in one shard of pairs."""
    table, _ = _read_pairs(cfg, pairs, item["split"], item["shard"], ["d2_id"])
    write_wanted(item, table["d2_id"], corpus, out)
    return {}


def _pack_shard(
    cfg: TuneConfig,
    special: SpecialIds,
    vocab_size: int,
    corpus: Artifact,
    pairs: Artifact,
    out: Artifact,
    item: dict[str, Any],
) -> Stats:
    """Pack the pairs of one shard."""
    split, shard = item["split"], item["shard"]
    table, num_pairs = _read_pairs(cfg, pairs, split, shard, ["d1_id", "d2_id"])
    documents, fetched = read_documents(item, corpus), read_fetched(item, out)
    d1 = TokenLists(documents["input_ids"], rows_of(table["d1_id"], documents, corpus))
    d2 = TokenLists(fetched["input_ids"], rows_of(table["d2_id"], fetched, corpus))
    length_N = d1.length_D + d2.length_D + PAIR_MARKS
    _, longest = cfg.longest_document()
    kept = np.flatnonzero((length_N <= longest) & (d2.length_D > 0))
    drops = {"too_long": len(table) - len(kept), UNREAD: num_pairs - len(table)}
    counts: Stats = {"pairs": num_pairs, "shortest_pair": int(length_N.min(initial=_NO_PAIR)), "drops": drops}
    is_alone = cfg.condition == "none"
    if is_alone:
        counts[PAIR_ROWS] = len(best_fit(length_N[kept], cfg.seq_len).ends_R)

    def tokens_of(number: int) -> NDArray[np.int32]:
        d2_ids = d2.of(kept[number])
        if is_alone:
            return document_example(d2_ids, special).input_ids
        return pair_example(d1.of(kept[number]), d2_ids, special).input_ids

    write_shard(
        out,
        _file(item),
        length_D=d2.length_D[kept] + DOCUMENT_MARKS if is_alone else length_N[kept],
        first_supervised_D=np.ones_like(kept) if is_alone else d1.length_D[kept] + 2,
        tokens_of=tokens_of,
        seq_len=cfg.seq_len,
        vocab_size=vocab_size,
        counts=counts,
    )
    return {"documents": num_pairs, "drops": drops}


def choose_pairs(table: pa.Table, share: float) -> NDArray[np.bool_]:
    """About this share of the pairs, by a hash of their two ids: the same ones whenever asked, and more for more."""
    ids = (id_numbers(ids_to_numpy(table[column])) for column in ("d1_id", "d2_id"))
    return (id_ranks("tuning pairs", 0, *ids) >> np.uint64(11)) * 2.0**-53 < share
