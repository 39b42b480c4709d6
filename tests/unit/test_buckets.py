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
