from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sbp_ray.errors import SbpError
from sbp_ray.input_files import list_input_files
from sbp_ray.text import records
from sbp_ray.text.records import BadRow, Record, RecordReader, Unit, input_units


def read(path: Path, *, text: str = "text", group: str | None = None, max_chars: int = 100) -> list[Record | BadRow]:
    return list(RecordReader(text, group, max_chars).read(str(path)))


def write_zstd(path: Path, data: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(data)


# Which files


def test_files_globs_and_folders_are_found_once_and_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "sub/c.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = list_input_files([str(tmp_path), str(tmp_path / "*.jsonl")])
    assert found == [(str(tmp_path / name), 1) for name in ("a.jsonl.gz", "b.jsonl", "sub/c.txt")]


def test_a_star_stays_in_its_folder_and_two_do_not(tmp_path: Path) -> None:
    for name in ("a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def found(pattern: str) -> list[str]:
        return [str(Path(path).relative_to(tmp_path)) for path, _ in list_input_files([str(tmp_path / pattern)])]

    assert found("*.jsonl") == ["a.jsonl"]
    assert found("*/*.jsonl") == ["sub/b.jsonl"]
    assert found("**/*.jsonl") == ["a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("none", "no such file or folder"), ("*.jsonl", "no such file"), ("notes.md", "holds no"), ("e.txt", "is empty")],
)
def test_input_that_is_not_there_or_empty_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "e.txt").write_text("")
    with pytest.raises(SbpError, match=f"{tmp_path}/.*{message}"):
        list_input_files([str(tmp_path / name)])


def test_text_files_share_a_unit_and_others_have_their_own(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.txt", "d.parquet")]
    for path in paths:
        path.write_text("x")
    a, b, c, d = map(str, paths)
    assert input_units([str(tmp_path)]) == [Unit((b,)), Unit((d,)), Unit((a, c))]


# Large files are read in parts


def in_parts(path: Path, num_parts: int) -> list[list[Record | BadRow]]:
    reader = RecordReader("text", None, 100)
    return [list(reader.read(str(path), part, num_parts)) for part in range(num_parts)]


def test_a_line_belongs_to_the_part_in_which_it_begins_wherever_the_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'\xef\xbb\xbf{"text": "one"}', b"", b'{"text": "two"}', b"broken", '{"text": "drei ä"}'.encode(), b"{}"]
    path.write_bytes(b"\n".join(lines))
    whole = read(path)
    for num_parts in range(1, path.stat().st_size + 1):
        rows = [row for part in in_parts(path, num_parts) for row in part]
        assert [row._replace(line=0) for row in rows] == [row._replace(line=0) for row in whole], num_parts
    first, second = in_parts(path, 2)  # cut in the third line
    assert [row.line for row in first] == [1, 3]
    assert [row.line for row in second] == [1, 2, 3]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4])
def test_row_groups_are_shared_out_and_rows_keep_their_number(tmp_path: Path, num_parts: int) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {number}" if number % 4 else None for number in range(1, 11)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=3)  # 3, 3, 3 and 1
    parts = in_parts(path, num_parts)
    assert [row for part in parts for row in part] == read(path)
    assert all(parts)


def test_only_large_files_that_can_be_read_from_the_middle_are_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_PART_BYTES", 1000)
    lines = b'{"text": "x"}\n' * 200
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt"):
        (tmp_path / name).write_bytes(lines)
    (tmp_path / "d.jsonl").write_bytes(lines[:1000])
    pq.write_table(
        pa.table({"text": [str(number) for number in range(900)]}), tmp_path / "e.parquet", row_group_size=450
    )
    (tmp_path / "f.parquet").write_bytes(lines)  # is none
    units = [(Path(unit.paths[0]).name, unit.part, unit.num_parts) for unit in input_units([str(tmp_path)])]
    assert units == [
        *(("a.jsonl", part, 3) for part in range(3)),
        ("b.jsonl.gz", 0, 1),
        ("d.jsonl", 0, 1),
        ("e.parquet", 0, 2),
        ("e.parquet", 1, 2),
        ("f.parquet", 0, 1),
        ("c.txt", 0, 1),
    ]


# JSONL


def test_each_kind_of_bad_line_has_its_reason_and_number(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "with a byte order mark"}',
        b"",  # not a row
        b'{"text": 3}',
        b'{"text": "cut',
        b'{"text": "\xff"}',
        b'["text"]',
        b'{"other": "x"}',
        b'{"text": null}',
        b'{"text": " \\n "}',
        b'{"text": ""}',
        json.dumps({"text": "x" * 101}).encode(),
        b'{"text": "\\ud800"}',
        b'{"text": ' + b"[" * 100_000,
        b'{"text": "last, without a line break"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert read(path) == [
        Record(1, "with a byte order mark", None),
        BadRow(3, "text_not_a_string"),
        BadRow(4, "broken_json"),
        BadRow(5, "not_utf8"),
        BadRow(6, "not_an_object"),
        BadRow(7, "no_text"),
        BadRow(8, "no_text"),
        BadRow(9, "empty"),
        BadRow(10, "empty"),
        BadRow(11, "too_long"),
        BadRow(12, "not_utf8"),
        BadRow(13, "broken_json"),
        Record(14, "last, without a line break", None),
    ]


def test_a_line_too_long_to_hold_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sbp_ray.text.records._MAX_LINE_BYTES", 30)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "' + b"b" * 3_000_000 + b'"}\n{"text": "c"}\n{"text": "' + b"d" * 30)
    rows = read(path, max_chars=2)
    assert rows == [Record(1, "a", None), BadRow(2, "too_long"), Record(3, "c", None), BadRow(4, "too_long")]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_compressed_files_read_like_plain_ones(tmp_path: Path, suffix: str) -> None:
    path, data = tmp_path / f"a{suffix}", b'{"text": "a", "title": "T"}\n{"text": "b", "title": 7}\n'
    if suffix.endswith("zst"):
        write_zstd(path, data)
    else:
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert read(path, group="title") == [Record(1, "a", "T"), Record(2, "b", "7")]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_truncated_file_gives_its_whole_lines_and_one_bad_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    data = b"".join(b'{"text": "%d"}\n' % (number * 7919 % 100_003) for number in range(50_000))
    if suffix.endswith("zst"):
        write_zstd(path, data)
    else:
        path.write_bytes(gzip.compress(data))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    *good, last = read(path)
    assert last == BadRow(len(good) + 1, "damaged_file")
    assert len(good) < 50_000
    assert good == [Record(n + 1, str(n * 7919 % 100_003), None) for n in range(len(good))]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_one_bad_row(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something else entirely")
    assert read(tmp_path / name) == [BadRow(1, "damaged_file")]


# Columns


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_file_without_the_text_column_is_refused_with_the_columns_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"body": ["x"], "id": [1]}), path)
    else:
        path.write_text('{"body": "x", "id": 1}\n')
    with pytest.raises(SbpError, match=rf"{path}: no text in column 'text': .* one of body, id"):
        read(path)
    with pytest.raises(SbpError, match=rf"{path}: no column 'title': .*ingest.group_column .* body, id"):
        read(path, text="body", group="title")


def test_a_column_that_never_holds_a_string_is_not_a_text_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [[1], [2]]}), path)
    with pytest.raises(SbpError, match="no text in column 'text'"):
        read(path)


def test_the_wrong_column_is_noticed_early_in_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n' * 1_500)
    rows = RecordReader("text", None, 10).read(str(path))
    assert [next(rows).line for _ in range(999)] == list(range(1, 1000))
    with pytest.raises(SbpError):
        next(rows)


# Parquet and text files


def test_parquet_strings_are_not_trusted_to_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    raw = pa.array([b"ok", b"\xff", None, b" "], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    pq.write_table(pa.table({"text": text, "title": pa.array(["a", "b", "c", "d"]).dictionary_encode()}), path)
    assert read(path, group="title") == [
        Record(1, "ok", "a"),
        BadRow(2, "not_utf8"),
        BadRow(3, "no_text"),
        BadRow(4, "empty"),
    ]


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("two\nlines\n")
    assert read(path) == [Record(1, "two\nlines\n", None)]
    assert read(path, group="file") == [Record(1, "two\nlines\n", str(path))]
    path.write_bytes("é".encode() * 101)
    assert read(path) == [BadRow(1, "too_long")]
    path.write_bytes("é".encode() * 100)
    assert len(read(path)[0].text) == 100
    path.write_bytes(b"a\xffb")
    assert read(path) == [BadRow(1, "not_utf8")]


def test_a_hugging_face_dataset_is_read_in_parts(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}1"}}\n{{"text": "{name}2"}}\n')
    name = f"hf:{tmp_path}"  # the library takes a folder for a dataset
    assert input_units([name]) == [Unit((name,), 0, 2), Unit((name,), 1, 2)]
    reader = RecordReader("text", None, 10)
    parts = [[row.text for row in reader.read(name, part, 2)] for part in range(2)]
    assert parts == [["x1", "x2"], ["y1", "y2"]]


def test_a_hugging_face_dataset_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(SbpError, match=r"hf:someone/some: cannot be opened \(Couldn't reach the Hub\): .*network"):
        input_units(["hf:someone/some"])
