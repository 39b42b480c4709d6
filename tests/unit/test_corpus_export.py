"""What leaves: the synthetic corpus in the forms that others read; and what a person is shown of a run."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.corpus_export import export_corpus
from sbp_ray.errors import SbpError
from sbp_ray.look import Choice, show_rows
from sbp_ray.schema import DOCUMENT, PAIR, SYNTHETIC, shard_of

IDS = [bytes([number]) * 16 for number in range(1, 9)]


def synthetic_row(number: int) -> dict[str, Any]:
    return {
        "doc_id": bytes([100 + number]) * 16,
        "d1_id": IDS[number],
        "sample": 0,
        "text": f"Written about é {number}.",
        "input_ids": [1, 2],
        "finish_reason": "stop",
        "synthesizer": "00c0ffee",
        "round": 1,
        "seed": number,
        "temperature": 1.0,
        "top_p": 0.9,
        "max_tokens": 64,
    }


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Artifact]:
    """A corpus of eight documents in two shards, a pair of each with the next, four synthetic documents."""
    made = {noun: Artifact(noun, str(tmp_path / noun)) for noun in ("corpus", "pairs", "synthetic", "report")}
    for split in ("train", "validation"):
        for shard in range(2):
            ids = [doc_id for doc_id in IDS if shard_of(doc_id, 2) == shard and split == "train"]
            rows = [{"doc_id": i, "group": "g", "text": f"Document {i[0]}.", "input_ids": [1]} for i in ids]
            made["corpus"].write_table(f"{split}/part-{shard:05d}.parquet", pa.Table.from_pylist(rows, DOCUMENT))
    pairs = [{"d1_id": a, "d2_id": b, "cosine": 0.5 + a[0] / 20, "jaccard": 0.1} for a, b in itertools.pairwise(IDS)]
    made["pairs"].write_table("train/part-00000.parquet", pa.Table.from_pylist(pairs, PAIR))
    made["pairs"].write_table("validation/part-00000.parquet", pa.Table.from_pylist([], PAIR))
    for shard in range(2):
        rows = [synthetic_row(number) for number in (2 * shard, 2 * shard + 1)]
        made["synthetic"].write_table(f"part-{shard:05d}.parquet", pa.Table.from_pylist(rows, SYNTHETIC))
    for noun in ("corpus", "pairs"):
        made[noun].write_json("manifest.json", {"stats": {}})
    settings = {"synthesize": {"top_p": 0.9, "resources": {}}}
    stats = {"drops": {"copy": 3}}
    made["synthetic"].write_json("manifest.json", {"stats": stats, "inputs": {"corpus": "ab12"}, "settings": settings})
    return made


def test_json_lines_have_the_fields_that_trainers_expect(tmp_path: Path, run: dict[str, Artifact]) -> None:
    export_corpus(run["synthetic"], run["report"], str(tmp_path / "out"), "jsonl", "cc0-1.0")
    files = sorted((tmp_path / "out/documents").iterdir())
    assert [path.name for path in files] == ["part-00000.jsonl.gz", "part-00001.jsonl.gz"]
    rows = [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]
    expected = synthetic_row(2)
    assert rows[2]["text"] == expected["text"]
    assert (rows[2]["id"], rows[2]["source"]) == (expected["doc_id"].hex(), "sbp_ray")
    assert rows[2]["metadata"]["d1_id"] == IDS[2].hex()
    assert rows[2]["metadata"]["seed"] == 2


def test_parquet_has_provenance_in_columns(tmp_path: Path, run: dict[str, Artifact]) -> None:
    export_corpus(run["synthetic"], run["report"], str(tmp_path / "out"), "parquet", "cc0-1.0")
    table = pq.read_table(tmp_path / "out/documents")
    assert table.column_names[:4] == ["text", "id", "source", "d1_id"]
    assert table["d1_id"].to_pylist() == [doc_id.hex() for doc_id in IDS[:4]]


def test_the_datasets_library_reads_the_folder_with_its_card(tmp_path: Path, run: dict[str, Artifact]) -> None:
    run["report"].write_bytes("summary.txt", b"the table\n")
    run["report"].write_json("manifest.json", {})
    export_corpus(run["synthetic"], run["report"], str(tmp_path / "out"), "hf", "cc-by-sa-4.0")
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["text"] == [f"Written about é {number}." for number in range(4)]
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-sa-4.0\n")
    for told in ("4 documents, each", "| corpus | ab12 |", "| top_p | 0.9 |", "| copy | 3 |", "```\nthe table\n```"):
        assert told in card


OUTSIDE = {"model": "some/instruct-7b", "of": "pair", "instruction": "Say both:\n{d1} | {d2}"}


@pytest.mark.parametrize(
    ("settings", "told", "is_ours"),
    [
        ({"condition": "d1"}, ("given one real document and tuned to write a related one",), True),
        ({"condition": "none"}, ("given nothing to write from: a control",), True),
        ({"condition": "continue"}, ("given the first half of one real document", "a control"), True),
        (
            {"condition": "d1", "rephrase": OUTSIDE},
            (
                "an outside model, `some/instruct-7b`, that was given one real document and a related one",
                "| rephrase.model | some/instruct-7b |",
                "| rephrase.instruction | Say both: {d1} \\| {d2} |",
            ),
            False,
        ),
    ],
)
def test_the_card_says_who_wrote_and_from_what(
    tmp_path: Path, run: dict[str, Artifact], settings: dict[str, Any], told: tuple[str, ...], is_ours: bool
) -> None:
    synthetic = run["synthetic"]
    synthetic.write_json("manifest.json", synthetic.read_json("manifest.json") | {"settings": {"synthesize": settings}})
    export_corpus(synthetic, run["report"], str(tmp_path / "out"), "parquet", "other")
    card = (tmp_path / "out/README.md").read_text()
    assert all(words in card for words in told)
    assert ("No other model wrote or chose a word." in card) is is_ours


@pytest.mark.parametrize("form", ["jsonl", "parquet", "hf"])
def test_an_export_is_done_again_in_place_and_never_beside_files_of_another(
    tmp_path: Path, run: dict[str, Artifact], form: Any
) -> None:
    for _ in range(2):
        export_corpus(run["synthetic"], run["report"], str(tmp_path / "out"), form, "other")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(before) == 2 + 1  # shards, and the card
    Path(run["synthetic"].path("part-00001.parquet")).unlink()  # as of a corpus of one shard
    with pytest.raises(SbpError, match=r"out: \w+/.*-0000[01].* is no part of this export, and would be read"):
        export_corpus(run["synthetic"], run["report"], str(tmp_path / "out"), form, "other")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_corpus_that_is_not_finished_does_not_leave(tmp_path: Path, run: dict[str, Artifact]) -> None:
    with pytest.raises(SbpError, match=r"report is not there yet: run jobs/synthesize.py first"):
        export_corpus(run["report"], run["report"], str(tmp_path / "out"), "hf", "other")


def test_pairs_are_shown_within_a_band_with_both_texts(run: dict[str, Artifact]) -> None:
    shown = "\n".join(show_rows("pairs", "train", Choice(number=9, cosines=(0.69, 0.76)), run))
    assert shown.count("── cosine") == 2
    assert "cosine 0.700" in shown
    assert "cosine 0.750" in shown
    assert "d1 │ Document 4." in shown
    assert "d2 │ Document 5." in shown


def test_pairs_that_were_drawn_at_random_are_shown_without_numbers_and_are_in_no_band(run: dict[str, Artifact]) -> None:
    """As `pair.source=random` writes them."""
    row = {"d1_id": IDS[0], "d2_id": IDS[4], "cosine": None, "jaccard": None}
    run["pairs"].write_table("train/part-00000.parquet", pa.Table.from_pylist([row], PAIR))
    [told, d1, d2, _] = show_rows("pairs", "train", Choice(), run)
    assert told == f"── drawn at random | {IDS[0].hex()} {IDS[4].hex()}"
    assert (d1.split("│ ")[1], d2.split("│ ")[1]) == ("Document 1.", "Document 5.")
    with pytest.raises(SbpError, match="no row of pairs"):
        [*show_rows("pairs", "train", Choice(cosines=(-1.0, 0.9)), run)]


def test_synthetic_documents_are_shown_with_what_they_were_written_from(run: dict[str, Artifact]) -> None:
    [told, d1, text, _] = show_rows("synthetic", "train", Choice(matching="about é 2"), run)
    assert f"sample 0 of {IDS[2].hex()} | stop" in told
    assert d1.endswith("d1 │ Document 3.")
    assert text.endswith("synthetic │ Written about é 2.")


@pytest.mark.parametrize(("what", "noun"), [("documents", "corpus"), ("pairs", "pairs"), ("synthetic", "synthetic")])
def test_what_is_not_there_yet_is_named(tmp_path: Path, what: str, noun: str) -> None:
    nothing = {each: Artifact(each, str(tmp_path / each)) for each in ("corpus", "pairs", "synthetic")}
    with pytest.raises(SbpError, match=f"^{tmp_path}/{noun} is not there yet: run the job"):
        [*show_rows(what, "train", Choice(), nothing)]


def test_the_seed_chooses_documents_and_long_ones_are_cut(run: dict[str, Artifact]) -> None:
    def shown(seed: int) -> list[str]:
        return [*show_rows("documents", "train", Choice(number=3, seed=seed, num_chars=5), run)]

    assert shown(1) == shown(1) != shown(2)
    assert shown(1)[1].endswith("text │ Docum … (11 characters)")
    with pytest.raises(SbpError, match=r"no row of documents \(train\) is as asked for"):
        [*show_rows("documents", "train", Choice(matching="nowhere"), run)]
    with pytest.raises(SbpError, match=r"--matching \(: is no regular expression"):
        [*show_rows("documents", "train", Choice(matching="("), run)]
