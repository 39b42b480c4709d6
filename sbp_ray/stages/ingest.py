"""text files -> corpus

Three steps, each resumed file by file: every input file is parsed into a scratch file whose rows lie sorted by output
shard; the tokenizer is trained on a sample; every output shard is gathered from the scratch files, freed of exact
duplicates and of train documents that share text with an evaluation set, tokenised and written. No process holds more
than one shard, or 64 MiB of an input file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import BucketWriter, bucket_writer, read_bucket
from sbp_ray.config import DecontaminateConfig, IngestConfig
from sbp_ray.doc_ids import id_numbers, ids_to_numpy, shards_of
from sbp_ray.errors import SbpError
from sbp_ray.schema import DOC_ID, DOCUMENT, SPLITS, Split
from sbp_ray.shards import (
    SCRATCH,
    Stats,
    Step,
    add_stats,
    make_stats_once,
    read_stats,
    remove_scratch,
    run_steps,
    shard_name,
)
from sbp_ray.text.contamination import EvaluationNgrams, read_evaluation_sets, told
from sbp_ray.text.hashing import hash64, id_ranks
from sbp_ray.text.lines import first_byte
from sbp_ray.text.records import BadRow, Record, RecordReader, Unit, input_units
from sbp_ray.text.tokenizer import encode_texts, load_tokenizer, train_tokenizer
from sbp_ray.threads import map_in_threads

logger = logging.getLogger(__name__)

PARSED = pa.schema(
    [
        ("doc_id", DOC_ID),
        ("group", pa.string()),
        ("group_hash", pa.uint64()),
        ("text", pa.large_string()),
    ]
)
QUARANTINE = "quarantine"
TOKENIZER = "tokenizer"
_TOKENIZER_DONE = f"{SCRATCH}/tokenizer.json"
_CHUNK_CHARS = 32 << 20  # of text held while parsing; at most 4 bytes each
_ROW_CHARS = 200  # what Python takes for a row beside its text
_TOKENIZER_CHARS = 100_000_000  # the vocabulary has settled long before
_ENCODE_ROWS = 1000
HASHES_KEPT = 1024
"""Hashes of each split's groups that are kept to estimate how many groups there are."""
_NUM_SLOTS = 65_536  # of ids, to choose the documents to keep without one process that holds all ids


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
    if stats["contaminated"]:
        logger.info(f"ingest | {told(stats['contaminated'])}")
    return stats


def _ingest(cfg: IngestConfig, decontaminate: DecontaminateConfig, out: Artifact) -> Stats:
    if cfg.tokenizer is not None:
        load_tokenizer(cfg.tokenizer)  # before any work
    ngrams = read_evaluation_sets(decontaminate)
    _parse_all(input_units(cfg.input), cfg, out)
    _refuse_bad_input(cfg, out)
    _write_all(cfg, decontaminate, out)
    return _total_stats(cfg, ngrams, out)


# Step 1: input files -> scratch files, sorted by shard


def _parse_all(units: list[Unit], cfg: IngestConfig, out: Artifact) -> None:
    items = [unit._asdict() | {"unit": number} for number, unit in enumerate(units)]
    parse = Step("ingest-parse", FileParser, (cfg, out), items, lambda item: shard_name(SCRATCH, item["unit"]))
    run_steps(out, [parse], cfg.resources)


class FileParser:
    """Parses the files of one unit into one scratch file, and its unusable rows into one quarantine file."""

    def __init__(self, cfg: IngestConfig, out: Artifact) -> None:
        self._cfg, self._out = cfg, out
        self._reader = RecordReader(cfg.text_column, cfg.group_column, cfg.max_chars)

    def __call__(self, item: dict[str, Any]) -> Stats:
        self._rows: dict[str, list[Any]] = {name: [] for name in PARSED.names}
        self._chars = num_rows = 0
        self._hash_range = (2**64 - 1, 0)
        bad: Counter[str] = Counter()
        with (
            bucket_writer(self._out, shard_name(SCRATCH, item["unit"]), PARSED) as writer,
            _Quarantine(self._out, item["unit"]) as quarantine,  # committed before the file that says "done"
        ):
            for path in item["paths"]:
                is_cut = item["part"] > 0 and path.endswith(".jsonl")
                from_byte = first_byte(path, item["part"], item["num_parts"]) if is_cut else 0
                for row in self._reader.read(path, item["part"], item["num_parts"]):
                    num_rows += 1
                    if isinstance(row, BadRow):
                        bad[row.reason] += 1
                        quarantine.add(path, row, from_byte)
                    else:
                        self._add(row, writer)
            self._flush(writer)
            stats = {"rows": num_rows, "drops": dict(bad)}
            writer.finish(stats | {"hash_range": list(self._hash_range)})
        return stats

    def _add(self, row: Record, writer: BucketWriter) -> None:
        doc_id = hashlib.blake2b(row.text.encode(), digest_size=16).digest()
        group = doc_id.hex() if row.group is None else row.group
        low, high = self._hash_range
        number = hash64("split", self._cfg.seed, group)
        self._hash_range = (min(low, number), max(high, number))
        for name, value in zip(PARSED.names, (doc_id, group, number, row.text), strict=True):
            self._rows[name].append(value)
        self._chars += len(row.text) + _ROW_CHARS
        if self._chars > _CHUNK_CHARS:
            self._flush(writer)

    def _flush(self, writer: BucketWriter) -> None:
        table = pa.table(self._rows, PARSED)
        writer.write(table, shards_of(ids_to_numpy(table["doc_id"]), self._cfg.num_shards))
        self._rows = {name: [] for name in PARSED.names}
        self._chars = 0


class _Quarantine(ExitStack):
    """The unusable rows of one unit: a file that is there only if there are any."""

    def __init__(self, out: Artifact, unit: int) -> None:
        super().__init__()
        self._out, self._name = out, f"{QUARANTINE}/part-{unit:05d}.jsonl"
        self._stream: BinaryIO | None = None

    def add(self, path: str, row: BadRow, from_byte: int) -> None:
        """Note a row; `from_byte` is where the part of the file begins whose lines are counted."""
        if self._stream is None:
            self._stream = self.enter_context(self._out.writing(self._name))
        entry = {"file": path, "line": row.line, "reason": row.reason} | ({"from_byte": from_byte} if from_byte else {})
        self._stream.write(json.dumps(entry).encode() + b"\n")


def _refuse_bad_input(cfg: IngestConfig, out: Artifact) -> None:
    """Stop when too many rows, or all, were put aside; the next run then reads the input anew."""
    total = _parse_stats(out)
    drops = total.get("drops", {})
    num_bad, num_rows = sum(drops.values()), total["rows"]
    reasons = ", ".join(
        f"{count:,} {reason}" for reason, count in sorted(drops.items(), key=lambda x: (-x[1], x[0]))[:3]
    )
    if num_rows == 0:
        remove_scratch(out)
        raise SbpError(f"{', '.join(cfg.input)}: holds no documents: give files with text in ingest.input")
    if num_bad > cfg.max_bad_share * num_rows or num_bad == num_rows:
        remove_scratch(out)
        raise SbpError(
            f"{num_bad:,} of {num_rows:,} input rows ({num_bad / num_rows:.1%}) cannot be used, which is more than "
            f"ingest.max_bad_share ({cfg.max_bad_share}): {reasons}: see {out.path(QUARANTINE)}, then mend the input "
            "or raise the share, and use --redo ingest"
        )
    if num_bad:
        logger.warning(f"ingest | {num_bad:,} of {num_rows:,} rows put aside ({reasons}): {out.path(QUARANTINE)}")


def _parse_stats(out: Artifact) -> Stats:
    parts = read_stats(out, out.files(SCRATCH, ".parquet"))
    return add_stats({key: part[key] for key in ("rows", "drops")} for part in parts)


# Step 2: which groups are held out, and the tokenizer


def validation_limit(share: float, low: int, high: int) -> int:
    """Groups whose hash is below the limit are held out: `share` of them, but of two or more at least one, and not all.

    Args:
        share: `ingest.validation_share`.
        low: smallest hash of a group.
        high: largest hash of a group.
    """
    if share == 0 or low == high:
        return 0
    return min(max(int(share * 2**64), low + 1), high)


def _limit(cfg: IngestConfig, out: Artifact) -> int:
    ranges = [stats["hash_range"] for stats in read_stats(out, out.files(SCRATCH, ".parquet"))]
    return validation_limit(cfg.validation_share, min(low for low, _ in ranges), max(high for _, high in ranges))


class TokenizerMaker:
    """Commits the tokenizer: the given one, or one trained on documents of the train split.

    The sample is whole shards, which are random parts of the corpus, up to 10^8 characters.
    """

    def __init__(
        self, cfg: IngestConfig, decontaminate: DecontaminateConfig, out: Artifact, limit: int, num_slots: int
    ) -> None:
        self._cfg, self._out, self._limit, self._num_slots = cfg, out, limit, num_slots
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
            documents, _ = gather_shard(self._out, shard, self._limit)
            clean, _ = drop_contaminated(documents["train"], self._ngrams)
            for text in keep_slots(clean, self._num_slots).column("text").to_pylist():
                if self._num_chars >= _TOKENIZER_CHARS:
                    return
                self._num_chars += len(text)
                yield text


# Between: which train documents are kept


class SlotCounter:
    """Counts one shard's train documents by slot of their ids."""

    def __init__(self, decontaminate: DecontaminateConfig, out: Artifact, limit: int) -> None:
        self._out, self._limit = out, limit
        self._ngrams = read_evaluation_sets(decontaminate)

    def __call__(self, item: dict[str, Any]) -> Stats:
        documents, _ = gather_shard(self._out, item["shard"], self._limit)
        clean, _ = drop_contaminated(documents["train"], self._ngrams)
        counts = np.bincount(slots_of(clean), minlength=_NUM_SLOTS).astype(np.int64)
        self._out.write_bytes(_slots_name(item["shard"]), counts.tobytes())
        return {"documents": len(clean)}


def _slots_name(shard: int) -> str:
    return f"{SCRATCH}/slots-{shard:05d}.bin"


def slots_of(documents: pa.Table) -> np.ndarray:
    """The slot of each document's id, int64 [N]: uniform, and independent of its shard and its group."""
    ranks_N = id_ranks("max_documents", 0, id_numbers(ids_to_numpy(documents["doc_id"])))
    return (ranks_N // np.uint64(2**64 // _NUM_SLOTS)).astype(np.int64)


def keep_slots(documents: pa.Table, num_slots: int) -> pa.Table:
    """The documents in the first slots."""
    return documents if num_slots == _NUM_SLOTS else documents.filter(pa.array(slots_of(documents) < num_slots))


def _choose_slots(cfg: IngestConfig, decontaminate: DecontaminateConfig, out: Artifact, limit: int) -> int:
    """The most slots that hold no more than `max_train_documents` together."""
    if cfg.max_train_documents is None:
        return _NUM_SLOTS
    count = _shard_step("ingest-choose", SlotCounter, (decontaminate, out, limit), cfg, out, _slots_name)
    run_steps(out, [count], cfg.resources)
    total = np.zeros(_NUM_SLOTS, np.int64)
    for data in map_in_threads(out.read_bytes, map(_slots_name, range(cfg.num_shards))):
        total += np.frombuffer(data, np.int64)
    num_slots = int(np.searchsorted(np.cumsum(total), cfg.max_train_documents, side="right"))
    if not total[:num_slots].sum():
        raise SbpError(
            f"ingest.max_train_documents={cfg.max_train_documents} would keep no document: raise it, or leave it out"
        )
    return num_slots


# Step 3: scratch files -> shards of both splits


def _write_all(cfg: IngestConfig, decontaminate: DecontaminateConfig, out: Artifact) -> None:
    limit = _limit(cfg, out)
    num_slots = _choose_slots(cfg, decontaminate, out, limit)
    shared = (decontaminate, out, limit, num_slots)
    learn = Step(
        "ingest-tokenizer",
        TokenizerMaker,
        (cfg, *shared),
        [{"folder": TOKENIZER}],
        lambda _: _TOKENIZER_DONE,
        reads=[(out, SCRATCH)],
    )
    write = _shard_step("ingest", ShardMaker, shared, cfg, out, partial(shard_name, SPLITS[-1]))
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
    """Writes one shard of both splits."""

    def __init__(self, decontaminate: DecontaminateConfig, out: Artifact, limit: int, num_slots: int) -> None:
        self._out, self._limit, self._num_slots = out, limit, num_slots
        self._ngrams = read_evaluation_sets(decontaminate)
        self._tokenizer = load_tokenizer(out.local_copy(TOKENIZER))

    def __call__(self, item: dict[str, Any]) -> Stats:
        documents, num_duplicates = gather_shard(self._out, item["shard"], self._limit)
        both = []
        for split in SPLITS:
            table = documents[split]
            hits: Counter[str] = Counter()
            num_clean = len(table)
            if split == "train":
                table, hits = drop_contaminated(table, self._ngrams)
                num_clean = len(table)
                table = keep_slots(table, self._num_slots)
            tokenised = self._tokenised(table)
            drops = {
                "exact_duplicate": num_duplicates[split],
                "contaminated": len(documents[split]) - num_clean,
                "above_max_train_documents": num_clean - len(table),
            }
            stats = {
                "documents": len(table),
                "tokens": len(tokenised.column("input_ids").combine_chunks().values) if len(table) else 0,
                "drops": {reason: count for reason, count in drops.items() if count},
                "contaminated": dict(hits),
            }
            smallest = np.unique(table.column("group_hash").to_numpy())[:HASHES_KEPT].tolist()
            name = shard_name(split, item["shard"])
            self._out.write_table(name, tokenised, stats=stats | {"group_hashes": smallest})
            both.append(stats)
        return add_stats(both)

    def _tokenised(self, table: pa.Table) -> pa.Table:
        """Rows of `DOCUMENT`."""
        parts = []
        for start in range(0, len(table), _ENCODE_ROWS):
            texts = table.column("text").slice(start, _ENCODE_ROWS).to_pylist()
            parts.append(pa.array(encode_texts(self._tokenizer, texts), DOCUMENT.field("input_ids").type))
        input_ids = pa.chunked_array(parts, DOCUMENT.field("input_ids").type)
        return table.select(["doc_id", "group", "text"]).append_column(DOCUMENT.field("input_ids"), input_ids)


def gather_shard(out: Artifact, shard: int, limit: int) -> tuple[dict[Split, pa.Table], dict[Split, int]]:
    """A shard's documents by split, sorted by id, and how many exact duplicates each split lost.

    Of equal texts the first stays: by file, then by line. Which split the others were of does not matter, so that no
    text is in both.
    """
    table = read_bucket(out, out.files(SCRATCH, ".parquet"), shard, PARSED)
    ids = ids_to_numpy(table["doc_id"])
    order = np.argsort(ids, kind="stable")  # stable: the first of equals comes first
    is_first = np.ones(len(order), bool)
    is_first[1:] = ids[order][1:] != ids[order][:-1]
    is_validation = table.column("group_hash").to_numpy()[order] < limit
    documents: dict[Split, pa.Table] = {}
    num_duplicates: dict[Split, int] = {}
    for split in SPLITS:
        in_split = is_validation if split == "validation" else ~is_validation
        documents[split] = table.take(pa.array(order[in_split & is_first]))
        num_duplicates[split] = int((in_split & ~is_first).sum())
    return documents, num_duplicates


def drop_contaminated(table: pa.Table, ngrams: EvaluationNgrams) -> tuple[pa.Table, Counter[str]]:
    """The rows that share no n-gram with an evaluation set; and how many of the others share one with each set."""
    hits: dict[int, tuple[str, ...]] = {}
    for start in range(0, len(table) if ngrams.num_ngrams else 0, _ENCODE_ROWS):
        found = ngrams.find(table.column("text").slice(start, _ENCODE_ROWS).to_pylist())
        hits |= {start + row: names for row, names in found.items()}
    if hits:
        table = table.take(pa.array(np.setdiff1d(np.arange(len(table)), list(hits))))
    return table, Counter(name for names in hits.values() for name in names)


def _total_stats(cfg: IngestConfig, ngrams: EvaluationNgrams, out: Artifact) -> Stats:
    parsed = _parse_stats(out)
    limit = _limit(cfg, out)
    hashes = {"train": (limit, 2**64), "validation": (0, limit)}
    by_split: dict[str, Stats] = {split: _split_stats(cfg, out, split, *hashes[split]) for split in SPLITS}
    if by_split["train"]["documents"] == 0:
        raise SbpError(
            "no document is left in the train split: lower ingest.validation_share, or shorten "
            "decontaminate.evaluation_sets"
        )
    total = add_stats(by_split.values())
    hits = [part.pop("contaminated") for part in by_split.values()]
    return {
        "rows": parsed["rows"],
        "shards": cfg.num_shards,
        "documents": total["documents"],
        "tokens": total["tokens"],
        "drops": add_stats([parsed["drops"], total["drops"]]),
        "contaminated": ngrams.counted(total["drops"].get("contaminated", 0), add_stats(hits)),
        "tokenizer": out.read_json(_TOKENIZER_DONE),
        **by_split,
    }


def _split_stats(cfg: IngestConfig, out: Artifact, split: Split, low: int, high: int) -> Stats:
    """Of a split whose groups' hashes lie in [low, high)."""
    total: Stats = {}
    smallest: list[int] = []
    names = [shard_name(split, shard) for shard in range(cfg.num_shards)]
    for part in read_stats(out, names):  # few at a time: a thousand hashes of each of 10^4 shards would be 0.5 GB
        smallest = sorted({*smallest, *part.pop("group_hashes")})[:HASHES_KEPT]
        total = add_stats([total, part])
    return {"groups": estimate_distinct(smallest, low, high), **total}


def estimate_distinct(smallest: list[int], low: int, high: int) -> int:
    """How many distinct hashes there are, from the smallest ones: exact below 1,024, within some 3 % above.

    Args:
        smallest: the smallest `HASHES_KEPT` of them, sorted, or all where they are fewer.
        low: the hashes are uniform from here on,
        high: and below this. The split is a cut through the hashes, so neither split's fill all 64 bits.
    """
    if len(smallest) < HASHES_KEPT:
        return len(smallest)
    return round((HASHES_KEPT - 1) * (high - low) / (smallest[-1] - low))
