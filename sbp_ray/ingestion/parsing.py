"""Input files -> scratch files whose rows lie in a bucket for each output shard, and a quarantine for unusable rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import ExitStack
from typing import Any, BinaryIO

import pyarrow as pa

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import BucketWriter, bucket_writer
from sbp_ray.config import IngestConfig
from sbp_ray.doc_ids import ids_to_numpy, shards_of
from sbp_ray.schema import DOC_ID
from sbp_ray.shards import SCRATCH, Stats, shard_name
from sbp_ray.text.hashing import hash64
from sbp_ray.text.lines import first_byte
from sbp_ray.text.records import BadRow, Record, RecordReader

PARSED = pa.schema(
    [
        ("doc_id", DOC_ID),
        ("group", pa.string()),
        ("group_hash", pa.uint64()),
        ("split_hash", pa.uint64()),  # of the group, or of the document
        ("text", pa.large_string()),
    ]
)
QUARANTINE = "quarantine"
CHUNK_CHARS = 32 << 20
"""Characters of text held while parsing, at most 4 bytes each."""
_ROW_CHARS = 200
"""Characters that take the memory of what Python holds of a row beside its text."""


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
        of_group = hash64("split", self._cfg.seed, group)
        number = of_group if self._cfg.split_by == "group" else hash64("split", self._cfg.seed, doc_id.hex())
        self._hash_range = (min(low, number), max(high, number))
        for name, value in zip(PARSED.names, (doc_id, group, of_group, number, row.text), strict=True):
            self._rows[name].append(value)
        self._chars += len(row.text) + _ROW_CHARS
        if self._chars > CHUNK_CHARS:
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
