"""Artifacts: what is committed is whole, what is not is invisible, and nothing of others is deleted."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact, fingerprint_of
from sbp_ray.errors import SbpError

TABLE = pa.table({"doc_id": ["a", "b"], "value": [1, 2]})


class _Killed(Exception):  # noqa: N818  what stands for SIGKILL
    """Between two deletions."""


class _DyingStore:
    """A file system whose user is killed before its n-th deletion."""

    def __init__(self, store: pafs.FileSystem, num_deletions: int) -> None:
        self._store, self._left = store, num_deletions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def delete_file(self, path: str) -> None:
        self._delete(self._store.delete_file, path)

    def delete_dir(self, path: str) -> None:
        self._delete(self._store.delete_dir, path)

    def _delete(self, delete: Callable[[str], None], path: str) -> None:
        if not self._left:
            raise _Killed
        self._left -= 1
        delete(path)


def _local(tmp_path: Path) -> Artifact:
    return Artifact("corpus", str(tmp_path / "run" / "1_corpus"))


def _remote() -> Artifact:
    """On an object store: no renames, folders only in names, an object there when its stream is closed."""
    artifact = Artifact("corpus", f"memory://{uuid.uuid4().hex}/1_corpus")
    store = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("memory")))
    artifact.__dict__["_fs_and_root"] = (store, artifact.url.removeprefix("memory:/"))
    return artifact


@pytest.fixture(params=["local", "remote"])
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    return _local(tmp_path) if request.param == "local" else _remote()


def test_what_is_written_is_read_back(artifact: Artifact) -> None:
    artifact.write_bytes("a/b.bin", b"\x00\x01")
    artifact.write_json("settings.json", {"name": "Åse", "n": 3})
    artifact.write_table("train/part-00000.parquet", TABLE, stats={"documents": 2, "drops": {"empty": 1}})
    assert artifact.read_bytes("a/b.bin") == b"\x00\x01"
    assert artifact.read_json("settings.json") == {"name": "Åse", "n": 3}
    assert artifact.read_table("train/part-00000.parquet").equals(TABLE)
    assert artifact.read_table("train/part-00000.parquet", columns=["value"]).column_names == ["value"]
    assert artifact.num_rows("train/part-00000.parquet") == 2
    assert artifact.read_stats("train/part-00000.parquet") == {"documents": 2, "drops": {"empty": 1}}


def test_writing_again_replaces(artifact: Artifact) -> None:
    artifact.write_table("part.parquet", TABLE)
    artifact.write_table("part.parquet", TABLE.slice(0, 1))
    assert artifact.num_rows("part.parquet") == 1
    assert artifact.files() == ["part.parquet"]


def test_files_are_listed_sorted_by_folder_and_suffix(artifact: Artifact) -> None:
    for name in ("train/b.parquet", "train/a.parquet", "train/notes.json", "train/deep/c.parquet", "other.parquet"):
        artifact.write_bytes(name, b"x")
    assert artifact.files("train", ".parquet") == ["train/a.parquet", "train/b.parquet"]
    assert artifact.files() == ["other.parquet"]
    assert artifact.files("nothing") == []


def test_a_write_that_fails_leaves_nothing_visible(artifact: Artifact) -> None:
    with pytest.raises(RuntimeError, match="half"), artifact.writing("part.bin") as stream:
        stream.write(b"half of it")
        raise RuntimeError("half")
    assert not artifact.exists("part.bin")
    assert artifact.files() == []


def test_a_table_that_cannot_be_written_leaves_nothing_visible(artifact: Artifact) -> None:
    unwritable = TABLE.append_column("x", pa.array([(1, 1, 1)] * 2, pa.month_day_nano_interval()))
    with pytest.raises(pa.ArrowException):
        artifact.write_table("part.parquet", unwritable)
    assert artifact.files() == []


def test_a_failed_rewrite_keeps_the_old_version(artifact: Artifact) -> None:
    artifact.write_bytes("part.bin", b"old")
    with pytest.raises(RuntimeError), artifact.writing("part.bin") as stream:
        stream.write(b"new")
        raise RuntimeError
    assert artifact.read_bytes("part.bin") == b"old"


def test_a_writer_killed_before_the_rename_leaves_nothing_visible(tmp_path: Path) -> None:
    artifact = _local(tmp_path)
    code = (
        "import os, signal, sys\n"
        "from sbp_ray.artifacts import Artifact\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Artifact('corpus', sys.argv[1]).write_bytes('part.bin', b'whole')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, artifact.url], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    left = list(Path(artifact.url).iterdir())
    assert len(left) == 1  # the temporary file, complete and never renamed
    assert artifact.files() == []
    assert not artifact.exists("part.bin")
    artifact.write_bytes("part.bin", b"again")
    assert artifact.files() == ["part.bin"]
    artifact.remove_unfinished()
    assert [file.name for file in Path(artifact.url).iterdir()] == ["part.bin"]


def test_what_was_never_finished_is_removed_at_every_depth_and_nothing_else(artifact: Artifact) -> None:
    for name in ("part.bin", "deep/er/part.bin", "deep/tmp-file"):
        artifact.write_bytes(name, b"whole")
    if artifact.is_local:
        Path(artifact.path("deep/er/.tmp-part.bin-0f")).write_bytes(b"half")
        Path(artifact.path(".tmp-model")).mkdir()
        Path(artifact.path(".tmp-model/config.json")).write_bytes(b"half")
    artifact.remove_unfinished()
    found = artifact.fs.get_file_info(pafs.FileSelector(artifact.path(), recursive=True))
    left = {info.path.removeprefix(artifact.path()).strip("/") for info in found if info.is_file}
    assert left == {"part.bin", "deep/er/part.bin", "deep/tmp-file"}


def test_only_a_folder_with_our_marker_is_deleted(artifact: Artifact) -> None:
    artifact.write_bytes("somebody's.txt", b"x")
    artifact.remove()
    assert artifact.exists("somebody's.txt")
    artifact.write_json(STARTED, {"fingerprint": "f"})
    artifact.remove()
    assert not artifact.exists("somebody's.txt")
    assert not artifact.exists(STARTED)


def test_the_manifest_alone_makes_an_artifact_complete(artifact: Artifact) -> None:
    assert artifact.manifest() is None
    artifact.write_json(STARTED, {"fingerprint": "0123456789abcdef"})
    assert artifact.manifest() is None
    assert artifact.fingerprint() == "0123456789abcdef"
    artifact.write_json(MANIFEST, {"stats": {"documents": 3}})
    assert artifact.manifest() == {"stats": {"documents": 3}}


def _folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def test_a_committed_folder_replaces_what_was_there(artifact: Artifact, tmp_path: Path) -> None:
    artifact.write_bytes("model/left-by-a-killed-run", b"x")
    artifact.commit_folder(_folder(tmp_path / "source", config="{}", weights="w"), "model")
    assert artifact.files("model") == ["model/config", "model/weights"]
    assert artifact.read_bytes("model/weights") == b"w"


def test_a_remote_folder_is_copied_once_to_a_node_and_anew_when_the_artifact_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    artifact = _remote()
    artifact.write_json(STARTED, {"fingerprint": "first"})
    artifact.write_bytes("tokenizer/vocab", b"1")
    copy = artifact.local_copy("tokenizer")
    assert (copy / "vocab").read_bytes() == b"1"
    assert artifact.local_copy("tokenizer") == copy
    artifact.write_json(STARTED, {"fingerprint": "second"})
    artifact.write_bytes("tokenizer/vocab", b"2")
    assert (artifact.local_copy("tokenizer") / "vocab").read_bytes() == b"2"


def test_processes_that_want_one_folder_at_once_download_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    artifact = Artifact("corpus", f"store://{tmp_path}/1_corpus")  # files, since threads share fsspec's in memory
    store = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("file")))
    artifact.__dict__["_fs_and_root"] = (store, f"{tmp_path}/1_corpus")
    artifact.fs.create_dir(artifact.path("tokenizer"))
    artifact.write_json(STARTED, {"fingerprint": "first"})
    artifact.write_bytes("tokenizer/vocab", b"1")
    copies: list[str] = []
    copy_files = pafs.copy_files

    def slowly(source: str, *arguments: object, **named: object) -> None:
        copies.append(source)
        both_are_there.wait(timeout=0.2)
        copy_files(source, *arguments, **named)

    both_are_there = threading.Event()  # never set: the other one has time to come
    monkeypatch.setattr(pafs, "copy_files", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: artifact.local_copy("tokenizer"), range(4)))
    assert len(set(found)) == 1
    assert (found[0] / "vocab").read_bytes() == b"1"
    assert len(copies) == 1


@pytest.mark.parametrize("what", ["open to others", "a link"])
def test_a_folder_for_downloads_that_is_not_ours_alone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"sbp_ray-{os.getuid()}"
    if what == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    artifact = _remote()
    artifact.write_json(STARTED, {"fingerprint": "first"})
    artifact.write_bytes("tokenizer/vocab", b"1")
    with pytest.raises(SbpError, match="not a folder of this user's alone"):
        artifact.local_copy("tokenizer")


def _synchronised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synchronised and renamed from now on, in order."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def record_replace(source: str, target: str) -> None:
        done.append(f"rename {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return done


def test_a_folder_is_on_disk_before_it_has_its_name_and_its_name_is_before_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _folder(tmp_path / "source", config="{}", weights="w")
    _folder(source / "deep", more="m")
    artifact = _local(tmp_path)
    done = _synchronised(monkeypatch)
    artifact.commit_folder(source, "model")
    renamed = done.index("rename model")
    assert {"sync config", "sync weights", "sync more", "sync deep", "sync .tmp-model"} <= set(done[:renamed])
    assert done[renamed + 1 :] == ["sync 1_corpus"]


def test_folders_that_a_file_needs_are_on_disk_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = _synchronised(monkeypatch)
    _local(tmp_path).write_bytes("deep/part.bin", b"x")
    made = ["sync " + name for name in (tmp_path.name, "run", "1_corpus")]  # each holds the name of the next
    assert done[:3] == made
    assert done[-2:] == ["rename part.bin", "sync deep"]


def test_a_local_folder_is_used_where_it_is(tmp_path: Path) -> None:
    artifact = _local(tmp_path)
    assert artifact.local_copy("tokenizer") == Path(artifact.url) / "tokenizer"


def test_an_artifact_travels_as_two_strings(tmp_path: Path) -> None:
    artifact = _local(tmp_path)
    artifact.write_bytes("a", b"x")  # the file system is open now
    sent = pickle.dumps(artifact)
    assert len(sent) < 300
    assert pickle.loads(sent) == artifact


def test_a_file_url_is_a_local_folder(tmp_path: Path) -> None:
    artifact = Artifact("corpus", f"file://{tmp_path}/1_corpus")
    assert artifact.is_local
    artifact.write_json("a.json", 1)
    assert (tmp_path / "1_corpus" / "a.json").is_file()


def test_an_address_that_cannot_be_opened_is_named_in_one_line() -> None:
    with pytest.raises(SbpError, match=r"^nope://bucket/run: cannot be opened: ") as caught:
        Artifact("corpus", "nope://bucket/run").exists("a")
    assert "\n" not in str(caught.value)


def test_a_fingerprint_depends_on_values_and_not_on_order() -> None:
    assert fingerprint_of({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})
    assert len(fingerprint_of({})) == 16


@pytest.mark.parametrize("num_deletions", range(6))
def test_a_deletion_that_is_killed_at_any_step_is_known_as_one_and_can_be_finished(
    artifact: Artifact, num_deletions: int
) -> None:
    """Six things lie there: two markers, two folders, a file, and the tombstone."""
    for name in ("train/part", "validation/part", "notes.txt", STARTED, MANIFEST):
        artifact.write_bytes(name, b"{}")
    dying = Artifact(artifact.name, artifact.url)
    dying.__dict__["_fs_and_root"] = (_DyingStore(artifact.fs, num_deletions), artifact.path())
    with pytest.raises(_Killed):
        dying.remove()
    assert artifact.is_being_removed()
    has_data = artifact.files("train") + artifact.files("validation") + artifact.files("", ".txt")
    assert artifact.exists(STARTED) or not has_data  # nothing is left that would look like a fresh start's
    assert artifact.exists(MANIFEST) == (num_deletions == 0)
    artifact.remove()
    assert not artifact.is_being_removed()
    assert artifact.files() + artifact.files("train") + artifact.files("validation") == []
