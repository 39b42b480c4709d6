"""What a corpus team gets for its files: the ingest job from the command line to the manifest, without Ray."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sbp_ray import cluster, job
from sbp_ray.config import Config
from sbp_ray.stages.ingest import ingest_documents

CASES = Path(__file__).parents[3] / "shared/cases"
SMALL = Path(__file__).with_name("small.yaml")
NUM_LINES = 20_000
Ingest = Callable[..., dict[str, Any] | str]


@pytest.fixture
def ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_process) -> Ingest:
    """`ingest(pattern, "ingest.seed=1")`: the manifest's stats, or the one line of error."""

    @contextmanager
    def no_ray(config: Config, jobs: list[str]) -> Iterator[None]:
        yield

    def run(opened: job.Job) -> dict[str, Any]:
        cfg = opened.config
        return ingest_documents(cfg.ingest, decontaminate=cfg.decontaminate, out=opened.output)

    def run_job(pattern: Path | str, *settings: str) -> dict[str, Any] | str:
        overrides = [f"run_dir={tmp_path}/run", f"ingest.input={json.dumps([str(pattern)])}", "ingest.vocab_size=300"]
        monkeypatch.setattr("sys.argv", ["jobs/ingest.py", "--config", str(SMALL), *overrides, *settings])
        with pytest.raises(SystemExit) as ended:
            job.main("ingest", run)
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert (ended.value.code, len(errors)) in ((0, 0), (1, 1))
        return errors[0] if errors else json.loads((tmp_path / "run/1_corpus/manifest.json").read_text())["stats"]

    monkeypatch.setattr(cluster, "connected", no_ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return run_job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def lines(num_lines: int = NUM_LINES) -> bytes:
    rows = ({"text": f"Line {number} says {number**9}.", "id": number} for number in range(num_lines))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_cut_file_stops_the_job_and_a_limit_lets_it_read_every_whole_line(folder: Path, ingest: Ingest) -> None:
    stored = gzip.compress(lines())
    (folder / "a.jsonl.gz").write_bytes(stored[: len(stored) // 2])
    (folder / "b.jsonl").write_bytes(lines(50))
    error = ingest(folder)
    assert isinstance(error, str)
    assert "1 input files cannot be read to their end: " in error
    assert "a.jsonl.gz from row 1" in error
    stats = ingest(folder, "ingest.max_damaged_files=1")
    assert isinstance(stats, dict)
    assert stats["files"]["damaged"] == 1
    assert NUM_LINES * 0.4 < stats["rows"] < NUM_LINES


def test_zeros_behind_a_gzip_lose_no_line(folder: Path, ingest: Ingest) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines(500)) + bytes(4096))
    stats = ingest(folder)
    assert isinstance(stats, dict)
    assert stats["documents"] == 500


def test_a_held_out_file_is_not_taken_for_one_to_train_on(folder: Path, ingest: Ingest) -> None:
    for number, name in enumerate(("train.jsonl", "en/train.jsonl", "pretrain.jsonl", "train/validation.jsonl")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps({"text": f"{name} {n * 10 + number}"}) + "\n" for n in range(10)))
    stats = ingest(folder / "**/train*.jsonl")
    assert isinstance(stats, dict)
    assert stats["documents"] == 20


def test_one_document_of_a_million_dashes_takes_seconds(folder: Path, ingest: Ingest) -> None:
    rows = [{"text": "-" * 900_000}, *({"text": f"Words, {number}."} for number in range(50))]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stats = ingest(folder)
    assert isinstance(stats, dict)
    assert stats["documents"] == 51


def test_files_of_a_cache_are_read_by_the_names_of_their_links(folder: Path, ingest: Ingest) -> None:
    (folder / "blobs").mkdir()
    (folder / "snapshot").mkdir()
    for number, data in enumerate((lines(100), gzip.compress(lines(200)))):
        (folder / f"blobs/{number:040x}").write_bytes(data)
    (folder / "snapshot/a.jsonl").symlink_to(folder / f"blobs/{0:040x}")
    (folder / "snapshot/b.jsonl.gz").symlink_to(folder / f"blobs/{1:040x}")
    stats = ingest(folder / "snapshot")
    assert isinstance(stats, dict)
    assert (stats["rows"], stats["documents"]) == (300, 200)


def test_a_damaged_table_is_one_line_with_its_name(folder: Path, ingest: Ingest) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), folder / "a.parquet")
    stored = (folder / "a.parquet").read_bytes()
    footer = int.from_bytes(stored[-8:-4], "little")
    (folder / "a.parquet").write_bytes(stored[: -8 - footer] + bytes(footer) + stored[-8:])
    error = ingest(folder)
    assert isinstance(error, str)
    assert f"{folder}/a.parquet from row 1 on" in error


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")
@pytest.mark.parametrize(
    ("pattern", "settings", "expected"),
    [
        ("mixed_suffix", (), {"rows": 100, "documents": 100}),
        ("globs/**/train*.jsonl", (), {"rows": 20}),
        ("gz_truncated", (), "a.jsonl.gz from row 986 on"),
        ("gz_truncated", ("ingest.max_damaged_files=1",), {"rows": 985 + 2000}),
        ("gz_trailing_zeros", (), {"rows": 100, "documents": 100}),
        ("damaged_parquet", (), "2 input files cannot be read to their end"),
        ("group_late", ("ingest.group_column=title", "ingest.split_by=document"), {"drops": {}}),
        ("group_empty", ("ingest.group_column=title",), {"drops": {}}),
        ("hidden", (), {"rows": 10}),
        ("brackets/[D_DATA]", (), {"rows": 10}),
        ("brackets/[D_DATA]/*.jsonl", (), {"rows": 10}),
        ("thai", (), {"rows": 64}),
    ],
)
def test_inputs_that_failed_are_right(
    ingest: Ingest, pattern: str, settings: tuple[str, ...], expected: dict[str, Any] | str
) -> None:
    result = ingest(CASES / pattern, *settings)
    if isinstance(expected, str):
        assert expected in result
    else:
        assert isinstance(result, dict), result
        assert {key: result[key] for key in expected} == expected
