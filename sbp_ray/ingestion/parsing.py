"""Input files -> scratch files whose rows lie in a bucket for each output shard, and a quarantine for unusable rows."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import BucketWriter, bucket_writer
from sbp_ray.config import IngestConfig
from sbp_ray.doc_ids import ids_to_numpy, shards_of
from sbp_ray.errors import SbpError, one_line
from sbp_ray.ingestion.records import BadRow, Damage, Record, RecordReader, SeenColumns
from sbp_ray.ingestion.refusing import FileReport
from sbp_ray.input_files import HUGGING_FACE
from sbp_ray.schema import DOC_ID
from sbp_ray.shards import Stats, shard_name
from sbp_ray.steps import SCRATCH
from sbp_ray.text.hashing import hash64
from sbp_ray.text.words import normalize_unicode
from sbp_ray.threads import map_in_threads

PARSED = pa.schema(
    [
        ("doc_id", DOC_ID),
        ("group", pa.string()),
        ("group_hash", pa.uint64()),
        ("split_hash", pa.uint64()),  # of the group, or of the document
        ("text", pa.large_string()),
        ("source", pa.string()),
    ]
)
QUARANTINE = "quarantine"
CHUNK_CHARS = 32 << 20
"""Characters of text held while parsing, at most 4 bytes each."""
FEW = 3
"""Groups, or documents, of which one each can be in each split."""
_ROW_CHARS = 200
"""Characters that take the memory of what Python holds of a row beside its text."""


def document_id(text: str) -> bytes:
    """The same for texts that differ only in line ends, in blanks there, and in how Unicode spells a letter."""
    lines = [line.rstrip() for line in normalize_unicode("NFC", text).strip().splitlines()]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).digest()


class _Opened(NamedTuple):
    """A file that is being read."""

    path: str
    seen: SeenColumns
    rows: Iterator[Record | BadRow | Damage]


class FileParser:
    """Parses the files of one unit into one scratch file, and its unusable rows into one quarantine file."""

    def __init__(self, cfg: IngestConfig, out: Artifact) -> None:
        self._cfg, self._out = cfg, out
        self._reader = RecordReader(cfg.text_column, cfg.group_column, cfg.max_chars, cfg.source_column)

    def __call__(self, item: dict[str, Any]) -> Stats:
        self._rows: dict[str, list[Any]] = {name: [] for name in PARSED.names}
        self._chars = self._num_rows = 0
        self._hash_range, self._few_hashes = (2**64 - 1, 0), set[int]()
        self._bad: Counter[str] = Counter()
        files: list[FileReport] = []
        with (
            bucket_writer(self._out, shard_name(SCRATCH, item["unit"]), PARSED) as writer,
            _Quarantine(self._out, item["unit"]) as quarantine,  # committed before the file that says "done"
        ):
            part = item["part"], item["num_parts"]
            for opened in map_in_threads(lambda path: self._open(path, *part), item["paths"]):
                report = self._read(opened, part[0], writer, quarantine)
                if not report.is_good or item["num_parts"] > 1:
                    files.append(report)
            self._flush(writer)
            stats = {"rows": self._num_rows, "drops": dict(self._bad)}
            hashes = {"hash_range": list(self._hash_range), "few_hashes": sorted(self._few_hashes)}
            writer.finish(stats | hashes | {"files": [report._asdict() for report in files]})
        return stats

    def _open(self, path: str, part: int, num_parts: int) -> _Opened:
        """A file, or a part of it, whose first row is read: of small files on a store that is all that takes long.

        Raises:
            SbpError: it is not there, or not for this user to read.
        """
        seen = SeenColumns()
        rows = self._reader.read(path, part, num_parts, seen)
        try:
            first = list(itertools.islice(rows, 1))
        except (FileNotFoundError, PermissionError) as error:
            remedy = "see that every node reads it as this user, and run the same command again to go on"
            raise SbpError(f"{path}: cannot be read: {one_line(error)}: {remedy}") from None
        return _Opened(path, seen, itertools.chain(first, rows))

    def _read(self, opened: _Opened, part: int, writer: BucketWriter, quarantine: _Quarantine) -> FileReport:
        """Take in the rows of a file, or of a part of it."""
        path, seen, rows = opened
        damage = None
        for row in rows:
            if isinstance(row, Damage):
                damage = row
                lost = {"reason": "damaged_file", "detail": row.reason, "bytes_unread": row.bytes_unread}
                quarantine.add(path, part, seen, {"line": row.line} | lost)
                continue
            self._num_rows += 1
            if isinstance(row, BadRow):
                self._bad[row.reason] += 1
                quarantine.add(path, part, seen, row._asdict())
            else:
                self._add(row, writer)
        has_group = seen.has_group or not self._cfg.group_column
        has_source = seen.has_source or not self._cfg.source_column
        counts = seen.num_rows, seen.num_texts
        return FileReport(path, *counts, has_group, has_source, [*seen.names], seen.types, damage)

    def _add(self, row: Record, writer: BucketWriter) -> None:
        doc_id = document_id(row.text)
        group = doc_id.hex() if row.group is None else row.group
        low, high = self._hash_range
        of_group = hash64("split", self._cfg.seed, group)
        number = of_group if self._cfg.split_by == "group" else hash64("split", self._cfg.seed, doc_id.hex())
        self._hash_range = (min(low, number), max(high, number))
        if len(self._few_hashes) < FEW:
            self._few_hashes.add(number)
        for name, value in zip(PARSED.names, (doc_id, group, of_group, number, row.text, row.source), strict=True):
            self._rows[name].append(value)
        self._chars += len(row.text) + len(group) + len(row.source or "") + _ROW_CHARS
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

    def add(self, path: str, part: int, seen: SeenColumns, entry: Mapping[str, Any]) -> None:
        """Note what was not read, and where the part of the file begins whose lines are counted."""
        if self._stream is None:
            self._stream = self.enter_context(self._out.writing(self._name))
        where: dict[str, Any] = {}
        if path.startswith(HUGGING_FACE):
            where = {"shard": part}
        elif seen.from_byte:
            where = {"from_byte": seen.from_byte}
        self._stream.write(json.dumps({"file": path, **entry, **where}).encode() + b"\n")
