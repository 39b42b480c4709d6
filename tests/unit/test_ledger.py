"""What is done of a shard, and how its segments become its part."""

import json
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sbp_ray import schema
from sbp_ray.artifacts import Artifact
from sbp_ray.config import SynthesizeConfig
from sbp_ray.generation.d1 import Sources, start_order
from sbp_ray.generation.ledger import Ledger, ledger_name, num_done, read_ledger, segments_folder
from sbp_ray.generation.merging import merge_shard, merged_name
from sbp_ray.text.minhash import document_signature

TEXTS = [" ".join(f"{word}{number}" for word in range(40)) for number in range(6)]
SOURCES = Sources(
    pa.table(
        {
            "doc_id": pa.array([f"{n:016d}".encode() for n in range(3)], schema.DOC_ID),
            "input_ids": [[100 + n] * 20 for n in range(3)],
        }
    )
)
SIGNED = pa.schema([("doc_id", schema.DOC_ID), ("signature", pa.binary(256))])


def row(number: int, text: str | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A finished sample of two for each d1."""
    common = {"number": number, "d1_id": SOURCES[number // 2].doc_id, "sample": number % 2, "reason": reason}
    common |= {"num_generated": 40, "num_prompt": 10, "num_cached": 5}
    if reason:
        return common | more
    text = TEXTS[number] if text is None else text
    return common | {
        "signature": document_signature(text, 13)[0].tobytes(),
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


def test_a_restored_ledger_names_what_is_missing(new_artifact: Any) -> None:
    out = new_artifact("out")
    Ledger(out, 3, 20).commit([row(5), row(0), row(3)])
    again = Ledger(out, 3, 20)
    assert again.num_done == 3
    assert again.missing(range(7)) == [1, 2, 4, 6]
    assert num_done(out, [1, 3]) == 3


def test_a_segment_without_its_ledger_counts(new_artifact: Any) -> None:
    """The process died between the two writes."""
    out = new_artifact("out")
    ledger = Ledger(out, 0, 6)
    ledger.commit([row(1)])
    before = out.read_bytes(ledger_name(0))
    ledger.commit([row(4)])
    out.write_bytes(ledger_name(0), before)
    assert Ledger(out, 0, 6).missing(range(6)) == [0, 2, 3, 5]
    out.fs.delete_file(out.path(ledger_name(0)))
    assert Ledger(out, 0, 6).missing(range(6)) == [0, 2, 3, 5]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no archive at all"])
def test_a_ledger_that_cannot_be_read_is_restored_from_its_segments(new_artifact: Any, content: bytes) -> None:
    out = new_artifact("out")
    ledger = Ledger(out, 0, 6)
    ledger.commit([row(1), row(4, reason="refused_by_engine", detail="no")])
    ledger.commit([row(0)])
    out.write_bytes(ledger_name(0), content)
    again = Ledger(out, 0, 6)
    assert again.missing(range(6)) == [2, 3, 5]
    assert again.num_bad == 1
    assert num_done(out, [0]) == 3


def test_bad_samples_are_counted_once_however_often_they_were_written(new_artifact: Any) -> None:
    out = new_artifact("out")
    bad = [row(number, reason="prompt_too_long", detail="") for number in (1, 2)]
    for rows in (bad, [bad[1], row(3)], [row(0)]):
        Ledger(out, 0, 6).commit(rows)
    assert Ledger(out, 0, 6).num_bad == read_ledger(out, 0).num_bad == 2


def test_a_merged_shard_holds_each_sample_once_in_order_whatever_the_segments(new_artifact: Any) -> None:
    """Two workers held the shard: 2 and 3 were drawn twice, and the first segment's are taken."""
    out, other = new_artifact("out"), new_artifact("other")
    ledger = Ledger(out, 0, 6)
    for segment in ([row(0), row(3)], [row(2), row(1), row(3, "drawn again by the other one")], [row(5), row(4)]):
        ledger.commit(segment)
    stats = merge_shard(CFG, 0, SOURCES, out)
    rows = out.read_table(merged_name(0)).to_pylist()
    assert [r["text"] for r in rows] == TEXTS
    assert (stats["samples"], stats["documents"], stats["drops"]) == (6, 6, {})
    assert stats["tokens_generated"] == 240
    assert out.read_stats(merged_name(0)) == stats
    assert out.files(segments_folder(0)) == []
    assert not out.exists(ledger_name(0))

    Ledger(other, 0, 6).commit([row(number) for number in range(6)])
    merge_shard(CFG, 0, SOURCES, other)
    assert other.read_table(merged_name(0)).equals(out.read_table(merged_name(0)))


def test_drops_are_counted_and_bad_samples_lie_in_quarantine(new_artifact: Any) -> None:
    out = new_artifact("out")
    bad = row(4, reason="refused_by_engine", detail="no")
    Ledger(out, 0, 6).commit([row(0), row(1), row(2, reason="looping"), row(3, reason="contaminated"), bad, row(5)])
    stats = merge_shard(CFG, 0, SOURCES, out)
    assert stats["drops"] == {"looping": 1, "contaminated": 1, "refused_by_engine": 1}
    [line] = out.read_bytes("quarantine/part-00000.jsonl").decode().splitlines()
    assert json.loads(line) == {
        "d1_id": b"0000000000000002".hex(),
        "sample": 0,
        "reason": "refused_by_engine",
        "detail": "no",
    }


def test_whoever_merges_second_finds_it_done(new_artifact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers hold the shard. The second lists the segments, and the first ends before it has read them."""
    out = new_artifact("out")
    Ledger(out, 0, 6).commit([row(number) for number in range(6)])
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


def test_only_the_last_d1_are_started_longest_first() -> None:
    assert start_order([5, 1, 3, 9, 2], tail=3) == [0, 1, 3, 2, 4]
    assert start_order([5, 1], tail=8) == [0, 1]


def test_a_bitmap_takes_a_bit_for_each_sample(new_artifact: Any) -> None:
    out = new_artifact("out")
    Ledger(out, 0, 80_000).commit([row(0)])
    bits = read_ledger(out, 0).bits
    assert bits.nbytes == 10_000
    assert int(np.unpackbits(bits).sum()) == 1
