"""What is done of a shard, and how its segments become its part."""

import json
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pytest
from merged_shards import sign

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.config import SynthesizeConfig
from sbp_ray.generation.d1 import Sources, start_order
from sbp_ray.generation.merging import merge_shard, merged_name
from sbp_ray.generation.segments import DoneSamples, count_done, list_segments

LISTS = pa.list_(pa.int32())
TEXTS = [" ".join(f"{word}{number}" for word in range(40)) for number in range(6)]
SOURCES = Sources(
    pa.table(
        {
            "doc_id": pa.array([f"{n:016d}".encode() for n in range(3)], schema.DOC_ID),
            "input_ids": [[100 + n] * 20 for n in range(3)],
        }
    )
)


def row(number: int, text: str | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A finished sample of two for each d1."""
    common = {"number": number, "d1_id": SOURCES[number // 2].doc_id, "sample": number % 2, "reason": reason}
    common |= {"num_generated": 40, "num_prompt": 10, "num_cached": 5}
    if reason:
        return common | more
    text = TEXTS[number] if text is None else text
    return common | {
        "signature": sign(text),
        "doc_id": blake2b(str(number).encode(), digest_size=16).digest(),
        "text": text,
        "input_ids": list(range(40)),
        "finish_reason": "stop",
        "synthesizer": "v",
        "seed": number,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 50,
        **more,
    }


CFG = SynthesizeConfig(samples_per_document=2, min_tokens=2)


def test_what_is_missing_is_known_from_the_segments_alone(new_artifact: Any) -> None:
    out = new_artifact("out")
    DoneSamples(out, 3, 20).commit([row(5), row(0), row(3)])
    again = DoneSamples(out, 3, 20)
    assert again.missing(0, 7) == [1, 2, 4, 6]
    assert again.missing(4, 6) == [4]
    assert count_done(out, [1, 3]) == 3


def test_bad_samples_are_counted_once_however_often_they_were_written(new_artifact: Any) -> None:
    out = new_artifact("out")
    bad = [row(number, reason="prompt_too_long", detail="") for number in (1, 2)]
    for rows in (bad, [bad[1], row(3)], [row(0)]):
        DoneSamples(out, 0, 6).commit(rows)
    assert DoneSamples(out, 0, 6).num_bad == 2
    assert count_done(out, [0]) == 4


def test_a_merged_shard_holds_each_sample_once_in_order_whatever_the_segments(new_artifact: Any) -> None:
    """Two workers held the shard: 3 was written twice, and the first segment's is taken."""
    out, other = new_artifact("out"), new_artifact("other")
    done = DoneSamples(out, 0, 6)
    for segment in ([row(0), row(3)], [row(2), row(1), row(3, "written again by the other worker")], [row(5), row(4)]):
        done.commit(segment)
    stats = merge_shard(CFG, 0, SOURCES, out)
    rows = out.read_table(merged_name(0)).to_pylist()
    assert [r["text"] for r in rows] == TEXTS
    assert (stats["samples"], stats["documents"], stats["drops"]) == (6, 6, {})
    assert stats["tokens_generated"] == 240
    assert out.read_stats(merged_name(0)) == stats
    assert list_segments(out, 0) == []

    DoneSamples(other, 0, 6).commit([row(number) for number in range(6)])
    merge_shard(CFG, 0, SOURCES, other)
    assert other.read_table(merged_name(0)).equals(out.read_table(merged_name(0)))


def test_drops_are_counted_and_bad_samples_lie_in_quarantine(new_artifact: Any) -> None:
    out = new_artifact("out")
    bad = row(4, reason="refused_by_engine", detail="no")
    DoneSamples(out, 0, 6).commit(
        [row(0), row(1), row(2, reason="looping"), row(3, reason="contaminated"), bad, row(5)]
    )
    stats = merge_shard(CFG, 0, SOURCES, out)
    assert stats["drops"] == {"looping": 1, "contaminated": 1, "refused_by_engine": 1}
    [line] = out.read_bytes("quarantine/part-00000.jsonl").decode().splitlines()
    assert json.loads(line) == {
        "d1_id": b"0000000000000002".hex(),
        "sample": 0,
        "reason": "refused_by_engine",
        "detail": "no",
    }


def test_a_shard_that_gives_no_d1_is_merged_into_no_rows(new_artifact: Any) -> None:
    out, none = new_artifact("out"), pa.table({"doc_id": pa.array([], schema.DOC_ID), "input_ids": pa.array([], LISTS)})
    stats = merge_shard(CFG, 0, Sources(none), out)
    merged = out.read_table(merged_name(0))
    assert (len(merged), merged.column_names) == (0, schema.SYNTHETIC.names)
    assert out.read_stats(merged_name(0)) == stats
    assert (stats["d1"], stats["samples"], stats["documents"], stats["drops"]) == (0, 0, 0, {})
    assert merge_shard(CFG, 0, Sources(none), out) == stats


def test_whoever_merges_second_finds_it_done(new_artifact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers hold the shard. The second lists the segments, and the first ends before it has read them."""
    out = new_artifact("out")
    DoneSamples(out, 0, 6).commit([row(number) for number in range(6)])
    read_table, first = Artifact.read_table, []

    def interrupted(self: Artifact, name: str, columns: list[str] | None = None) -> pa.Table:
        if not first:
            first.append(name)
            first.append(merge_shard(CFG, 0, SOURCES, out))
        return read_table(self, name, columns)

    monkeypatch.setattr(Artifact, "read_table", interrupted)
    assert merge_shard(CFG, 0, SOURCES, out) == first[1]
    before = out.read_bytes(merged_name(0))
    assert merge_shard(CFG, 0, SOURCES, out) == first[1]
    assert out.read_bytes(merged_name(0)) == before


def test_only_the_last_d1_are_requested_longest_first() -> None:
    assert start_order([5, 1, 3, 9, 2], tail=3) == [0, 1, 3, 2, 4]
    assert start_order([5, 1], tail=8) == [0, 1]
