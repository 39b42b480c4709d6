"""Whatever a file is called and however it is damaged, each row is read or the loss is told."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports.zstd import CompressionParameter, ZstdCompressor, ZstdDecompressor, ZstdError
from backports.zstd import compress as zstd_compress

from sbp_ray.errors import SbpError
from sbp_ray.file_formats import open_bytes
from sbp_ray.ingestion.records import BadRow, Damage, Record, RecordReader

LINES = [json.dumps({"text": str(number**5 % 1_000_003), "id": number}) for number in range(1, 5001)]
DATA = "".join(line + "\n" for line in LINES).encode()
PACK: dict[str, Callable[..., bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".gzip": gzip.compress,
    ".zst": zstd_compress,
    ".xz": lzma.compress,
    ".bz2": lambda data: bz2.compress(data, 1),  # in blocks of 100 kB
}


def read(path: Path) -> list[Record | BadRow | Damage]:
    return list(RecordReader("text", None, 1000).read(str(path)))


def records(data: bytes) -> list[Record]:
    """What the whole lines of JSON are."""
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    return [Record(number, json.loads(line)["text"], None) for number, line in enumerate(lines, start=1)]


# Names


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("suffix", [".jsonl", ".JSONL", ".json", ".ndjson", ".txt", ""])
def test_json_lines_are_read_under_any_name_and_compression(tmp_path: Path, suffix: str, packed: str) -> None:
    path = tmp_path / f"a{suffix}{packed}"
    path.write_bytes(PACK[packed](DATA))
    assert read(path) == records(DATA)


@pytest.mark.parametrize("packed", [".gz", ".zst", ".xz", ".bz2"])
def test_what_a_file_is_counts_more_than_its_name(tmp_path: Path, packed: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(PACK[packed](DATA))
    (tmp_path / f"b.jsonl{packed}").write_bytes(DATA)
    assert read(tmp_path / "a.jsonl") == read(tmp_path / f"b.jsonl{packed}") == records(DATA)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a"}, {"text": "b"}]', "is one JSON array: write a line for each"),
        ('[\n  {"text": "a"}\n]', "is one JSON array"),
        ('{\n  "text": "a"\n}', "holds JSON over several lines"),
    ],
)
def test_json_of_another_form_says_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(SbpError, match=f"^{path}: {message}"):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be"])
def test_json_in_wide_characters_says_what_to_do(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.jsonl"
    mark = "\ufeff" if encoding == "utf-16-be" else ""  # the others write it themselves
    path.write_bytes((mark + '{"text": "a"}\n').encode(encoding))
    with pytest.raises(SbpError, match=f"^{path}: is in UTF-16 or UTF-32: write it in UTF-8"):
        read(path)


def test_a_text_that_looks_like_json_is_a_text_unless_it_has_the_column(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text('{"a": 1}')
    assert read(path) == [Record(1, '{"a": 1}', None)]
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert read(path) == [Record(1, "a", None), Record(2, "b", None)]


# Whole files that readers stumble over


def test_members_frames_and_streams_that_follow_one_another_are_all_read(tmp_path: Path) -> None:
    middle = DATA.find(b"\n", len(DATA) // 2) + 1
    for packed in (".gz", ".zst", ".xz", ".bz2"):
        path = tmp_path / f"a.jsonl{packed}"
        path.write_bytes(PACK[packed](DATA[:middle]) + PACK[packed](DATA[middle:]))
        assert read(path) == records(DATA), packed


@pytest.mark.parametrize("packed", [".gz", ".zst", ".xz", ".bz2"])
def test_zeros_behind_compressed_data_are_padding(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(PACK[packed](DATA) + bytes(100_000) + PACK[packed](b"") + bytes(10))
    assert read(path) == records(DATA)


@pytest.mark.parametrize("window_log", [28, 31])
def test_zstd_of_the_largest_windows_is_read(tmp_path: Path, window_log: int) -> None:
    options = {int(CompressionParameter.window_log): window_log, int(CompressionParameter.content_size_flag): 0}
    compressor = ZstdCompressor(options=options)
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compressor.compress(DATA) + compressor.flush())
    assert path.read_bytes()[5] >> 3 == window_log - 10  # what the frame asks of its reader
    assert read(path) == records(DATA)


# Damaged files


DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(31),
    ".zst": ZstdDecompressor,
    ".xz": lzma.LZMADecompressor,
    ".bz2": bz2.BZ2Decompressor,
}


@pytest.mark.parametrize("packed", DECODERS)
def test_every_whole_line_before_a_cut_is_read_and_the_damage_told(tmp_path: Path, packed: str) -> None:
    data = b"".join(b'{"text": "%d"}\n' % (number**7 % 10**9 + number) for number in range(40_000))
    stored = PACK[packed](data)
    stored = stored[: len(stored) // 2]
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(stored)
    expected = records(DECODERS[packed]().decompress(stored))
    assert len(expected) > 1_000
    *rows, damage = read(path)
    assert rows == expected
    assert damage == Damage(len(rows) + 1, "ends before its compressed data does", 0)


@pytest.mark.parametrize("packed", DECODERS)
def test_of_broken_data_all_that_comes_before_is_read_and_the_bytes_after_are_counted(
    tmp_path: Path, packed: str
) -> None:
    texts = [json.dumps({"text": hex((number * 7919) ** 20 % 10**60 + number)}) for number in range(5_000)]
    options = {"options": {int(CompressionParameter.checksum_flag): 1}} if packed == ".zst" else {}
    stored = bytearray(PACK[packed]("\n".join(texts).encode(), **options))
    middle = len(stored) // 2
    stored[middle : middle + 64] = bytes(64)
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(stored)
    decoder, data, place = DECODERS[packed](), [], 0
    with pytest.raises((OSError, zlib.error, lzma.LZMAError, ZstdError)):
        for place in range(len(stored)):
            data.append(decoder.decompress(stored[place : place + 1]))
    lines = b"".join(data).split(b"\n")[:-1]
    expected = [number for number, line in enumerate(lines, start=1) if line and not line.isspace()]
    *rows, damage = read(path)
    assert isinstance(damage, Damage)
    assert [row.line for row in rows] == expected
    assert (damage.line, damage.bytes_unread) == (max(expected, default=0) + 1, len(stored) - place - 1)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.xz", "a.parquet"])
def test_a_file_that_is_nothing_of_what_its_name_says_is_damaged(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\0 something else entirely \xff")
    [damage] = read(tmp_path / name)
    assert isinstance(damage, Damage)
    assert (damage.line, damage.bytes_unread) == (1, 27)


@pytest.mark.parametrize("packed", [".gz", ".zst", ".xz", ".bz2"])
@pytest.mark.parametrize("rest", [b"garbage", b"\x1f", bytes(4) + b"BZ"])
def test_what_is_left_of_something_behind_compressed_data_is_damage(tmp_path: Path, packed: str, rest: bytes) -> None:
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(PACK[packed](DATA) + rest)
    *rows, damage = read(path)
    assert rows == records(DATA)
    assert damage == Damage(len(rows) + 1, "other bytes follow its compressed data", len(rest.lstrip(b"\0")))


@pytest.mark.parametrize("checksum", [False, True])
def test_a_parquet_file_is_read_or_said_to_be_damaged(tmp_path: Path, checksum: bool) -> None:
    path = tmp_path / "a.parquet"
    texts = [hex(number**30 % 10**40) for number in range(2000)]
    stored_as = {"compression": "none", "use_dictionary": False, "write_page_checksum": checksum}
    pq.write_table(pa.table({"text": texts}), path, row_group_size=500, **stored_as)
    stored = path.read_bytes()
    path.write_bytes(stored[: len(stored) // 2])
    assert [type(row) for row in read(path)] == [Damage]
    place = stored.index(texts[1701].encode())
    path.write_bytes(stored[:place] + b"X" + stored[place + 1 :])
    *rows, last = read(path)
    if checksum:  # a wrong text cannot be told without
        assert len(rows) == 1500
        assert isinstance(last, Damage)
        assert 0 < last.bytes_unread < len(stored)


@pytest.mark.parametrize(
    "message",
    [
        "When reading from key 'a' in bucket 'b': AWS Error NETWORK_CONNECTION during GetObject operation: timed out",
        "google::cloud::Status(UNAVAILABLE: Retry policy exhausted in ReadObject(): error in stream)",
    ],
)
def test_a_store_that_fails_while_a_table_is_read_is_no_damage_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)

    def fail(*arguments: Any, **settings: Any) -> None:
        raise OSError(message)  # as Arrow does, without a number

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(OSError, match=re.escape(message)) as raised:
        read(path)
    assert type(raised.value) is OSError


def test_an_encrypted_parquet_file_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    stored = path.read_bytes()
    path.write_bytes(b"PARE" + stored[4:-4] + b"PARE")
    with pytest.raises(SbpError, match=f"{path}: is encrypted"):
        read(path)


def test_a_stream_is_closed_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(DATA))
    with open_bytes(str(path)) as stream:
        assert stream.read() == DATA
    assert stream.closed
