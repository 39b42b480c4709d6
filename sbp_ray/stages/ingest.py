"""text files -> corpus

Steps, each resumed file by file: every input file is parsed into a scratch file whose rows lie sorted by output shard;
held-out documents are looked for in the train split; the tokenizer is trained on a sample; every output shard is
gathered from the scratch files, freed of exact duplicates, of held-out near-copies of train documents and of train
documents that share text with an evaluation set, tokenised and written. No process holds more than one shard, or 64 MiB
of an input file.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, IngestConfig
from sbp_ray.errors import SbpError
from sbp_ray.ingestion.choosing import (
    HASHES_KEPT,
    NUM_SLOTS,
    Dropped,
    TrainRange,
    drop_contaminated,
    estimate_distinct,
    gather_shard,
    keep_slots,
    slots_of,
    text_pieces,
    train_range,
)
from sbp_ray.ingestion.data_card import describe_texts, examples_of_bad_rows, first_examples, tabulate_corpus
from sbp_ray.ingestion.held_out import compare_runs, shared_file, shared_with_train, sketch_file, sketch_runs
from sbp_ray.ingestion.parsing import QUARANTINE, FileParser
from sbp_ray.ingestion.refusing import (
    FileReport,
    merge_parts,
    require_a_group_for_each_split,
    require_usable,
    warn_of_first_rows,
)
from sbp_ray.ingestion.units import Unit, input_units
from sbp_ray.input_files import FoundFiles
from sbp_ray.schema import DOCUMENT, SPLITS, Split
from sbp_ray.shards import Stats, add_stats, list_shards, read_stats, shard_name
from sbp_ray.steps import SCRATCH, Step, make_stats_once, remove_scratch, run_steps
from sbp_ray.text.contamination import EvaluationNgrams, describe_contamination, read_evaluation_sets
from sbp_ray.text.tokenizer import encode_texts, load_tokenizer, train_tokenizer, warn_of_lost_case
from sbp_ray.threads import map_in_threads

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer"
_TOKENIZER_DONE = f"{SCRATCH}/tokenizer.json"
_TOKENIZER_CHARS = 100_000_000
"""Characters that the tokenizer is trained on; the vocabulary has settled long before."""


def ingest_documents(cfg: IngestConfig, *, decontaminate: DecontaminateConfig, out: Artifact) -> Stats:
    """Read, split, deduplicate, decontaminate and tokenise the input.

    Held-out documents stay although they share text with an evaluation set: nothing is trained on them.

    Returns:
        Documents, tokens and groups of each split; rows read, drops by reason, and what the evaluation sets hit.

    Raises:
        SbpError: the input or an evaluation set is not there, is empty, has no usable text, or too much of the input
            is unusable.
    """
    stats = make_stats_once(out, partial(_ingest, cfg, decontaminate, out))
    for line in tabulate_corpus(stats, [split for split in SPLITS if split in stats]):
        logger.info(f"ingest | {line}")
    if stats["contaminated"]:
        logger.info(f"ingest | {describe_contamination(stats['contaminated'])}")
    return stats


def _ingest(cfg: IngestConfig, decontaminate: DecontaminateConfig, out: Artifact) -> Stats:
    if cfg.tokenizer is not None:
        warn_of_lost_case(load_tokenizer(cfg.tokenizer), cfg.tokenizer)  # before any work
    ngrams = read_evaluation_sets(decontaminate)
    units, found = input_units(cfg.input)
    if found.skipped:
        logger.warning(f"ingest | {found.describe()}")
    warn_of_first_rows(cfg, units[0])
    _parse_all(units, cfg, out)
    _refuse_bad_input(cfg, out)
    _write_all(cfg, decontaminate, out)
    return _total_stats(cfg, found, ngrams, out)


# Step 1: input files -> scratch files, sorted by shard


def _parse_all(units: list[Unit], cfg: IngestConfig, out: Artifact) -> None:
    items = [unit._asdict() | {"unit": number} for number, unit in enumerate(units)]
    parse = Step("ingest-parse", FileParser, (cfg, out), items, lambda item: shard_name(SCRATCH, item["unit"]))
    run_steps(out, [parse], cfg.resources)


def _refuse_bad_input(cfg: IngestConfig, out: Artifact) -> None:
    """Stop when too much of the input, or all, was put aside; the next run then reads it anew."""
    total = _parse_stats(out)
    try:
        require_usable(cfg, total["rows"], total.get("drops", {}), merge_parts(total["files"]), out.path(QUARANTINE))
        require_a_group_for_each_split(cfg, total["few_hashes"])
    except SbpError:
        remove_scratch(out)
        raise


def _parse_stats(out: Artifact) -> Stats:
    """Rows, drops by reason, what is wrong with files as a whole, and some hashes that the split is made by."""
    parts = list(read_stats(out, out.files(SCRATCH, ".parquet")))
    files = [FileReport.from_json(report) for part in parts for report in part["files"]]
    hashes = {number for part in parts for number in part["few_hashes"]}
    total = add_stats({key: part[key] for key in ("rows", "drops")} for part in parts)
    return {**total, "files": files, "few_hashes": hashes}


# Step 2: which groups are held out, and the tokenizer


def _train_range(cfg: IngestConfig, out: Artifact) -> TrainRange:
    ranges = [stats["hash_range"] for stats in read_stats(out, out.files(SCRATCH, ".parquet"))]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return train_range(cfg.validation_share, cfg.development_share, low, high)


def _splits(cfg: IngestConfig) -> tuple[Split, ...]:
    return SPLITS if cfg.development_share else ("train", "validation")


class TokenizerMaker:
    """Commits the tokenizer: the given one, or one trained on documents of the train split.

    The sample is whole shards, which are random parts of the corpus, up to 10^8 characters.
    """

    def __init__(
        self, cfg: IngestConfig, decontaminate: DecontaminateConfig, out: Artifact, trained: TrainRange, num_slots: int
    ) -> None:
        self._cfg, self._out, self._trained, self._num_slots = cfg, out, trained, num_slots
        self._ngrams = read_evaluation_sets(decontaminate)
        self._num_chars = 0

    def __call__(self, item: dict[str, Any]) -> Stats:
        given = self._cfg.tokenizer
        tokenizer = load_tokenizer(given) if given else train_tokenizer(self._texts(), self._cfg.vocab_size)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            self._out.commit_folder(Path(folder), item["folder"])
        stats = {"vocab_size": len(tokenizer), "trained_on_chars": self._num_chars}
        self._out.write_json(_TOKENIZER_DONE, stats)
        return stats

    def _texts(self) -> Iterator[str]:
        for shard in range(self._cfg.num_shards):
            documents, _ = gather_shard(self._out, shard, self._trained)
            clean, _, _ = drop_contaminated(documents["train"], self._ngrams)
            for text in keep_slots(clean, self._num_slots).column("text").to_pylist():
                if self._num_chars >= _TOKENIZER_CHARS:
                    return
                self._num_chars += len(text)
                yield text


# Between: which train documents are kept


class SlotCounter:
    """Counts one shard's train documents by slot of their ids."""

    def __init__(self, decontaminate: DecontaminateConfig, out: Artifact, trained: TrainRange) -> None:
        self._out, self._trained = out, trained
        self._ngrams = read_evaluation_sets(decontaminate)

    def __call__(self, item: dict[str, Any]) -> Stats:
        documents, _ = gather_shard(self._out, item["shard"], self._trained)
        clean, _, _ = drop_contaminated(documents["train"], self._ngrams)
        counts = np.bincount(slots_of(clean), minlength=NUM_SLOTS).astype(np.int64)
        self._out.write_bytes(_slots_name(item["shard"]), counts.tobytes())
        return {"documents": len(clean)}


def _slots_name(shard: int) -> str:
    return f"{SCRATCH}/slots-{shard:05d}.bin"


def _choose_slots(cfg: IngestConfig, decontaminate: DecontaminateConfig, out: Artifact, trained: TrainRange) -> int:
    """The most slots that hold no more than `max_train_documents` together."""
    if cfg.max_train_documents is None:
        return NUM_SLOTS
    count = _shard_step("ingest-choose", SlotCounter, (decontaminate, out, trained), cfg, out, _slots_name)
    run_steps(out, [count], cfg.resources)
    total = np.zeros(NUM_SLOTS, np.int64)
    for data in map_in_threads(out.read_bytes, map(_slots_name, range(cfg.num_shards))):
        total += np.frombuffer(data, np.int64)
    num_slots = int(np.searchsorted(np.cumsum(total), cfg.max_train_documents, side="right"))
    if not total[:num_slots].sum():
        raise SbpError(
            f"ingest.max_train_documents={cfg.max_train_documents} would keep no document: raise it, or leave it out"
        )
    return num_slots


def _look_for_held_out(cfg: IngestConfig, out: Artifact, trained: TrainRange) -> None:
    """Which runs of words of the held-out documents stand in the train split too."""
    if cfg.max_shared_with_train == 1:
        return
    sketch = _shard_step("ingest-sketch", partial, (sketch_runs, out, trained, cfg.num_shards), cfg, out, sketch_file)
    compare = _shard_step("ingest-compare", partial, (compare_runs, out, cfg.num_shards), cfg, out, shared_file)
    run_steps(out, [sketch, compare], cfg.resources)


# Step 3: scratch files -> shards of each split


def _write_all(cfg: IngestConfig, decontaminate: DecontaminateConfig, out: Artifact) -> None:
    trained = _train_range(cfg, out)
    _look_for_held_out(cfg, out, trained)
    num_slots = _choose_slots(cfg, decontaminate, out, trained)
    shared = (decontaminate, out, trained, num_slots)
    learn = Step(
        "ingest-tokenizer",
        TokenizerMaker,
        (cfg, *shared),
        [{"folder": TOKENIZER}],
        lambda _: _TOKENIZER_DONE,
        reads=[(out, SCRATCH)],
    )
    write = _shard_step("ingest", ShardMaker, (cfg, *shared), cfg, out, partial(shard_name, _splits(cfg)[-1]))
    run_steps(out, [learn, write], cfg.resources)


def _shard_step(
    name: str,
    worker: type,
    arguments: tuple[Any, ...],
    cfg: IngestConfig,
    out: Artifact,
    file_of_shard: Callable[[int], str],
) -> Step:
    return Step(
        name,
        worker,
        arguments,
        [{"shard": shard} for shard in range(cfg.num_shards)],
        lambda item: file_of_shard(item["shard"]),
        keeps_worker=True,  # it has read the evaluation sets
        reads=[(out, SCRATCH)],
    )


class ShardMaker:
    """Writes one shard of each split."""

    def __init__(
        self, cfg: IngestConfig, decontaminate: DecontaminateConfig, out: Artifact, trained: TrainRange, num_slots: int
    ) -> None:
        self._cfg, self._columns = cfg, [*DOCUMENT.names, *["source"] * (cfg.source_column is not None)]
        self._out, self._trained, self._num_slots = out, trained, num_slots
        self._ngrams = read_evaluation_sets(decontaminate)
        self._tokenizer = load_tokenizer(out.local_copy(TOKENIZER))

    def __call__(self, item: dict[str, Any]) -> Stats:
        documents, duplicates = gather_shard(self._out, item["shard"], self._trained)
        written = []
        for split in _splits(self._cfg):
            hits: Counter[str] = Counter()
            dropped, table = {"exact_duplicate": duplicates[split]}, documents[split]
            num_beyond = 0
            if split == "train":
                clean, dropped["contaminated"], hits = drop_contaminated(table, self._ngrams)
                table = keep_slots(clean, self._num_slots)
                num_beyond = len(clean) - len(table)
            else:
                table, dropped["near_copy_of_train"] = self._drop_near_copies(table, split, item["shard"])
            tokenised = self._tokenised(table)
            drops = {reason: those.number for reason, those in dropped.items()}
            drops["above_max_train_documents"] = num_beyond
            stats = {
                "documents": len(table),
                "tokens": len(tokenised.column("input_ids").combine_chunks().values) if len(table) else 0,
                "drops": {reason: count for reason, count in drops.items() if count},
                "contaminated": dict(hits),
                **describe_texts(table.column("text")),
            }
            smallest = np.unique(table.column("group_hash").to_numpy())[:HASHES_KEPT].tolist()
            name = shard_name(split, item["shard"])
            examples = {reason: those.examples for reason, those in dropped.items()}
            told = {"group_hashes": smallest, "examples": examples}
            self._out.write_table(name, tokenised, stats=stats | told)
            written.append(stats)
        return add_stats(written)

    def _drop_near_copies(self, table: pa.Table, split: Split, shard: int) -> tuple[pa.Table, Dropped]:
        """The held-out documents of which train documents hold no more than is allowed, and the others."""
        limit = self._cfg.max_shared_with_train
        is_copy_N = np.zeros(len(table), bool)
        if limit < 1:
            is_copy_N = shared_with_train(self._out, shard, self._cfg.num_shards, split, len(table)) > limit
        return table.filter(pa.array(~is_copy_N)), Dropped.of(table, np.flatnonzero(is_copy_N))

    def _tokenised(self, table: pa.Table) -> pa.Table:
        """Rows of `DOCUMENT`, and their source where there is a column for it."""
        ids_type = DOCUMENT.field("input_ids").type
        parts = [pa.array(encode_texts(self._tokenizer, texts), ids_type) for _, texts in text_pieces(table)]
        input_ids = pa.chunked_array(parts, ids_type)
        return table.append_column(DOCUMENT.field("input_ids"), input_ids).select(self._columns)


def _total_stats(cfg: IngestConfig, found: FoundFiles, ngrams: EvaluationNgrams, out: Artifact) -> Stats:
    parsed = _parse_stats(out)
    trained, splits = _train_range(cfg, out), _splits(cfg)
    # Where single documents are held out, the split is no cut through the groups.
    hashes = {split: trained.of(split) if cfg.split_by == "group" else (0, 2**64) for split in splits}
    by_split: dict[str, Stats] = {split: _split_stats(out, split, *hashes[split]) for split in splits}
    if by_split["train"]["documents"] == 0:
        raise SbpError(
            "no document is left in the train split: lower ingest.validation_share or ingest.development_share, or "
            "shorten decontaminate.evaluation_sets"
        )
    examples = [part.pop("examples") for part in by_split.values()]
    total = add_stats(by_split.values())
    hits = [part.pop("contaminated") for part in by_split.values()]
    damage = [report.damage for report in merge_parts(parsed["files"]) if report.damage]
    return {
        "files": {
            "read": len(found.files),
            "skipped": dict(found.skipped),
            "damaged": len(damage),
            "bytes_unread": sum(each.bytes_unread for each in damage),
        },
        "rows": parsed["rows"],
        "shards": cfg.num_shards,
        "documents": total["documents"],
        "tokens": total["tokens"],
        "drops": add_stats([parsed["drops"], total["drops"]]),
        "examples": first_examples([examples_of_bad_rows(out), *examples]),
        "contaminated": ngrams.count_hits(total["drops"].get("contaminated", 0), add_stats(hits)),
        "tokenizer": out.read_json(_TOKENIZER_DONE),
        **by_split,
    }


def _split_stats(out: Artifact, split: Split, low: int, high: int) -> Stats:
    """Of a split whose groups' hashes lie in [low, high)."""
    total: Stats = {}
    smallest: list[int] = []
    examples: dict[str, list[str]] = {}
    parts = read_stats(out, list_shards(out, split))  # few wait: a thousand hashes of each of 10^4 shards are 0.5 GB
    for part in parts:
        smallest = sorted({*smallest, *part.pop("group_hashes")})[:HASHES_KEPT]
        examples = first_examples([examples, part.pop("examples")])
        total = add_stats([total, part])
    num_groups = min(estimate_distinct(smallest, low, high), total["documents"])
    return {"groups": num_groups, "examples": examples, **total}
