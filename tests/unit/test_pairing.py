"""The parts that pairing is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sbp_ray.doc_ids import id_numbers, ids_to_numpy, places_of, shards_of, to_column
from sbp_ray.pairing import guide
from sbp_ray.pairing.guide import degree_counts, degree_summary, in_slots, threshold_rows, what_if_slots
from sbp_ray.schema import DOC_ID, shard_of


def random_ids(number: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(16) for _ in range(number)]


def test_ids_come_back_from_numpy_and_their_halves_sort_alike() -> None:
    ids = [*random_ids(50), bytes(16), b"\xff" * 16, b"zeros at the end"[:4] + bytes(12)]
    column = pa.array(ids, DOC_ID)
    halves_N2 = id_numbers(ids_to_numpy(column))
    assert to_column(ids_to_numpy(column)).to_pylist() == ids
    assert [int(high) << 64 | int(low) for high, low in halves_N2] == [int.from_bytes(one, "big") for one in ids]
    assert ids_to_numpy(column[3:5]).tobytes() == b"".join(ids[3:5])
    assert ids_to_numpy(pa.chunked_array([column[3:5], column[:1]])).tobytes() == b"".join([*ids[3:5], ids[0]])
    assert to_column(ids_to_numpy(column[:0])).to_pylist() == []


def test_ids_are_found_among_others() -> None:
    ids = ids_to_numpy(pa.array(random_ids(100), DOC_ID))
    wanted = np.concatenate([ids[[7, 99, 7]], np.array([b"not among them"], "S16")])
    assert places_of(wanted, ids).tolist() == [7, 99, 7, -1]
    assert places_of(wanted, ids[:0]).tolist() == [-1] * 4
    assert places_of(wanted[:0], ids).tolist() == []


@pytest.mark.parametrize("num_shards", [1, 3, 4850])
def test_a_document_lies_in_the_same_shard_for_all(num_shards: int) -> None:
    ids = random_ids(100)
    found = shards_of(ids_to_numpy(pa.array(ids, DOC_ID)), num_shards)
    assert found.tolist() == [shard_of(one, num_shards) for one in ids]


def test_documents_are_followed_below_the_threshold_as_many_as_wanted() -> None:
    assert what_if_slots(20_000) == what_if_slots(0) == 65_536
    assert what_if_slots(40_000) == 32_768
    assert what_if_slots(582_000_000) == 3  # 26,600 documents; two slots would be 17,800
    ids = to_column(np.random.default_rng(0).integers(0, 2**64, (100_000, 2), np.uint64))
    assert in_slots(ids, what_if_slots(100_000)).sum() == pytest.approx(20_000, rel=0.03)
    assert in_slots(ids, 65_536).all()


def test_estimates_are_scaled_from_the_documents_that_were_followed() -> None:
    stats: dict[str, Any] = {
        "near_duplicate_update": {},
        "documents": 1000, "what_if_documents": 100, "listed": {"0.60": 300, "0.50": 900}, "last": {"0.50": 250},
        "near_duplicate_jaccard": {"0.60": 30}, "near_duplicate_containment": {"0.50": 30},
        "nearest": {"0.60": 20, "0.50": 30}, "within_cap": {"0.60": 40, "0.50": 85},
    }  # fmt: skip
    low, high = threshold_rows(stats)
    assert high == {
        "min_cosine": 0.6, "listed": 300, "duplicate_share": 0.1, "documents_share": 0.2, "pairs": 400, "full_share": 0
    }  # fmt: skip
    assert low == {
        "min_cosine": 0.5, "listed": 1200, "duplicate_share": 0.05, "documents_share": 0.5, "pairs": 1250,
        "full_share": 0.25,
    }  # fmt: skip


def test_degrees_are_summed_up_with_those_that_are_zero() -> None:
    counts = degree_counts(np.array([0, 3, 1, 3, 700]))
    assert counts == {"0": 1, "1": 1, "3": 2, "700": 1}
    assert degree_summary(counts, 10) == {
        "mean": 70.7, "p50": 0, "p90": 3, "p99": 700, "max": 700, "histogram": {"0": 6, "1": 1, "2": 2, "512": 1},
    }  # fmt: skip
    assert degree_summary({}, 0)["max"] == 0


def test_a_few_samples_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "SAMPLES_PER_BAND", 1)
    ids = pa.array(random_ids(2000), DOC_ID)
    columns = {name: np.full(1999, 0.62, np.float32) for name in ("cosine", "jaccard", "containment")}
    none = np.zeros(1999, np.int8)
    [one] = guide.draw_samples(pa.table({"d1_id": ids[:-1], "d2_id": ids[1:]}), columns, none)
    turned = pa.table({"d1_id": ids[1:], "d2_id": ids[:-1]})
    [same] = guide.draw_samples(turned.take(np.arange(1999)[::-1]), columns, none)  # listed by the other
    assert one == same
    assert {one["d1_id"], one["d2_id"]} < {one.hex() for one in random_ids(2000)}
    assert one["d1_id"] < one["d2_id"]
