from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sbp_ray.errors import SbpError
from sbp_ray.ingestion import units
from sbp_ray.ingestion.records import BadRow, Damage, Record, RecordReader, SeenColumns
from sbp_ray.ingestion.units import Unit, input_units
from sbp_ray.input_files import DatasetName, find_input_files

Row = Record | BadRow | Damage


def read(path: Path, *, text: str = "text", group: str | None = None, max_chars: int = 100) -> list[Row]:
    return list(RecordReader(text, group, max_chars).read(str(path)))


def found(*patterns: Path | str) -> list[str]:
    return [path for path, _ in find_input_files(map(str, patterns)).files]


def seen_in(path: Path, *, text: str = "text", group: str | None = None) -> SeenColumns:
    seen = SeenColumns()
    list(RecordReader(text, group, 100).read(str(path), seen=seen))
    return seen


# Which files


def test_files_globs_and_folders_are_found_once_and_sorted(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "sub/c.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listed = find_input_files([str(tmp_path), str(tmp_path / "*.jsonl")])
    assert listed.describe() == "read 3 of 4 files, skipped: 1 .md"
    assert listed.files == [(str(tmp_path / name), 1) for name in ("a.jsonl.gz", "b.jsonl", "sub/c.txt")]


def test_a_star_stays_in_its_folder_and_two_do_not(tmp_path: Path) -> None:
    for name in ("a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    a, b, c = (str(tmp_path / name) for name in ("a.jsonl", "sub/b.jsonl", "sub/deep/c.jsonl"))
    assert found(tmp_path / "*.jsonl") == [a]
    assert found(tmp_path / "*/*.jsonl") == [b]
    assert found(tmp_path / "**/*.jsonl") == [a, b, c]
    assert found(tmp_path / "**") == [a, b, c]
    assert found(tmp_path / "**/deep/*") == [c]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "no such file or folder"),
        ("*.jsonl", "no such file"),
        ("notes.md", "holds neither JSON lines nor Parquet"),
        ("e.txt", "is empty"),
    ],
)
def test_input_that_is_not_there_or_empty_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "e.txt").write_text("")
    with pytest.raises(SbpError, match=f"{tmp_path}/.*{message}"):
        find_input_files([str(tmp_path / name)])


def test_small_files_share_a_unit_up_to_a_size_and_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.jsonl" for number in range(7)]
    for path, size in zip(paths, (1, 1, 1, 9, 12, 2, 2), strict=True):
        path.write_bytes(b"x" * size)
    monkeypatch.setattr(units, "_UNIT_FILES", 2)
    monkeypatch.setattr(units, "_UNIT_BYTES", 10)
    names = [[Path(path).name[0] for path in unit.paths] for unit in input_units([str(tmp_path)])[0]]
    assert names == [["0", "1"], ["2", "3"], ["4"], ["5", "6"]]


# Large files are read in parts


def in_parts(path: Path, num_parts: int) -> list[list[Row]]:
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
    monkeypatch.setattr(units, "_PART_BYTES", 1000)
    monkeypatch.setattr(units, "_UNIT_FILES", 1)
    lines = b'{"text": "x"}\n' * 200
    for name in ("a.jsonl", "c.txt"):
        (tmp_path / name).write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(b"%d\n" % n**9 for n in range(900))))
    (tmp_path / "d.jsonl").write_bytes(lines[:1000])
    pq.write_table(
        pa.table({"text": [str(number) for number in range(900)]}), tmp_path / "e.parquet", row_group_size=450
    )
    (tmp_path / "f.parquet").write_bytes(lines)  # is none
    made = [(Path(unit.paths[0]).name, unit.part, unit.num_parts) for unit in input_units([str(tmp_path)])[0]]
    assert made == [
        *(("a.jsonl", part, 3) for part in range(3)),
        ("b.jsonl.gz", 0, 1),
        ("c.txt", 0, 1),
        ("d.jsonl", 0, 1),
        ("e.parquet", 0, 2),
        ("e.parquet", 1, 2),
        ("f.parquet", 0, 1),
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
    monkeypatch.setattr("sbp_ray.ingestion.row_sources._MAX_LINE_BYTES", 30)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "' + b"b" * 3_000_000 + b'"}\n{"text": "c"}\n{"text": "' + b"d" * 30)
    rows = read(path, max_chars=2)
    assert rows == [Record(1, "a", None), BadRow(2, "too_long"), Record(3, "c", None), BadRow(4, "too_long")]


# Columns


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_what_a_file_holds_is_told_from_all_of_its_rows(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [{"text": None, "id": 1}, {"text": None, "id": 2}, {"text": [1], "title": "T"}]
    path = tmp_path / name
    if name.endswith("parquet"):
        table = [{"text": row["text"], "id": row.get("id"), "title": row.get("title")} for row in rows]
        pq.write_table(pa.Table.from_pylist(table), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = seen_in(path, group="title")
    assert (seen.num_rows, seen.num_texts, seen.has_group) == (3, 0, True)
    assert [*seen.names] == ["text", "id", "title"]
    assert dict(seen.types) == {"null": 2, "a list": 1}
    seen = seen_in(path, text="body", group="page")
    assert (seen.num_texts, seen.has_group, dict(seen.types)) == (0, False, {"nothing": 3})


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_dot_leads_into_an_object_unless_a_column_has_it_in_its_name(tmp_path: Path, name: str) -> None:
    rows = [
        {"content": {"text": "inner", "at": {"url": "U"}}, "a.b": "flat"},
        {"content": {"text": None, "at": None}, "a.b": "x"},
        {"content": None, "a.b": "y"},
    ]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read(path, text="content.text", group="content.at.url") == [
        Record(1, "inner", "U"),
        BadRow(2, "no_text"),
        BadRow(3, "no_text"),
    ]
    assert [row.text for row in read(path, text="a.b") if isinstance(row, Record)] == ["flat", "x", "y"]


def test_what_names_no_group_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "t", "g": {value}}}\n' for value in ('""', "NaN", "null", "0", '"b"')))
    assert [row.group for row in read(path, group="g") if isinstance(row, Record)] == [None, None, None, "0", "b"]


def test_a_whole_number_names_one_group_however_a_file_stores_it(tmp_path: Path) -> None:
    """A writer makes floats of a column of numbers in which one is missing, and keeps the next file's integers."""
    columns = [pa.array([7, 8]), pa.array([7.0, None]), pa.array([7.5, -0.0], pa.float32()), pa.array(["7", "8"])]
    groups = []
    for number, column in enumerate(columns):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"text": ["t", "u"], "g": column}), path)
        groups.append([row.group for row in read(path, group="g") if isinstance(row, Record)])
    assert groups == [["7", "8"], ["7", None], ["7.5", "0"], ["7", "8"]]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "t", "g": {value}}}\n' for value in ("7", "7.0", "7e0", "Infinity", "true")))
    assert [row.group for row in read(path, group="g") if isinstance(row, Record)] == ["7", "7", "7", "inf", "True"]


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(SbpError, match=f"{path}: has the column 'text' more than once: rename"):
        read(path)


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
    path.write_bytes(b"\xef\xbb\xbfa")
    assert read(path) == [Record(1, "a", None)]


def test_only_a_character_that_the_limit_cuts_is_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("é".encode() * 500)  # the limit of 404 bytes lies between characters
    assert read(path) == [BadRow(1, "too_long")]
    path.write_bytes(b"a" + "é".encode() * 500)  # and within one
    assert read(path) == [BadRow(1, "too_long")]
    path.write_bytes("中文".encode("gb2312") * 500)
    assert read(path) == [BadRow(1, "not_utf8")]
    path.write_bytes(b"whole but for its last character \xc3")
    assert read(path) == [BadRow(1, "not_utf8")]


def test_a_hugging_face_dataset_is_read_in_parts(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}1"}}\n{{"text": "{name}2"}}\n')
    name = f"hf:{tmp_path}"  # the library takes a folder for a dataset
    assert input_units([name])[0] == [Unit((name,), 0, 2), Unit((name,), 1, 2)]
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


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("hf:owner/name", ("owner/name", None, None)),
        ("hf:owner/name:config", ("owner/name", "config", None)),
        ("hf:owner/name@v1.0.0:config", ("owner/name", "config", "v1.0.0")),
        ("hf:owner/name@0123abc", ("owner/name", None, "0123abc")),
        ("hf:/data/me@home/folder", ("/data/me@home/folder", None, None)),
    ],
)
def test_a_dataset_is_named_with_its_revision_and_its_configuration(pattern: str, parts: tuple[str | None]) -> None:
    assert DatasetName.parse(pattern) == parts


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ('{"text": "y", "more": 1}', "since the dataset's first file has no column 'more'"),
        (
            '{"text": "y", "size": "large"}',
            "since its column 'size' is of string, and of int64 in the dataset's first file",
        ),
        ('{"text": "y", "si', "("),
    ],
)
def test_a_hugging_face_dataset_whose_files_differ_says_which_and_is_read_as_files(
    tmp_path: Path, other: str, reason: str
) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "x", "size": 1}\n')
    (tmp_path / "y.jsonl").write_text(f"{other}\n")
    reader = RecordReader("text", None, 10)
    with pytest.raises(SbpError) as refused:
        list(reader.read(f"hf:{tmp_path}", 1, 2))
    message = str(refused.value)
    assert message.startswith(f"hf:{tmp_path}: {tmp_path}/y.jsonl cannot be read")
    assert reason in message
    assert "\n" not in message
    [row] = reader.read(str(tmp_path / "y.jsonl"))
    assert row == (Record(1, "y", None) if other.endswith("}") else BadRow(1, "broken_json"))


def test_a_table_of_a_hugging_face_dataset_with_another_type_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "size": [1]}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"text": ["y"], "size": ["large"]}), tmp_path / "y.parquet")
    with pytest.raises(SbpError, match=f"{tmp_path}/y.parquet cannot be read, since its column 'size' is of string"):
        list(RecordReader("text", None, 10).read(f"hf:{tmp_path}", 1, 2))


def test_values_of_several_types_in_a_hugging_face_dataset_are_read_or_put_aside(tmp_path: Path) -> None:
    rows = [{"text": "x", "size": 1}, {"text": "y", "size": "large"}, {"text": 3, "size": [1]}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [Record(1, "x", None), Record(2, "y", None), BadRow(3, "text_not_a_string")]
    assert [*RecordReader("text", None, 10).read(f"hf:{tmp_path}")] == expected
