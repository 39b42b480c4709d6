"""What a path, a glob or a folder means."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from sbp_ray import file_formats
from sbp_ray.errors import SbpError
from sbp_ray.ingestion.records import Record, RecordReader
from sbp_ray.input_files import find_input_files

LINE = '{"text": "a"}\n'


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(LINE)


def found(folder: Path, *patterns: str) -> list[str]:
    files = find_input_files(str(folder / pattern) for pattern in patterns).files
    return [str(Path(path).relative_to(folder)) for path, _ in files]


def test_two_stars_are_any_number_of_folders_and_no_part_of_a_name(tmp_path: Path) -> None:
    trained = ["train.jsonl", "train-2.jsonl", "en/train.jsonl", "en/deep/train.jsonl"]
    make(tmp_path, *trained, "pretrain.jsonl", "x/notrain.jsonl", "train/validation.jsonl", "x/train/test.jsonl")
    assert found(tmp_path, "**/train*.jsonl") == sorted(trained)
    assert found(tmp_path, "en/**/train.jsonl") == ["en/deep/train.jsonl", "en/train.jsonl"]
    assert found(tmp_path, "**/train/*.jsonl") == ["train/validation.jsonl", "x/train/test.jsonl"]
    patterns = ["**/*.jsonl", "*/*.jsonl", "**/train/**/*.jsonl", "*/**/*n*.jsonl", "[!e]*/[a-n]*.jsonl", "?/*/*"]
    for pattern in patterns:
        assert found(tmp_path, pattern) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob(pattern))


def test_what_a_pattern_names_is_read_under_any_name_or_refused(tmp_path: Path) -> None:
    names = ["a.json", "b.ndjson", "c.JSONL", "d.jsonl.xz", "e.jsonl.gzip", "wiki_00", "part-0.c000", "g.jsonl.1"]
    make(tmp_path, *names)
    assert found(tmp_path, "*") == sorted(names)
    (tmp_path / "h.csv").write_text("text\na\n")
    with pytest.raises(SbpError, match=r"h.csv: holds neither JSON lines nor Parquet: convert it"):
        found(tmp_path, "*")
    listed = find_input_files([str(tmp_path)])
    assert listed.describe() == "read 6 of 9 files, skipped: 1 .1, 1 .csv, 1 .c000"


def test_hidden_files_are_read_only_if_they_are_named(tmp_path: Path) -> None:
    names = ["a.jsonl", ".hidden.jsonl", "._a.jsonl", ".checkpoints/a.jsonl", "_temporary/b.jsonl"]
    make(tmp_path, *names)
    assert found(tmp_path, ".") == ["a.jsonl"]
    assert found(tmp_path, "*.jsonl", "**/*.jsonl") == ["_temporary/b.jsonl", "a.jsonl"]
    assert found(tmp_path, ".*.jsonl", ".checkpoints") == ["._a.jsonl", ".checkpoints/a.jsonl", ".hidden.jsonl"]


def test_a_name_that_is_there_is_meant_as_it_is_spelt(tmp_path: Path) -> None:
    make(tmp_path, "[D_DATA]/a.jsonl", "D/b.jsonl", "what?.jsonl", "whats.jsonl", "*.jsonl")
    assert found(tmp_path, "[D_DATA]") == found(tmp_path, "[D_DATA]/*.jsonl") == ["[D_DATA]/a.jsonl"]
    assert found(tmp_path, "what?.jsonl") == ["what?.jsonl"]
    assert found(tmp_path, "*.jsonl") == ["*.jsonl"]


def test_a_folder_named_like_a_file_is_a_folder_of_files(tmp_path: Path) -> None:
    make(tmp_path, "out.jsonl/part-0.jsonl", "out.jsonl/_SUCCESS", "other/part-0.jsonl", "b.jsonl")
    assert found(tmp_path, "*.jsonl") == ["b.jsonl", "out.jsonl/part-0.jsonl"]
    assert found(tmp_path, "out.jsonl") == ["out.jsonl/part-0.jsonl"]
    listed = find_input_files([str(tmp_path / "*")])
    assert [path for path, _ in listed.files] == [str(tmp_path / "b.jsonl"), str(tmp_path / "out.jsonl/part-0.jsonl")]
    assert listed.skipped == {"folder": 1, "hidden": 1}


def test_what_we_made_below_the_input_is_no_input(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "runs/1_corpus/started.json", "runs/1_corpus/quarantine/part-00000.jsonl")
    assert found(tmp_path, ".") == found(tmp_path, "**/*.jsonl") == ["a.jsonl"]


# Links


def test_folder_links_that_loop_give_each_file_once(tmp_path: Path) -> None:
    make(tmp_path, "a/one.jsonl", "b/two.jsonl")
    for folder in "ab":
        for other in ("a", "b", "."):
            (tmp_path / folder / f"to_{other}").symlink_to(tmp_path / other)
    assert len(found(tmp_path, ".")) == len(found(tmp_path, "**/*.jsonl")) == 2
    assert found(tmp_path, "a/to_b/*.jsonl") == ["a/to_b/two.jsonl"]
    assert found(tmp_path, "**/to_b/*.jsonl") == ["a/to_b/two.jsonl"]


def test_no_folder_is_listed_that_the_pattern_does_not_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jsonl", "secret/b.jsonl", "deep/c.jsonl")
    scan = os.scandir

    def scan_all_but_one(folder: str) -> object:
        if Path(folder).name == "secret":  # root may read any folder
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scan_all_but_one)
    assert found(tmp_path, "*.jsonl") == ["a.jsonl"]
    assert found(tmp_path, "d*/*.jsonl") == ["deep/c.jsonl"]
    with pytest.raises(SbpError, match=r"cannot be read: .*Permission denied: '.*/secret'"):
        found(tmp_path, "**/*.jsonl")


def test_the_name_of_a_link_counts_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots/main").mkdir(parents=True)
    for number, (name, data) in enumerate(
        {
            "a.jsonl": LINE.encode(),
            "b.jsonl.gz": gzip.compress(LINE.encode()),
            "c.txt": b"a",
        }.items()
    ):
        (tmp_path / f"blobs/{number:064x}").write_bytes(data)
        (tmp_path / "snapshots/main" / name).symlink_to(f"../../blobs/{number:064x}")
    names = [f"snapshots/main/{name}" for name in ("a.jsonl", "b.jsonl.gz", "c.txt")]
    assert found(tmp_path, "snapshots") == found(tmp_path, "snapshots/*/*") == names
    for name in names:
        assert [*RecordReader("text", None, 10).read(str(tmp_path / name))] == [Record(1, "a", None)]


@pytest.mark.parametrize(("name", "target"), [("gone.jsonl", "objects/x"), ("self.jsonl", "self.jsonl")])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, name: str, target: str) -> None:
    make(tmp_path, "a.jsonl")
    (tmp_path / name).symlink_to(target)
    for pattern in (".", "*.jsonl", name):
        with pytest.raises(SbpError, match=f"{name}"):
            found(tmp_path, pattern)
    assert found(tmp_path, "a*.jsonl") == ["a.jsonl"]


# What is no file


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(SbpError, match=r"p.jsonl: is neither a file nor a folder"):
        found(tmp_path, "p.jsonl")


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.jsonl")).write_text(LINE)
    with pytest.raises(SbpError, match=r"a\\udcff.jsonl: the name is not UTF-8: rename it"):
        found(tmp_path, ".")


def test_in_a_folder_a_name_that_is_not_utf8_is_counted_or_named(tmp_path: Path) -> None:
    """A name is refused where the file would be read, or looked into; any other is counted, in UTF-8."""
    make(tmp_path, "a.jsonl", "notes.caf\udce9")
    listed = find_input_files([str(tmp_path)])
    assert json.loads(json.dumps(listed.skipped, ensure_ascii=False).encode()) == {".caf\\udce9": 1}
    make(tmp_path, "caf\udce9")
    with pytest.raises(SbpError, match=r"caf\\udce9: the name is not UTF-8: rename it"):
        find_input_files([str(tmp_path)])


@pytest.mark.parametrize("name", ["in//docs", "in/docs//", "in/./docs"])
def test_a_folder_is_the_same_however_many_slashes_lead_to_it(tmp_path: Path, name: str) -> None:
    make(tmp_path, "in/docs/a.jsonl")
    assert [Path(path) for path, _ in find_input_files([f"{tmp_path}/{name}"]).files] == [tmp_path / "in/docs/a.jsonl"]


# Stores


@pytest.mark.parametrize("name", ["a b.jsonl", "a%20b.jsonl", "a?b#c.jsonl", "é.jsonl"])
def test_names_on_a_store_are_no_urls(tmp_path: Path, name: str) -> None:
    make(tmp_path, name)
    for pattern in (f"file://{tmp_path}/?*.jsonl", f"file://{tmp_path}/{name}", f"file://{tmp_path}"):
        [(path, _)] = find_input_files([pattern]).files
        [row] = RecordReader("text", None, 10).read(path)
        assert row == Record(1, "a", None)


def test_a_store_is_listed_once_for_all_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "bucket/en/train.jsonl", "bucket/pretrain.jsonl", "bucket/en/deep/train.jsonl", "bucket/c.md")
    listings: list[str] = []

    inner = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())

    class Counted:
        def get_file_info(self, asked: object) -> object:
            if isinstance(asked, pafs.FileSelector):
                listings.append(asked.base_dir)
            return inner.get_file_info(asked)

        def open_input_file(self, path: str) -> object:
            return inner.open_input_file(path)

    def open_counted(pattern: str) -> tuple[object, str]:
        return Counted(), pattern.partition("://")[2]

    monkeypatch.setattr("sbp_ray.input_files.open_file_system", open_counted)
    monkeypatch.setattr(file_formats, "open_file_system", open_counted)

    def named(pattern: str) -> list[str]:
        listings.clear()
        return [path for path, _ in find_input_files([pattern]).files]

    deep, shallow = "s3://bucket/en/deep/train.jsonl", "s3://bucket/en/train.jsonl"
    assert named("s3://bucket/**/train*.jsonl") == [deep, shallow]
    assert listings == ["bucket"]
    assert named("s3://bucket/*.jsonl") == ["s3://bucket/pretrain.jsonl"]
    assert named("s3://bucket") == [deep, shallow, "s3://bucket/pretrain.jsonl"]
    assert listings == ["bucket"]
    assert named("s3://bucket/en/train.jsonl") == [shallow]
    assert listings == []
