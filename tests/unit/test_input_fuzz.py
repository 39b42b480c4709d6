"""Whatever bytes the input holds: each row is a document, or in quarantine by its file and line, or counted by reason.

Through the stage itself. What a file should give is worked out here by other means: each compression's own
decompressor, fed byte by byte, and Python's json.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports.zstd import ZstdDecompressor, ZstdError
from backports.zstd import compress as zstd_compress
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, IngestConfig
from sbp_ray.errors import SbpError
from sbp_ray.stages.ingest import ingest_documents
from sbp_ray.text.tokenizer import train_tokenizer

pytestmark = pytest.mark.usefixtures("in_process")

FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
SHORT, LONG = settings(max_examples=15, **FUZZ), settings(max_examples=1000, **FUZZ)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd_compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
UNPACK: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(31),
    b"\x28\xb5\x2f\xfd": ZstdDecompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
    b"BZh": bz2.BZ2Decompressor,
}
ERRORS = (zlib.error, ZstdError, lzma.LZMAError, OSError)
GOOD = [f"A text that is whole: {number}" for number in range(3)]
MAX_CHARS = 40


class Expected(NamedTuple):
    """What is to be found of a file."""

    texts: list[str]
    bad_lines: list[int]
    damage: tuple[int, int] | None
    """First row and number of bytes that cannot be read."""


# What is right


def unpack(stored: bytes) -> tuple[bytes, int | None]:
    """All that comes before damage, and how many bytes from there on are lost; None of a whole file."""
    unpacked, place = b"", 0
    while rest := stored[place:].lstrip(b"\0") if place else stored:
        place = len(stored) - len(rest)
        new = next((new for magic, new in UNPACK.items() if rest.startswith(magic)), None)
        if new is None or (place and not stored.startswith(rest[:2])):
            return unpacked, len(rest)
        decoder = new()
        while not decoder.eof:
            if place == len(stored):
                return unpacked, 0
            place += 1
            try:
                unpacked += decoder.decompress(stored[place - 1 : place])
            except ERRORS:
                return unpacked, len(stored) - place
    return unpacked, None


def text_of(line: bytes, is_first: bool) -> str | None:
    """The text of a line that can be used."""
    try:
        row = json.loads(line.decode("utf-8-sig" if is_first else "utf-8"))
        text = row["text"] if isinstance(row, dict) else None
        is_good = isinstance(text, str) and 0 < len(text) <= MAX_CHARS and text.encode() and not text.isspace()
    except (ValueError, KeyError, RecursionError):
        return None
    return text if is_good else None


def expect_lines(stored: bytes, packed: str) -> Expected:
    """Of a file of JSON lines."""
    lost = None
    if any(map(stored.startswith, UNPACK)):
        stored, lost = unpack(stored)
    elif packed and stored.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"{", b"["):
        return Expected([], [], (1, len(stored)))
    if lost is not None:
        stored = stored[: stored.rfind(b"\n") + 1]
    rows = {number: text_of(line, number == 1) for number, line in enumerate(stored.split(b"\n"), 1) if line.strip()}
    bad_lines = [number for number, text in rows.items() if text is None]
    last = max(rows, default=0)
    return Expected([text for text in rows.values() if text], bad_lines, None if lost is None else (last + 1, lost))


def looks_alike(text: str) -> str:
    """The same for texts that are one document."""
    return "\n".join(line.rstrip() for line in unicodedata.normalize("NFC", text).strip().splitlines())


# What is done to it

ROW = st.one_of(
    st.text(max_size=45).map(lambda text: json.dumps({"text": text}).encode()),
    st.text(max_size=20).map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "replace")),
    st.dictionaries(st.text(max_size=5), st.none() | st.floats() | st.text(max_size=3)).map(
        lambda x: json.dumps(x).encode()
    ),
    st.binary(max_size=30),
    st.sampled_from([b"", b" ", b"\r", b"{}", b"[]", b"null", b'{"text": 1e999}', b'{"text": "\\ud800"}']),
    st.sampled_from([b'{"text": null}', b'{"text": ["a"]}', b'\xef\xbb\xbf{"text": "b"}', b"[" * 2000, b"9" * 5000]),
)
PLACE = st.integers(0, 2**16)
CHANGE = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(1, 255)),
    st.tuples(st.just("cut"), PLACE),
    st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("zeros"), PLACE, st.integers(1, 40)),
    st.tuples(st.just("take out"), PLACE, st.integers(1, 40)),
    st.tuples(st.just("append"), st.sampled_from([b"\0" * 9, b"garbage", b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh9"])),
)


def changed(stored: bytes, changes: list[tuple[Any, ...]]) -> bytes:
    """The bytes after what has happened to them, one at least."""
    for what, *details in changes:
        place = details[0] % len(stored) if what != "append" else 0
        before, after = stored[:place], stored[place:]
        if what == "flip":
            stored = before + bytes([after[0] ^ details[1]]) + after[1:]
        elif what == "cut":
            stored = before or stored[:1]
        elif what == "insert":
            stored = before + details[1] + after
        elif what == "zeros":
            stored = before + bytes(min(details[1], len(after))) + after[details[1] :]
        elif what == "take out":
            stored = before + after[details[1] :] or stored[:1]
        else:
            stored += details[0]
    return stored


# What comes out


class Outcome(NamedTuple):
    stats: dict[str, Any]
    texts: list[str]
    quarantine: list[dict[str, Any]]


Ingest = Callable[[dict[str, bytes]], Outcome | str]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(GOOD, 300).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def ingest(tokenizer: str) -> Ingest:
    """What the stage makes of some files beside one that is good, or the line with which it ends."""

    def run(files: dict[str, bytes]) -> Outcome | str:
        with tempfile.TemporaryDirectory() as folder:
            good = "".join(json.dumps({"text": text}) + "\n" for text in GOOD).encode()
            (Path(folder) / "in").mkdir()
            for name, stored in {"a good one.jsonl": good, **files}.items():
                (Path(folder) / "in" / name).write_bytes(stored)
            try:
                return run_stage(Path(folder), tokenizer, len(files))
            except SbpError as error:
                assert "\n" not in str(error)
                return str(error)

    return run


def run_stage(folder: Path, tokenizer: str, max_damaged_files: int) -> Outcome:
    cfg = IngestConfig(
        input=(str(folder / "in"),),
        num_shards=1,
        max_chars=MAX_CHARS,
        max_bad_share=1,
        max_damaged_files=max_damaged_files,
        validation_share=0,
        development_share=0,
        tokenizer=tokenizer,
    )
    out = Artifact("corpus", str(folder / "corpus"))
    stats = ingest_documents(cfg, decontaminate=DecontaminateConfig(), out=out)
    texts = [text for name in out.files("train", ".parquet") for text in out.read_table(name)["text"].to_pylist()]
    entries = [json.loads(line) for name in out.files("quarantine") for line in out.read_bytes(name).splitlines()]
    return Outcome(stats, texts, entries)


def check_lines(ingest: Ingest, files: dict[str, bytes]) -> None:
    """Every line of files of JSON lines is where it belongs."""
    outcome = ingest(files)
    if isinstance(outcome, str):  # of another form than a line for each object
        heads = [unpack(stored)[0] if any(map(stored.startswith, UNPACK)) else stored for stored in files.values()]
        assert any(head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{") for head in heads)
        assert "JSON array" in outcome or "JSON over several lines" in outcome
        return
    expected = {name: expect_lines(stored, Path(name).suffix.removeprefix(".jsonl")) for name, stored in files.items()}
    texts = [*GOOD, *(text for each in expected.values() for text in each.texts)]
    bad = Counter((name, line) for name, each in expected.items() for line in each.bad_lines)
    damaged = {(name, *each.damage) for name, each in expected.items() if each.damage}
    assert {*map(looks_alike, outcome.texts)} == {*map(looks_alike, texts)}
    assert {*outcome.texts} <= {*texts}
    told = [(Path(entry["file"]).name, entry) for entry in outcome.quarantine]
    assert Counter((name, entry["line"]) for name, entry in told if entry["reason"] != "damaged_file") == bad
    assert {(name, entry["line"], entry["bytes_unread"]) for name, entry in told if "bytes_unread" in entry} == damaged
    stats = outcome.stats
    assert stats["files"]["damaged"] == len(damaged)
    assert stats["files"]["bytes_unread"] == sum(lost for *_, lost in damaged)
    assert stats["rows"] == len(texts) + bad.total() == stats["documents"] + sum(stats["drops"].values())
    assert stats["drops"].get("exact_duplicate", 0) == len(texts) - len(outcome.texts)


LINES = st.lists(ROW, max_size=8).map(lambda rows: b"\n".join([b'{"text": "first"}', *rows]))
FILES = st.dictionaries(st.sampled_from([f"{n}.jsonl{packed}" for n in "ab" for packed in PACK]), LINES, max_size=3)


def whole_lines(ingest: Ingest, files: dict[str, bytes]) -> None:
    check_lines(ingest, {name: PACK[Path(name).suffix.removeprefix(".jsonl")](data) for name, data in files.items()})


def damaged_lines(ingest: Ingest, data: bytes, more: bytes, packed: str, changes: list[tuple[Any, ...]]) -> None:
    members = PACK[packed](data) + (PACK[packed](more) if more else b"")
    check_lines(ingest, {f"a.jsonl{packed}": changed(members, changes)})


def damaged_table(ingest: Ingest, codec: str, changes: list[tuple[Any, ...]]) -> None:
    stream = io.BytesIO()
    table = pa.table({"text": [f"text {n**7 % 1009} {n}" for n in range(60)], "id": range(60)})
    pq.write_table(table, stream, row_group_size=20, write_page_checksum=True, compression=codec)
    stored = changed(stream.getvalue(), changes)
    outcome = ingest({"a.parquet": stored})
    if isinstance(outcome, str):
        assert "a.parquet" in outcome
        return
    num_rows = outcome.stats["rows"] - len(GOOD)
    damage = [entry for entry in outcome.quarantine if entry["reason"] == "damaged_file"]
    bad_lines = [entry["line"] for entry in outcome.quarantine if entry["reason"] != "damaged_file"]
    assert outcome.stats["rows"] == outcome.stats["documents"] + sum(outcome.stats["drops"].values())
    assert all(0 < line <= num_rows for line in bad_lines)
    if damage:
        assert [entry["line"] for entry in damage] == [num_rows + 1]
        assert 0 < damage[0]["bytes_unread"] <= len(stored)
    else:
        assert num_rows == 60
    assert {*outcome.texts} <= {*GOOD, *table.column("text").to_pylist()}


CODEC = st.sampled_from(["none", "snappy", "zstd", "gzip"])
CHANGES = st.lists(CHANGE, min_size=1, max_size=3)


@SHORT
@given(files=FILES)
def test_every_line_is_a_document_or_has_a_reason(ingest: Ingest, files: dict[str, bytes]) -> None:
    whole_lines(ingest, files)


@SHORT
@given(data=LINES, more=LINES, packed=st.sampled_from([*PACK]), changes=CHANGES)
def test_of_a_damaged_file_every_line_before_the_damage_counts_and_the_rest_is_told(
    ingest: Ingest, data: bytes, more: bytes, packed: str, changes: list[tuple[Any, ...]]
) -> None:
    damaged_lines(ingest, data, more, packed, changes)


@SHORT
@given(codec=CODEC, changes=CHANGES)
def test_of_a_damaged_table_all_rows_are_read_or_the_rest_is_told(
    ingest: Ingest, codec: str, changes: list[tuple[Any, ...]]
) -> None:
    damaged_table(ingest, codec, changes)


@pytest.mark.long
@LONG
@given(files=FILES)
def test_every_line_of_a_thousand_files_is_a_document_or_has_a_reason(ingest: Ingest, files: dict[str, bytes]) -> None:
    whole_lines(ingest, files)


@pytest.mark.long
@LONG
@given(data=LINES, more=LINES, packed=st.sampled_from([*PACK]), changes=CHANGES)
def test_of_a_thousand_damaged_files_every_line_before_the_damage_counts(
    ingest: Ingest, data: bytes, more: bytes, packed: str, changes: list[tuple[Any, ...]]
) -> None:
    damaged_lines(ingest, data, more, packed, changes)


@pytest.mark.long
@LONG
@given(codec=CODEC, changes=CHANGES)
def test_of_a_thousand_damaged_tables_all_rows_are_read_or_the_rest_is_told(
    ingest: Ingest, codec: str, changes: list[tuple[Any, ...]]
) -> None:
    damaged_table(ingest, codec, changes)
