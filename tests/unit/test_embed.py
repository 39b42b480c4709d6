from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.config import EmbedConfig
from sbp_ray.embedder import Embedded, load_embedder
from sbp_ray.errors import SbpError
from sbp_ray.schema import DOCUMENT, embedding_schema
from sbp_ray.stages import embed
from sbp_ray.stages.embed import embed_corpus

pytestmark = pytest.mark.usefixtures("in_process")
TEXTS = ["A cat sat on a mat.", "word " * 300, "Kittens sleep a lot.", "Interest rates rose."]


class SmallEmbedder:
    """A vector that follows from the text's length; texts of `!` have none."""

    dim = 2
    max_tokens = 10

    def embed(self, texts: list[str]) -> Embedded:
        lengths = np.array([len(text) for text in texts])
        vectors = np.stack([np.cos(lengths), np.sin(lengths)], axis=1).astype(np.float32)
        vectors[[text == "!" for text in texts]] = np.nan
        return Embedded(vectors, lengths)


def write_corpus(corpus: Artifact, train: list[list[str]], validation: list[list[str]]) -> None:
    for split, shards in (("train", train), ("validation", validation)):
        for shard, texts in enumerate(shards):
            rows = [{"doc_id": f"{split}-{shard}-{i}", "group": "g", "text": t} for i, t in enumerate(texts)]
            corpus.write_table(f"{split}/part-{shard:05d}.parquet", pa.Table.from_pylist(rows, DOCUMENT))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "load_embedder", lambda cfg: SmallEmbedder())


@pytest.mark.usefixtures("small")
def test_each_document_keeps_its_place_and_long_ones_are_counted(new_artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "_CHUNK_ROWS", 2)
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a" * 3, "a" * 10, "a" * 12], []], [["a"], []])
    stats = embed_corpus(EmbedConfig(), corpus=corpus, out=out)
    table = out.read_table("train/part-00000.parquet")
    assert table.schema.remove_metadata() == embedding_schema(2)
    assert table.column("doc_id").to_pylist() == ["train-0-0", "train-0-1", "train-0-2"]
    expected = [[np.cos(n), np.sin(n)] for n in (3, 10, 12)]
    np.testing.assert_allclose(np.array(table.column("vector").to_pylist(), float), expected, atol=5e-4)
    assert out.num_rows("validation/part-00001.parquet") == 0
    assert (stats["dim"], stats["documents"], stats["drops"]) == (2, 4, {})
    assert {key: stats["train"][key] for key in ("documents", "tokens", "truncated")} == {
        "documents": 3,
        "tokens": 3 + 10 + 10,
        "truncated": 1,
    }


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


@pytest.mark.usefixtures("small")
def test_a_document_without_a_direction_is_named(new_artifact) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("embeddings")
    write_corpus(corpus, [["a", "!"]], [["b"]])
    with pytest.raises(SbpError, match="document train-0-1: the embedder gives it no direction"):
        embed_corpus(EmbedConfig(), corpus=corpus, out=out)
    assert out.files("train") == []


def test_the_packaged_model_gives_unit_vectors_in_the_order_of_the_texts() -> None:
    embedder = load_embedder(EmbedConfig(max_tokens=128, batch_size=2))
    assert embedder.dim == 384
    embedded = embedder.embed(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(embedded.vectors_ND, axis=1), 1, atol=1e-6)
    cosine = embedded.vectors_ND @ embedded.vectors_ND.T
    assert cosine[0, 2] > cosine[0, 3] + 0.1  # cats are nearer to kittens than to interest rates
    assert embedded.num_tokens_N.tolist() == [9, 302, 8, 6]  # with the two marks of the model
    alone = np.concatenate([embedder([text]) for text in TEXTS])
    np.testing.assert_allclose(embedded.vectors_ND, alone, atol=1e-5)
    cut = embedder(["word " * 126])  # what is left of the long text
    np.testing.assert_allclose(cut[0], embedded.vectors_ND[1], atol=1e-5)


def test_bfloat16_turns_no_vector_far() -> None:
    whole, half = (load_embedder(EmbedConfig(dtype=dtype))(TEXTS) for dtype in ("float32", "bfloat16"))
    assert ((whole * half).sum(axis=1) > 0.99).all()


def test_more_tokens_than_the_model_reads_are_refused() -> None:
    with pytest.raises(SbpError, match=r"embed.max_tokens \(5000\) is more than .* reads \(256\)"):
        load_embedder(EmbedConfig(max_tokens=5000))


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(SbpError, match=f"embed.model={tmp_path}: cannot be loaded"):
        load_embedder(EmbedConfig(model=str(tmp_path)))
