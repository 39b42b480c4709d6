from __future__ import annotations

import errno
import gzip
import hashlib
import json
import threading
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from worked_on import WorkedOn

from sbp_ray import file_formats
from sbp_ray.artifacts import Artifact
from sbp_ray.buckets import read_bucket
from sbp_ray.config import DecontaminateConfig, IngestConfig
from sbp_ray.doc_ids import id_numbers, ids_to_numpy
from sbp_ray.errors import SbpError
from sbp_ray.ingestion import choosing, parsing, records, units
from sbp_ray.ingestion.choosing import HASHES_KEPT, estimate_distinct, text_pieces, train_range
from sbp_ray.ingestion.data_card import examples_of_bad_rows
from sbp_ray.ingestion.parsing import FileParser
from sbp_ray.schema import DOC_ID, DOCUMENT, SPLITS, shard_of
from sbp_ray.shards import splits_of
from sbp_ray.stages import ingest
from sbp_ray.text.hashing import hash64, id_ranks
from sbp_ray.text.tokenizer import encode_texts, load_tokenizer, special_ids

pytestmark = pytest.mark.usefixtures("in_process")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)


def articles(num_articles: int, num_each: int = 3) -> list[dict[str, Any]]:
    return [
        {"text": f"Paragraph {p} about subject {a}.", "title": f"Subject {a}"}
        for a in range(num_articles)
        for p in range(num_each)
    ]


def config(path: Path, **changes: Any) -> IngestConfig:
    settings = {"input": (str(path),), "group_column": "title", "num_shards": 3, "vocab_size": 300}
    settings |= {"development_share": 0.0} | changes
    return IngestConfig(**settings)


def ingest_documents(cfg: IngestConfig, *, out: Artifact, **decontaminate: Any) -> dict[str, Any]:
    return ingest.ingest_documents(cfg, decontaminate=DecontaminateConfig(**decontaminate), out=out)


def rows_of(out: Artifact, split: str) -> list[dict[str, Any]]:
    return [row for name in out.files(split, ".parquet") for row in out.read_table(name).to_pylist()]


def contents(out: Artifact) -> dict[str, bytes]:
    root = Path(out.path())
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_documents_lie_in_the_shard_of_their_id_sorted_and_tokenised(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", articles(20))
    out = new_artifact("corpus")
    stats = ingest_documents(config(tmp_path / "in.jsonl", development_share=0.2), out=out)
    tokenizer = load_tokenizer(out.path("tokenizer"))
    num_tokens = 0
    for split in SPLITS:
        assert len(out.files(split)) == 3
        for shard, name in enumerate(out.files(split)):
            table = out.read_table(name)
            assert table.schema.remove_metadata() == DOCUMENT
            ids = table.column("doc_id").to_pylist()
            assert ids == sorted(ids)
            for row in table.to_pylist():
                assert row["doc_id"] == hashlib.blake2b(row["text"].encode(), digest_size=16).digest()
                assert shard_of(row["doc_id"], 3) == shard
                assert row["input_ids"] == encode_texts(tokenizer, [row["text"]])[0]
                assert tokenizer.decode(row["input_ids"]) == row["text"]
                num_tokens += len(row["input_ids"])
    assert (stats["rows"], stats["documents"], stats["tokens"], stats["drops"]) == (60, 60, num_tokens, {})
    assert not out.exists("scratch")
    assert not out.exists("quarantine")


def test_an_article_stays_on_one_side(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", articles(40))
    stats = ingest_documents(config(tmp_path / "in.jsonl", validation_share=0.3), out=(out := new_artifact("corpus")))
    groups = {split: {row["group"] for row in rows_of(out, split)} for split in SPLITS}
    assert groups["train"].isdisjoint(groups["validation"])
    held_out = {f"Subject {a}" for a in range(40) if hash64("split", 0, f"Subject {a}") < 0.3 * 2**64}
    assert groups["validation"] == held_out
    assert stats["validation"]["groups"] == len(held_out)
    assert stats["train"]["groups"] == 40 - len(held_out)
    assert stats["validation"]["documents"] == 3 * len(held_out)


def test_split_by_document_holds_out_documents_of_groups_that_are_read(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", articles(4, num_each=100))
    cfg = config(tmp_path / "in.jsonl", split_by="document", validation_share=0.25)
    stats = ingest_documents(cfg, out=(out := new_artifact("corpus")))
    held_out = {row["doc_id"] for row in rows_of(out, "validation")}
    texts = [row["text"] for row in articles(4, num_each=100)]
    ids = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    assert held_out == {doc_id for doc_id in ids if hash64("split", 0, doc_id.hex()) < 2**64 // 4}
    assert 60 < len(held_out) < 140
    assert (stats["train"]["groups"], stats["validation"]["groups"]) == (4, 4)


def test_three_splits_are_disjoint_and_the_held_out_one_is_the_same_with_and_without_the_third(
    tmp_path: Path, new_artifact
) -> None:
    write_rows(tmp_path / "in.jsonl", articles(40))
    two, three = new_artifact("corpus-2"), new_artifact("corpus-3")
    ingest_documents(config(tmp_path / "in.jsonl", validation_share=0.2), out=two)
    shares = {"validation_share": 0.2, "development_share": 0.2}
    stats = ingest_documents(config(tmp_path / "in.jsonl", **shares), out=three)
    highest = {f"Subject {a}" for a in range(40) if hash64("split", 0, f"Subject {a}") >= 0.8 * 2**64}
    groups = {split: {row["group"] for row in rows_of(three, split)} for split in SPLITS}
    assert groups["development"] == highest
    assert groups["train"] | highest == {row["group"] for row in rows_of(two, "train")}
    assert rows_of(three, "validation") != []
    assert groups["validation"] == {row["group"] for row in rows_of(two, "validation")}
    assert stats["development"]["groups"] == len(highest)
    assert (splits_of(two), splits_of(three)) == (("train", "validation"), SPLITS)


def test_of_three_articles_each_split_has_one_whatever_the_shares(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", articles(3))
    shares = {"validation_share": 1e-9, "development_share": 1e-9}
    stats = ingest_documents(config(tmp_path / "in.jsonl", **shares), out=new_artifact("corpus"))
    assert [stats[split]["documents"] for split in SPLITS] == [3, 3, 3]


def test_without_a_group_column_each_document_is_its_own_group(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", articles(5))
    ingest_documents(config(tmp_path / "in.jsonl", group_column=None), out=(out := new_artifact("corpus")))
    assert all(row["group"] == row["doc_id"].hex() for split in SPLITS for row in rows_of(out, split))


def test_a_capped_train_split_is_a_part_of_a_larger_one_and_validation_stays(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", articles(60))
    found: dict[int | None, set[bytes]] = {}
    for cap in (20, 50, None):
        out = new_artifact(f"corpus-{cap}")
        stats = ingest_documents(config(tmp_path / "in.jsonl", max_train_documents=cap), out=out)
        found[cap] = {row["doc_id"] for row in rows_of(out, "train")}
        assert stats["train"]["documents"] == len(found[cap])
        assert stats["drops"].get("above_max_train_documents", 0) == 180 - stats["documents"]
        held_out = {row["doc_id"] for row in rows_of(out, "validation")}
        assert held_out == {row["doc_id"] for row in rows_of(new_artifact("corpus-20"), "validation")}
        assert not out.exists("scratch")
    everything = found[None]
    ids = pa.array([*everything], DOC_ID)
    slots = [rank >> 48 for rank in id_ranks("max_documents", 0, id_numbers(ids_to_numpy(ids))).tolist()]
    assert len({*slots}) == len(everything)  # else documents of one slot would go together
    ranked = [doc_id for _, doc_id in sorted(zip(slots, ids.to_pylist(), strict=True))]
    assert found[20] == set(ranked[:20])
    assert found[50] == set(ranked[:50])


def test_the_tokenizer_of_a_capped_corpus_has_read_only_what_was_kept(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", articles(60))
    stats = ingest_documents(config(tmp_path / "in.jsonl", max_train_documents=20), out=(out := new_artifact("corpus")))
    kept = sum(len(row["text"]) for row in rows_of(out, "train"))
    assert stats["tokenizer"]["trained_on_chars"] == kept


@pytest.mark.parametrize(
    ("share", "low", "high", "limit"),
    [
        (0.5, 10, 2**64 - 1, 2**63),
        (0.0, 10, 20, 0),  # nothing is held out
        (0.5, 10, 10, 0),  # one group: it is needed for training
        (1e-12, 2**63, 2**63 + 5, 2**63 + 1),  # the smallest hash, though above the share
        (1.0, 10, 2**63, 2**63),  # all but the largest hash
    ],
)
def test_both_splits_have_a_group_if_there_are_two(share: float, low: int, high: int, limit: int) -> None:
    assert train_range(share, 0.0, low, high) == (limit, 2**64 - 1)


@pytest.mark.parametrize(
    ("share", "low", "high", "last"),
    [
        (0.25, 10, 2**64 - 1, 3 * 2**62),
        (0.25, 10, 10, 2**64 - 1),  # one group: it is needed for training
        (1e-12, 10, 2**63, 2**63 - 1),  # the largest hash, though below what the share leaves
    ],
)
def test_the_development_split_is_cut_off_at_the_other_end(share: float, low: int, high: int, last: int) -> None:
    assert train_range(0.0, share, low, high) == (0, last)


@pytest.mark.parametrize("share", [1e-9, 1.0])
def test_two_articles_make_two_splits_whatever_the_share(tmp_path: Path, new_artifact, share: float) -> None:
    write_rows(tmp_path / "in.jsonl", articles(2))
    stats = ingest_documents(config(tmp_path / "in.jsonl", validation_share=share), out=new_artifact("corpus"))
    assert (stats["train"]["documents"], stats["validation"]["documents"]) == (3, 3)


def test_the_first_of_equal_texts_stays_even_across_articles(tmp_path: Path, new_artifact) -> None:
    rows = [*articles(6), {"text": "Paragraph 0 about subject 0.", "title": "Subject 5"}]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", rows[:2])
    stats = ingest_documents(config(tmp_path, validation_share=0.5), out=(out := new_artifact("corpus")))
    rows = [row for split in SPLITS for row in rows_of(out, split)]
    assert len(rows) == len({row["doc_id"] for row in rows}) == 18
    assert [row["group"] for row in rows if row["text"] == "Paragraph 0 about subject 0."] == ["Subject 0"]
    assert stats["drops"] == {"exact_duplicate": 3}


def test_bad_rows_are_quarantined_with_file_line_and_reason(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "a.jsonl", articles(2))
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b'{"text": "\xff"}\n{"text": "' + b"x" * 201 + b'"}\n')
    out = new_artifact("corpus")
    stats = ingest_documents(config(tmp_path, max_chars=200, max_bad_share=0.5), out=out)
    assert stats["drops"] == {"not_utf8": 1, "too_long": 1}
    [name] = out.files("quarantine")
    assert [json.loads(line) for line in out.read_bytes(name).splitlines()] == [
        {"file": str(tmp_path / "a.jsonl"), "line": 7, "reason": "not_utf8"},
        {"file": str(tmp_path / "a.jsonl"), "line": 8, "reason": "too_long"},
    ]
    assert stats["rows"] == stats["documents"] + sum(stats["drops"].values())


def test_damaged_files_stop_the_stage_unless_so_many_may_be_and_their_whole_lines_count(
    tmp_path: Path, new_artifact
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_rows(folder / "a.jsonl", articles(20))
    lines = [{"text": f"Line {number} of {number**9}.", "title": "T"} for number in range(20_000)]
    write_rows(folder / "b.jsonl.gz", lines)
    stored = (folder / "b.jsonl.gz").read_bytes()
    (folder / "b.jsonl.gz").write_bytes(stored[: len(stored) // 2])
    num_whole = zlib.decompressobj(31).decompress(stored[: len(stored) // 2]).count(b"\n")
    (folder / "c.parquet").write_bytes(b"PAR1 and no footer")
    out = new_artifact("corpus")
    with pytest.raises(SbpError) as error:
        ingest_documents(config(folder, max_damaged_files=1), out=out)
    place = f"{folder}/b.jsonl.gz from row {num_whole + 1:,} on (ends before its compressed data does; 0 bytes unread)"
    assert str(error.value).startswith(f"2 input files cannot be read to their end: {place}, {folder}/c.parquet from")
    assert "let ingest.max_damaged_files be more than 1, and use --redo ingest" in str(error.value)
    stats = ingest_documents(config(folder, max_damaged_files=2), out=out)
    assert stats["rows"] == stats["documents"] == 60 + num_whole
    assert stats["files"] == {"read": 3, "skipped": {}, "damaged": 2, "bytes_unread": 18}
    [name] = out.files("quarantine")
    told = [json.loads(line) for line in out.read_bytes(name).splitlines()]
    assert [(Path(entry["file"]).name, entry["line"], entry["reason"]) for entry in told] == [
        ("b.jsonl.gz", num_whole + 1, "damaged_file"),
        ("c.parquet", 1, "damaged_file"),
    ]


def test_copies_that_look_the_same_are_one_document(tmp_path: Path, new_artifact) -> None:
    texts = [
        "One é.\nTwo.",
        "One é. \nTwo.\n\n",
        "\nOne é.\r\nTwo.",
        "One e\u0301.\nTwo.",
        "One é. Two.",
        "one é.\nTwo.",
    ]
    write_rows(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    out = new_artifact("corpus")
    cfg = config(tmp_path / "in.jsonl", group_column=None, max_shared_with_train=1.0)  # the last two are near-copies
    stats = ingest_documents(cfg, out=out)
    assert stats["drops"] == {"exact_duplicate": 3}
    kept = {row["text"] for split in SPLITS for row in rows_of(out, split)}
    assert kept == {texts[0], texts[4], texts[5]}


def test_what_lies_in_a_folder_beside_the_input_is_counted(tmp_path: Path, new_artifact) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_rows(folder / "a.jsonl", articles(3))
    for name in ("notes.md", "more.md", "_SUCCESS", ".a.jsonl.crc", "COPYING"):
        (folder / name).write_text("x")
    stats = ingest_documents(config(folder), out=new_artifact("corpus"))
    skipped = {".md": 2, "hidden": 2, "without a suffix": 1}
    assert stats["files"] == {"read": 1, "skipped": skipped, "damaged": 0, "bytes_unread": 0}


def test_so_few_texts_are_tokenised_together_that_they_fit_in_memory(new_artifact) -> None:
    texts = ["a" * 100, "b" * 90, "é" * 30, "d" * 500, "e", "f"]
    assert [(start, len(piece)) for start, piece in text_pieces(pa.table({"text": texts}))] == [(0, 6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "PIECE_BYTES", 200)
        pieces = [*text_pieces(pa.table({"text": texts}))]
        assert pieces == [(0, texts[:2]), (2, texts[2:3]), (3, texts[3:4]), (4, texts[4:])]
        patch.setattr(choosing, "PIECE_ROWS", 1)
        assert [piece for _, piece in text_pieces(pa.table({"text": texts}))] == [[text] for text in texts]
        assert [*text_pieces(pa.table({"text": pa.array([], pa.large_string())}))] == []


def test_any_row_can_be_the_first_with_a_text_or_a_group(tmp_path: Path, new_artifact) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    nulls: list[dict[str, Any]] = [{"text": None, "id": number} for number in range(1001)]
    late: list[dict[str, Any]] = [{"text": "no group"}, *articles(500)]
    write_rows(folder / "a.jsonl", [*nulls, *late])
    stats = ingest_documents(config(folder / "a.jsonl", max_bad_share=0.5), out=new_artifact("one"))
    assert (stats["documents"], stats["drops"]) == (1501, {"no_text": 1001})
    write_rows(folder / "b.jsonl", nulls[:10])
    stats = ingest_documents(config(folder, max_bad_share=0.5), out=new_artifact("two"))
    assert stats["drops"] == {"no_text": 1011}


def test_the_wrong_column_is_told_before_a_large_input_is_read(
    tmp_path: Path, new_artifact, caplog: pytest.LogCaptureFixture, in_process: WorkedOn
) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, [{"body": "x"}] * 1000)
    in_process.interrupt_after(0)
    with pytest.raises(KeyboardInterrupt):
        ingest_documents(config(path, group_column=None), out=new_artifact("corpus"))
    assert f"{path}: no text in column 'text' so far; the columns are body" in caplog.text


def test_what_was_dropped_has_three_examples_of_each_reason(tmp_path: Path, new_artifact) -> None:
    copies = [{"text": f"The same,\n{number}." + " " * copy} for number in range(2) for copy in range(4)]
    leaked = [{"text": f"Asked word for word {number}, and more."} for number in range(4)]
    write_rows(tmp_path / "a.jsonl", [*copies, *leaked, *({"text": text} for text in ("", "", None, "", ""))])
    write_rows(tmp_path / "eval.jsonl", [{"question": "Asked word for word"}])
    stats = ingest_documents(
        config(tmp_path / "a.jsonl", group_column=None, num_shards=2, validation_share=0.0, max_bad_share=0.5),
        out=new_artifact("corpus"),
        evaluation_sets=(str(tmp_path / "eval.jsonl"),),
        ngram_words=4,
    )
    assert stats["drops"] == {"exact_duplicate": 6, "contaminated": 4, "empty": 4, "no_text": 1}
    found = {reason: sorted(examples) for reason, examples in stats["examples"].items()}
    assert found["empty"] == [f"{tmp_path}/a.jsonl:{line}" for line in (13, 14, 16)]
    assert found["no_text"] == [f"{tmp_path}/a.jsonl:15"]
    assert len(found["exact_duplicate"]) == len(found["contaminated"]) == 3
    assert set(found["exact_duplicate"]) <= {"The same, 0.", "The same, 1."}
    assert set(found["contaminated"]) < {row["text"] for row in leaked}


def test_a_file_without_the_columns_says_what_it_holds(tmp_path: Path, new_artifact) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, [{"text": None, "id": 1}, {"text": ["x"], "id": 2}])
    with pytest.raises(SbpError) as error:
        ingest_documents(config(path, group_column=None), out=new_artifact("one"))
    held = "which holds null, a list: set ingest.text_column to one of id"
    assert str(error.value) == f"{path}: no text in column 'text', {held}"
    write_rows(path, [{"text": ["x"]}])
    with pytest.raises(SbpError, match=r"'text', which holds a list: give rows in which it is a string$"):
        ingest_documents(config(path, group_column=None), out=new_artifact("none"))
    write_rows(path, [{"text": "x", "id": 1}, {"text": "y", "url": 2}])
    with pytest.raises(SbpError) as error:
        ingest_documents(config(path), out=new_artifact("two"))
    assert str(error.value) == (
        f"{path}: no column 'title': set ingest.group_column to one of text, id, url, or to null"
    )


def test_a_file_in_parts_has_the_columns_that_any_part_has(
    tmp_path: Path, new_artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_PART_BYTES", 300)
    path = tmp_path / "a.jsonl"
    write_rows(path, [*articles(3), *({"text": f"Without a title: {number}"} for number in range(30))])
    stats = ingest_documents(config(path), out=new_artifact("corpus"))
    assert stats["documents"] == 39


def test_a_file_read_in_parts_makes_the_same_corpus_and_its_bad_lines_can_be_found(
    tmp_path: Path, new_artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, [*articles(6), {"text": 1}, *articles(8)])
    whole, parts = new_artifact("whole"), new_artifact("parts")
    expected = ingest_documents(config(path, max_bad_share=0.5), out=whole)
    monkeypatch.setattr(units, "_PART_BYTES", 300)
    stats = ingest_documents(config(path, max_bad_share=0.5), out=parts)
    assert {**stats, "examples": expected["examples"]} == expected  # lines are counted from where their part begins
    for split in SPLITS:
        assert rows_of(parts, split) == rows_of(whole, split)
    [name] = parts.files("quarantine")
    assert name != "quarantine/part-00000.jsonl"  # of another part than the first
    entry = json.loads(parts.read_bytes(name))
    part = path.read_bytes()[entry["from_byte"] - 1 :].split(b"\n", 1)[1]
    assert json.loads(part.splitlines()[entry["line"] - 1]) == {"text": 1}


def test_too_large_a_share_of_bad_rows_stops_the_stage(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", [*articles(3), {"text": ""}, {"text": 1}, {"text": 2}])
    ingest_documents(config(tmp_path / "in.jsonl", max_bad_share=3 / 12), out=new_artifact("enough"))
    out = new_artifact("corpus")
    with pytest.raises(SbpError) as error:
        ingest_documents(config(tmp_path / "in.jsonl", max_bad_share=0.2), out=out)
    assert str(error.value).startswith("3 of 12 input rows (25.0%) cannot be used")
    assert "ingest.max_bad_share (0.2): 2 text_not_a_string, 1 empty" in str(error.value)
    assert out.path("quarantine") in str(error.value)
    assert len(out.files("quarantine")) == 1
    assert out.files("train") == []


def test_input_without_a_document_is_refused(tmp_path: Path, new_artifact) -> None:
    (tmp_path / "in.jsonl").write_text("\n\n")
    with pytest.raises(SbpError, match=r"in.jsonl: holds no documents"):
        ingest_documents(config(tmp_path / "in.jsonl"), out=new_artifact("corpus"))


def test_a_given_tokenizer_is_used_and_looked_for_first(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", articles(4))
    first = new_artifact("first")
    ingest_documents(config(tmp_path / "in.jsonl"), out=first)
    second = new_artifact("second")
    ingest_documents(config(tmp_path / "in.jsonl", tokenizer=first.path("tokenizer"), vocab_size=999), out=second)
    assert rows_of(first, "train") == rows_of(second, "train")
    assert special_ids(load_tokenizer(second.path("tokenizer"))) == (0, 1, 2)
    with pytest.raises(SbpError, match="tokenizer /none"):
        ingest_documents(config(tmp_path / "nowhere", tokenizer="/none"), out=new_artifact("third"))


def test_the_tokenizer_never_sees_the_validation_split(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", articles(10))
    stats = ingest_documents(config(tmp_path / "in.jsonl", validation_share=0.4), out=(out := new_artifact("corpus")))
    assert stats["tokenizer"]["trained_on_chars"] == sum(len(row["text"]) for row in rows_of(out, "train"))


def test_a_chunk_at_a_time_gives_the_same_corpus(tmp_path: Path, new_artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "in.jsonl", articles(10))
    ingest_documents(config(tmp_path / "in.jsonl"), out=(whole := new_artifact("whole")))
    monkeypatch.setattr(parsing, "CHUNK_CHARS", 500)  # two rows
    monkeypatch.setattr(choosing, "PIECE_ROWS", 2)
    ingest_documents(config(tmp_path / "in.jsonl"), out=(parts := new_artifact("parts")))
    for split in SPLITS:
        assert rows_of(whole, split) == rows_of(parts, split)


def test_examples_of_bad_rows_are_found_in_the_memory_of_a_few(new_artifact) -> None:
    out = new_artifact("corpus")
    reasons = ["empty"] * 50_000 + ["broken_json"] * 2
    lines = [json.dumps({"file": "a", "line": n, "reason": reason}) + "\n" for n, reason in enumerate(reasons)]
    out.write_bytes("quarantine/part-00000.jsonl", "".join(lines).encode())
    tracemalloc.start()
    try:
        found = examples_of_bad_rows(out)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == {"empty": ["a:0", "a:1", "a:2"], "broken_json": ["a:50000", "a:50001"]}
    assert most < 500_000  # the file has 2 MB


def test_long_names_of_groups_count_as_what_is_held_while_parsing(
    tmp_path: Path, new_artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    flush = FileParser._flush

    def noted(parser: FileParser, *arguments: Any) -> None:
        held.append(sum(map(len, parser._rows["group"])))
        flush(parser, *arguments)

    monkeypatch.setattr(FileParser, "_flush", noted)
    monkeypatch.setattr(parsing, "CHUNK_CHARS", 10_000)
    write_rows(tmp_path / "in.jsonl", [{"text": f"Text {n}.", "title": f"{n}" * 3000} for n in range(10, 30)])
    ingest_documents(config(tmp_path / "in.jsonl"), out=new_artifact("corpus"))
    assert sum(held) == 20 * 6000
    assert max(held) == 2 * 6000  # the second goes beyond 10,000


@pytest.mark.parametrize("survivors", range(13))
def test_an_interrupted_run_goes_on_and_ends_alike(
    tmp_path: Path, new_artifact, survivors: int, in_process: WorkedOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_UNIT_FILES", 1)
    for name in "ab":
        write_rows(tmp_path / f"{name}.jsonl", articles(8))
    cfg = config(tmp_path / "*.jsonl")
    ingest_documents(cfg, out=(whole := new_artifact("whole")))
    steps = [stage for stage, _ in in_process]
    looked = ["ingest-sketch"] * 3 + ["ingest-compare"] * 3
    assert steps == ["ingest-parse"] * 2 + looked + ["ingest-tokenizer"] + ["ingest"] * 3
    in_process.clear()
    out = new_artifact("corpus")
    in_process.interrupt_after(survivors)
    if survivors < 12:
        with pytest.raises(KeyboardInterrupt):
            ingest_documents(cfg, out=out)
    ingest_documents(cfg, out=out)
    assert [stage for stage, _ in in_process] == steps  # nothing twice
    assert contents(out) == contents(whole)
    in_process.clear()
    ingest_documents(cfg, out=out)
    assert in_process == []


def test_train_documents_that_an_evaluation_set_shares_are_dropped_and_held_out_ones_stay(
    tmp_path: Path, new_artifact
) -> None:
    """Subjects 0 and 5 of ten are asked about, and one more set has nothing to do with them."""
    write_rows(tmp_path / "in.jsonl", articles(10))
    asked = [{"id": n, "question": f"Is it that PARAGRAPH 0: about subject {n}, or not?"} for n in (0, 5)]
    write_rows(tmp_path / "asked.jsonl", [*asked, {"id": 0, "question": "Why?"}])
    write_rows(tmp_path / "other.jsonl", [{"question": "Nothing of this is anywhere in the documents."}])
    sets = {"evaluation_sets": (str(tmp_path / "asked.jsonl"), str(tmp_path / "other.jsonl")), "ngram_words": 5}
    cfg = config(tmp_path / "in.jsonl", validation_share=0.5)
    before, after = new_artifact("before"), new_artifact("after")
    all_stats = ingest_documents(cfg, out=before)
    stats = ingest_documents(cfg, out=after, **sets)
    in_train = [n for n in (0, 5) if hash64("split", 0, f"Subject {n}") >= 2**63]
    assert len(in_train) == 1  # so that both splits are put to the test
    lost = f"Paragraph 0 about subject {in_train[0]}."
    assert [row["text"] for row in rows_of(after, "train")] == [
        row["text"] for row in rows_of(before, "train") if row["text"] != lost
    ]
    assert len(rows_of(after, "validation")) == len(rows_of(before, "validation"))
    assert all_stats["contaminated"] is None
    assert stats["contaminated"] == {
        "ngram_words": 5,
        "ngrams": (3 + 3 + 3) + 4,  # three that both questions have, three of each, and four
        "documents": 1,
        "sets": {
            "asked": {"items": 3, "too_short": 1, "documents": 1},
            "other": {"items": 1, "too_short": 0, "documents": 0},
        },
    }
    assert stats["drops"] == stats["train"]["drops"] == {"contaminated": 1}
    assert stats["rows"] == stats["documents"] + 1
    assert stats["tokenizer"]["trained_on_chars"] == all_stats["tokenizer"]["trained_on_chars"] - len(lost)


def test_a_missing_evaluation_set_is_noticed_before_any_work(tmp_path: Path, new_artifact, in_process: list) -> None:
    write_rows(tmp_path / "in.jsonl", articles(3))
    with pytest.raises(SbpError, match=r"^decontaminate.evaluation_sets: .*none.jsonl: there is no such file or folde"):
        ingest_documents(
            config(tmp_path / "in.jsonl"), out=new_artifact("corpus"), evaluation_sets=(f"{tmp_path}/none.jsonl",)
        )
    assert in_process == []


def test_a_corpus_that_is_all_in_the_evaluation_sets_is_refused(tmp_path: Path, new_artifact) -> None:
    write_rows(tmp_path / "in.jsonl", articles(3))
    with pytest.raises(SbpError, match=r"no document is left in the train split: .*decontaminate.evaluation_sets"):
        ingest_documents(
            config(tmp_path / "in.jsonl"),
            out=new_artifact("corpus"),
            evaluation_sets=(str(tmp_path / "in.jsonl"),),
            ngram_words=1,
        )


def test_many_groups_are_counted_within_each_split_s_part_of_the_hashes() -> None:
    """100,000 groups, by their hash 85,000, 10,000 and 5,000 of them, to within four standard errors."""
    hashes = np.array([hash64("split", 0, f"group {number}") for number in range(100_000)], np.uint64)
    trained = train_range(0.1, 0.05, int(hashes.min()), int(hashes.max()))
    for split in SPLITS:
        low, high = trained.of(split)
        part = hashes[(hashes >= low) & (hashes <= high - 1)]
        smallest = np.sort(part)[:HASHES_KEPT].tolist()
        assert estimate_distinct(smallest, low, high) == pytest.approx(len(part), rel=4 / HASHES_KEPT**0.5)


def test_a_column_that_is_kept_leads_from_a_document_back_to_its_row(tmp_path: Path, new_artifact) -> None:
    rows = [{"text": f"Text {number}.", "meta": {"url": f"u/{number}"}} for number in range(20)]
    write_rows(tmp_path / "in.jsonl", [*rows, {"text": "Text 0.", "meta": {"url": "a copy"}}, {"text": "None."}])
    cfg = config(tmp_path / "in.jsonl", group_column=None, source_column="meta.url")
    ingest_documents(cfg, out=(out := new_artifact("corpus")))
    found = {row["text"]: row["source"] for split in SPLITS for row in rows_of(out, split)}
    assert found == {row["text"]: row["meta"]["url"] for row in rows} | {"None.": None}


@pytest.mark.parametrize("setting", ["group_column", "source_column"])
def test_a_column_that_no_row_of_a_file_has_is_refused_with_those_there_are(
    tmp_path: Path, new_artifact, setting: str
) -> None:
    path = tmp_path / "in.jsonl"
    write_rows(path, [{"text": f"Text {number}.", "url": f"u/{number}"} for number in range(20)])
    with pytest.raises(SbpError) as refused:
        ingest_documents(config(path, **{"group_column": None, setting: "ulr"}), out=new_artifact("corpus"))
    assert str(refused.value) == f"{path}: no column 'ulr': set ingest.{setting} to one of text, url, or to null"


def test_a_file_that_a_worker_may_not_read_is_named(
    tmp_path: Path, new_artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver may, as another user or on another node."""

    def refused(path: str) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    path = tmp_path / "in.jsonl"
    write_rows(path, [{"text": f"Text {number}."} for number in range(20)])
    parser = FileParser(config(path, group_column=None, num_shards=1), new_artifact("corpus"))
    monkeypatch.setattr(records, "open_bytes", refused)
    with pytest.raises(
        SbpError, match=rf"^{path}: cannot be read: .*Permission denied.*: see that every node reads it"
    ):
        parser({"unit": 0, "paths": [str(path)], "part": 0, "num_parts": 1})


def test_the_manifest_tells_what_the_corpus_is(tmp_path: Path, new_artifact, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["Sixteen letters.", "Seventeen letters", "แม่น้ำเจ้าพระยา", "1, 2, 3!", "二人" * 40]
    path = tmp_path / "in.jsonl"
    write_rows(path, [{"text": text} for text in [*texts, texts[0]]] + [{"text": n} for n in range(5)])
    out = new_artifact("corpus")
    with caplog.at_level("INFO"):
        stats = ingest_documents(config(path, group_column=None, validation_share=0, max_bad_share=1), out=out)
    parts = [stats[split] for split in splits_of(out)]
    assert sum(part["characters"] for part in parts) == sum(map(len, texts))
    scripts: dict[str, int] = {}
    lengths: dict[str, int] = {}
    for part in parts:
        for total, counts in ((scripts, part["scripts"]), (lengths, part["lengths"])):
            total |= {key: total.get(key, 0) + count for key, count in counts.items()}
    assert scripts == {"latin": 2, "thai": 1, "none": 1, "cjk": 1}
    assert lengths == {"16": 3, "64": 1, "256": 1}
    bad = [f"{path}:{line}" for line in (7, 8, 9)]
    assert stats["examples"] == {"text_not_a_string": bad, "exact_duplicate": ["Sixteen letters."]}
    assert f"dropped: 5 text_not_a_string ({path}:7, {path}:8, {path}:9)" in caplog.text
    assert "dropped: 1 exact_duplicate (Sixteen letters.)" in caplog.text


def test_small_files_are_opened_together_and_read_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        write_rows(tmp_path / f"{number:02}.jsonl", [{"text": f"Text {number}, {row}."} for row in range(3)])
    waiting, seen, opened = threading.Barrier(8, timeout=60), set(), file_formats.open_file_system

    def open_with_seven_others(path: str) -> Any:
        if path not in seen:
            seen.add(path)
            waiting.wait()
        return opened(path)

    monkeypatch.setattr(file_formats, "open_file_system", open_with_seven_others)
    paths = tuple(str(path) for path in sorted(tmp_path.glob("*.jsonl")))
    out = Artifact("corpus", str(tmp_path / "out"))
    parser = FileParser(config(tmp_path, group_column=None, num_shards=1), out)
    assert parser({"paths": paths, "part": 0, "num_parts": 1, "unit": 0})["rows"] == 24
    texts = read_bucket(out, out.files("scratch", ".parquet"), 0, parsing.PARSED)["text"].to_pylist()
    assert texts == [f"Text {number}, {row}." for number in range(8) for row in range(3)]
