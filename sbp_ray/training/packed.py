"""Packed rows on storage: a flat file of token ids for each shard, and an index of the documents in it.

rows/real/part-00003.bin        token ids, uint16 or uint32, documents one behind the other and row after row
rows/real/part-00003.parquet    `PACKED_DOCUMENT` of each, and counts; written last: the shard is there

Padding is not written. A row as it was packed is one range of the file; a row that is packed anew is a range for each
of its documents. Masks, positions and bounds follow from the index. Where the shard is one *stream* of documents that
see one another, cut into rows, it is cut elsewhere instead of packed anew.

Legend: D documents, P parts of documents (what the index lists), R rows, T tokens a row, K parts of a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.config import TrainingResources
from sbp_ray.mixing import Mixture, Source
from sbp_ray.schema import PACKED_DOCUMENT
from sbp_ray.shards import Stats, add_stats, read_stats
from sbp_ray.text.packing import Numbers, PackedRows, best_fit, cut_documents, repack, with_spare_rows
from sbp_ray.training.batches import Row, make_blank_row
from sbp_ray.training.training_plan import rows_folder


def packing_resources(training: TrainingResources) -> TrainingResources:
    """What packing takes of a training's share of the cluster: tasks of one CPU each, and no GPU."""
    num_tasks = max(1, int(training.num_workers * training.num_cpus))
    return training.model_copy(update={"num_workers": num_tasks, "num_cpus": 1, "num_gpus": 0})


def write_shard(
    out: Artifact,
    name: str,
    *,
    length_D: Numbers,
    first_supervised_D: Numbers,
    tokens_of: Callable[[int], NDArray[np.int32]],
    seq_len: int,
    vocab_size: int,
    is_repeated: bool = False,
    is_stream: bool = False,
    counts: Stats | None = None,
) -> Stats:
    """Pack documents into rows and commit them.

    Args:
        name: of the index, which `shard_name` makes.
        tokens_of: gives a document's tokens by its number; asked in the order of the rows, once for each part.
        vocab_size: token ids are below this.
        is_repeated: keep some rows spare, so that the documents can be packed anew for another epoch.
        is_stream: there is one document at most, which may be cut elsewhere for another epoch.
        counts: stored beside those of the packing.

    Returns:
        `rows`, `examples`, `splits` (examples cut into parts), `tokens` and `supervised_tokens` (padding is neither),
        `padding`, and `counts`.
    """
    parts = cut_documents(length_D, first_supervised_D, seq_len)
    rows = best_fit(parts.length_P, seq_len)
    rows = with_spare_rows(rows) if is_repeated else rows
    document_P, start_P, length_P, first_P = (column[rows.order_P] for column in parts)
    num_tokens = int(length_P.sum())
    stats: Stats = {
        "rows": len(rows.ends_R),
        "examples": len(length_D),
        "splits": int((length_D > seq_len).sum()),
        "tokens": num_tokens,
        "supervised_tokens": num_tokens - int(first_P.sum()),
        "padding": len(rows.ends_R) * seq_len - num_tokens,
        **(counts or {}),
    }
    dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    with out.writing(_name_tokens_file(name)) as stream:
        for place in zip(document_P.tolist(), start_P.tolist(), length_P.tolist(), strict=True):
            stream.write(_cut_tokens(tokens_of, *place, vocab_size).astype(dtype).data)
    row_P = np.repeat(np.arange(len(rows.ends_R)), np.diff(rows.ends_R, prepend=0))
    columns = [pa.array(column, pa.int32()) for column in (length_P, first_P, row_P)]
    schema = PACKED_DOCUMENT.with_metadata({"dtype": dtype.name, **({"stream": "yes"} if is_stream else {})})
    out.write_table(name, pa.table(columns, schema=schema), stats)
    return stats


def _cut_tokens(
    tokens_of: Callable[[int], NDArray[np.int32]], document: int, start: int, length: int, vocab_size: int
) -> NDArray[np.int32]:
    ids = tokens_of(document)[start : start + length]
    assert len(ids) == length
    assert ids.max() < vocab_size, f"token {ids.max()} of a vocabulary of {vocab_size}"
    return ids


def _name_tokens_file(name: str) -> str:
    return name.removesuffix(".parquet") + ".bin"


class CutRows(NamedTuple):
    """A plan for a stream: rows follow one another from some place on, and on from its beginning after its end."""

    start: int
    """Place of the first row's first token."""


class PackedShard:
    """A shard's rows: holds its index, and reads the tokens of the rows that it is asked for."""

    def __init__(self, out: Artifact, name: str, seq_len: int) -> None:
        index = out.read_table(name)
        assert index.schema.metadata is not None
        self._dtype = np.dtype(index.schema.metadata[b"dtype"].decode())
        self._seq_len = seq_len
        self._is_stream = b"stream" in index.schema.metadata
        self._length_P, self._first_P, row_P = (column.to_numpy().astype(np.int64) for column in index.columns)
        self._start_P = np.cumsum(self._length_P) - self._length_P
        num_rows = json.loads(index.schema.metadata[b"stats"])["rows"]
        ends_R = np.cumsum(np.bincount(row_P, minlength=num_rows))
        self._written = PackedRows(np.arange(len(row_P)), ends_R)
        self._file = out.fs.open_input_file(out.path(_name_tokens_file(name)))

    def plan(self, rng: np.random.Generator | None) -> PackedRows | CutRows:
        """The rows as they were written, or at random packed anew or cut elsewhere."""
        if rng is None:
            return self._written
        if self._is_stream:
            return CutRows(int(rng.integers(max(1, self._length_P.sum()))))
        return repack(self._written, self._length_P, self._seq_len, rng)

    def read(self, rows: PackedRows | CutRows, row: int) -> Row:
        """One row of the plan."""
        if isinstance(rows, CutRows):
            return self._read_cut(rows, row)
        part_K = np.sort(rows.parts_of(row))  # neighbours in the file are read together
        length_K = self._length_P[part_K]
        num_tokens = int(length_K.sum())
        supervised_from_K = np.cumsum(length_K) - length_K + self._first_P[part_K]  # positions in the row
        found = make_blank_row(self._seq_len)
        found.input_ids_T[:num_tokens] = self._tokens(part_K)
        found.loss_mask_T[:num_tokens] = np.arange(num_tokens) >= np.repeat(supervised_from_K, length_K)
        found.document_ids_T[:num_tokens] = np.repeat(np.arange(len(part_K)), length_K)
        return found

    def _read_cut(self, rows: CutRows, row: int) -> Row:
        """All of the row is one document; its first token has no context."""
        total = int(self._length_P.sum())
        before = row * self._seq_len
        num_tokens = min(self._seq_len, total - before)
        start = (rows.start + before) % total
        here = min(num_tokens, total - start)  # up to the stream's end
        found = make_blank_row(self._seq_len)
        found.input_ids_T[:here] = self._range(start, start + here)
        found.input_ids_T[here:num_tokens] = self._range(0, num_tokens - here)
        found.loss_mask_T[1:num_tokens] = True
        found.document_ids_T[:num_tokens] = 0
        return found

    def _tokens(self, part_K: Numbers) -> NDArray[np.unsignedinteger[Any]]:
        runs = [run for run in np.split(part_K, np.flatnonzero(np.diff(part_K) != 1) + 1) if len(run)]
        ends = [int(self._start_P[run[-1]] + self._length_P[run[-1]]) for run in runs]
        found = [self._range(int(self._start_P[run[0]]), end) for run, end in zip(runs, ends, strict=True)]
        return np.concatenate([np.empty(0, self._dtype), *found])

    def _range(self, start: int, end: int) -> NDArray[np.unsignedinteger[Any]]:
        size = self._dtype.itemsize
        return np.frombuffer(self._file.read_at((end - start) * size, start * size), self._dtype)


class TokenLists:
    """Documents' tokens where Arrow holds them: 4 bytes a token."""

    def __init__(self, lists: pa.ChunkedArray, row_D: Numbers | None = None) -> None:
        """Of the rows with these numbers, or of all."""
        chunks = lists.chunks
        nothing = np.empty(0, np.int64)
        offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        numbers = [np.full(len(chunk), number) for number, chunk in enumerate(chunks)]
        wanted = slice(None) if row_D is None else row_D
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._chunk_D = np.concatenate([nothing, *numbers])[wanted]
        self._start_D = np.concatenate([nothing, *(part[:-1] for part in offsets)])[wanted]
        self._end_D = np.concatenate([nothing, *(part[1:] for part in offsets)])[wanted]
        self.length_D: Numbers = self._end_D - self._start_D

    def of(self, document: int) -> NDArray[np.int32]:
        """Its tokens; a view."""
        return self._values[self._chunk_D[document]][self._start_D[document] : self._end_D[document]]


class Packed(NamedTuple):
    """All shards of a source."""

    source: Source
    stats: Stats
    """Added up."""


def read_packed(out: Artifact, source: str) -> Packed:
    """What there is of a source, all of whose shards are committed by now; from the footers alone."""
    stats = list(read_stats(out, out.files(rows_folder(source), ".parquet")))
    return Packed(Source(source, tuple(shard["rows"] for shard in stats)), add_stats(stats))


def count_mixture(mixture: Mixture, packed: dict[str, Packed], seq_len: int) -> dict[str, dict[str, Any]]:
    """For each source: rows and positions trained on, passes over it, and the text in it without padding (`tokens`, of
    a part of a pass to the nearest row)."""
    counts = {}
    for name, rows in mixture.rows().items():
        available = packed[name].source.num_rows
        tokens = packed[name].stats.get("tokens", 0)
        passes = rows / available if available else 0.0
        counts[name] = {
            "rows": rows,
            "positions": rows * seq_len,
            "share": round(rows / mixture.total_rows, 6),
            "passes": round(passes, 4),
            "tokens": round(tokens * passes),
            "unique_tokens": min(round(tokens * passes), tokens),
        }
    return counts
