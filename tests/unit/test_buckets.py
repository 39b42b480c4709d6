from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sbp_ray.buckets import bucket_writer, read_bucket

SCHEMA = pa.schema([("x", pa.int64())])


def test_a_bucket_comes_back_from_all_files_in_the_order_written(new_artifact) -> None:
    out = new_artifact("any")
    for name, chunks in (("a", [[5, 1, 4], [7]]), ("b", [[2]]), ("c", [[], [9, 3]])):
        with bucket_writer(out, name, SCHEMA) as writer:
            for chunk in chunks:
                writer.write(pa.table({"x": chunk}, schema=SCHEMA), np.array(chunk, np.int64) % 2)
            writer.finish({"chunks": len(chunks)})
    odd = read_bucket(out, ["a", "b", "c"], 1, SCHEMA)
    assert odd.column("x").to_pylist() == [5, 1, 7, 9, 3]
    assert odd.column("file").to_pylist() == [0, 0, 0, 2, 2]
    assert read_bucket(out, ["a", "b", "c"], 0, SCHEMA).column("x").to_pylist() == [4, 2]
    assert read_bucket(out, ["a"], 5, SCHEMA).num_rows == 0
    assert out.read_stats("c") == {"chunks": 2}


def test_a_large_chunk_keeps_its_order(new_artifact) -> None:
    out = new_artifact("any")
    with bucket_writer(out, "a", SCHEMA) as writer:
        writer.write(pa.table({"x": range(1000)}, schema=SCHEMA), np.arange(1000) % 3)
        writer.finish({})
    assert read_bucket(out, ["a"], 2, SCHEMA).column("x").to_pylist() == list(range(2, 1000, 3))


def test_a_writer_that_fails_leaves_nothing(new_artifact, tmp_path) -> None:
    out = new_artifact("any")
    with pytest.raises(KeyError), bucket_writer(out, "a", SCHEMA) as writer:
        writer.write(pa.table({"x": [1]}, schema=SCHEMA), np.array([0]))
        raise KeyError
    assert list((tmp_path / "any").iterdir()) == []


def test_a_file_is_opened_once_for_its_index_and_once_for_each_bucket_that_it_has_rows_of(
    new_artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 files, 100 buckets, 5 buckets in each file: 12 indexes and 60 pieces, not 1,200 files with both."""
    out = new_artifact("any")
    names = [f"step/{number}" for number in range(12)]
    for number, name in enumerate(names):
        with bucket_writer(out, name, SCHEMA) as writer:
            mine = np.arange(number, number + 5)
            writer.write(pa.table({"x": mine}, schema=SCHEMA), mine)
            writer.finish({})
    opened: list[str] = []
    open_file = pa.ipc.open_file
    monkeypatch.setattr(pa.ipc, "open_file", lambda stream: (opened.append("index"), open_file(stream))[1])
    read_message = pa.ipc.read_message
    monkeypatch.setattr(pa.ipc, "read_message", lambda data: (opened.append("piece"), read_message(data))[1])
    found = [read_bucket(out, names, bucket, SCHEMA).column("x").to_pylist() for bucket in range(100)]
    assert (opened.count("index"), opened.count("piece")) == (12, 60)
    assert [len(values) for values in found[:16]] == [1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5, 4, 3, 2, 1]
    assert all(values == [bucket] * len(values) for bucket, values in enumerate(found))


def test_a_file_that_is_written_again_is_read_anew(new_artifact) -> None:
    out = new_artifact("any")
    for values in ([1, 2, 3], [4, 5]):
        with bucket_writer(out, "a", SCHEMA) as writer:
            writer.write(pa.table({"x": values}, schema=SCHEMA), np.zeros(len(values), int))
            writer.finish({})
        assert read_bucket(out, ["a"], 0, SCHEMA).column("x").to_pylist() == values
