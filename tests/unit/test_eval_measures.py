from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hand_made import nodes_of

from sbp_ray import embedder
from sbp_ray.artifacts import MANIFEST, Artifact
from sbp_ray.config import Config, EmbedConfig
from sbp_ray.evaluation.likelihood.checkpoints import document_windows
from sbp_ray.evaluation.recorded import artifact_row, loss_curve
from sbp_ray.evaluation.text_quality import panel
from sbp_ray.evaluation.text_quality.duplicates import duplicate_shares, sign_shard
from sbp_ray.evaluation.text_quality.nearest import Nearest, nearest_in_shard
from sbp_ray.evaluation.text_quality.novelty import (
    DocumentCounter,
    KnownRuns,
    add_counts,
    copying_of_corpus,
    flatten,
    hash_table,
    known_runs,
)
from sbp_ray.evaluation.text_quality.samples import Sample, sample_rows
from sbp_ray.evaluation.text_quality.text_measures import (
    copying,
    distance_of_distributions,
    irrelevance,
    irrelevance_threshold,
    random_cosines,
    text_measures,
)
from sbp_ray.schema import DOC_ID
from sbp_ray.stages.embed import vector_array
from sbp_ray.steps import working_here
from sbp_ray.text.minhash import document_signature
from sbp_ray.text.tokenizer import SpecialIds

SPECIAL = SpecialIds(bos=0, eos=1, related=2)


# Arms


def test_a_long_document_is_supervised_once_in_windows() -> None:
    windows = document_windows([3, 4, 5, 6, 7], SPECIAL, max_tokens=4)
    assert [window.input_ids.tolist() for window in windows] == [[0, 3, 4], [0, 5, 6], [0, 7, 1]]
    assert sum(window.num_supervised for window in windows) == 6  # five tokens and the end
    [window] = document_windows([3, 4], SPECIAL, max_tokens=4)
    assert (window.input_ids.tolist(), window.first_supervised) == ([0, 3, 4, 1], 1)


# Quality


def words(numbers: range | list[int]) -> str:
    return " ".join(f"w{number}" for number in numbers)


def synthetic(artifact: Artifact, texts: list[str]) -> Artifact:
    rows = {"doc_id": pa.array([i.to_bytes(16, "big") for i in range(len(texts))], DOC_ID), "text": texts}
    artifact.write_table("part-00000.parquet", pa.table(rows))
    return artifact


def shares_of(artifact: Artifact, limit: int = 100, share: float = 1.0) -> dict[str, float]:
    part = sign_shard("part-00000.parquet", artifact, share, 0, 13)
    return duplicate_shares([part], limit=limit)


def test_exact_and_near_duplicates_are_told_apart(new_artifact) -> None:
    long = words(range(100))
    almost = words([*range(99), 500])  # shares 87 of 88 shingles: Jaccard 87 / 89
    other = words(range(1000, 1100))
    assert shares_of(synthetic(new_artifact("s"), [long, long, almost, other])) == {
        "documents": 4,
        "exact": 0.25,
        "near": 0.25,
    }
    distant = words([*range(60), *range(500, 540)])  # 48 of 128 shingles: Jaccard 0.375
    assert shares_of(synthetic(new_artifact("t"), [long, distant]))["near"] == 0


def test_a_thousand_copies_of_ten_texts_are_all_found(new_artifact) -> None:
    """Each copy has one word of 300 changed: two of them share 262 or more of 314 shingles."""
    texts = [words([1000 * (i % 10) + j if j != i % 80 else 90_000 + i for j in range(300)]) for i in range(1000)]
    assert shares_of(synthetic(new_artifact("s"), texts), limit=1000)["near"] == pytest.approx(0.99)


def test_a_sample_of_duplicates_has_the_size_that_was_asked_for(new_artifact) -> None:
    artifact = synthetic(new_artifact("s"), [words([i]) for i in range(200)])
    assert shares_of(artifact, limit=50) == {"documents": 50, "exact": 0.0, "near": 0.0}
    assert 70 < shares_of(artifact, limit=200, share=0.5)["documents"] < 130


@pytest.mark.parametrize(("stats", "dtype"), [({"dtype": "bfloat16"}, "bfloat16"), ({}, "auto")])
def test_synthetic_text_is_embedded_in_the_type_in_which_the_corpus_was(
    new_artifact, monkeypatch: pytest.MonkeyPatch, stats: dict[str, str], dtype: str
) -> None:
    asked_for = []

    class OneVector:
        dim = 1

        def __init__(self, cfg: EmbedConfig) -> None:
            asked_for.append(cfg.dtype)

        def __call__(self, texts: list[str]) -> np.ndarray:
            return np.ones((len(texts), 1), np.float32)

    monkeypatch.setattr(embedder, "load_embedder", OneVector)
    settings = Config.model_validate(yaml.safe_load((Path(__file__).parent / "small.yaml").read_text()))
    embeddings = new_artifact("embeddings")
    embeddings.write_json(MANIFEST, {"stats": stats})
    written = Sample("synthetic", [{"text": "a"}], new_artifact("synthetic"))
    with working_here():
        found = panel._sample_vectors(settings, embeddings, {"sbp": written})
    assert (found["sbp"].tolist(), asked_for) == ([[1.0]], [dtype])


def test_signatures_that_the_embeddings_hold_are_taken(new_artifact) -> None:
    text = words(range(40))
    signature = document_signature(text, 13)[0].tobytes()
    embeddings = new_artifact("embeddings")
    rows = {"doc_id": pa.array([bytes(16), b"\xff" * 16], DOC_ID), "signature": [signature, signature]}
    embeddings.write_table("train/part-00000.parquet", pa.table(rows))
    part = sign_shard("train/part-00000.parquet", embeddings, 1.0, 0, 13)
    # ids of corpus documents are hashes of their texts: these are two texts that read alike
    assert duplicate_shares([part], limit=10) == {"documents": 2, "exact": 0.0, "near": 0.5}


def test_copying_is_the_share_of_d2_that_d1_holds() -> None:
    d1 = list(range(20))
    half = [*range(16), *range(100, 116)]  # 4 of its 20 shingles of 13 tokens lie in d1
    found = copying([(d1, d1), (d1, half), (d1, list(range(50, 80)))], list("abc"), shingle_tokens=13, seed=0)
    assert found["copied_share"]["value"] == pytest.approx((1 + 0.2 + 0) / 3)
    assert found["copies"]["value"] == pytest.approx(1 / 3)
    assert found["any_copied"]["value"] == pytest.approx(2 / 3)


def test_pairs_no_closer_than_chance_are_irrelevant() -> None:
    threshold = irrelevance_threshold(np.linspace(0, 1, 101))
    assert threshold == pytest.approx(0.95)
    found = irrelevance(np.array([0.99, 0.5, 0.96, 0.1]), threshold, list("aabb"), seed=0)
    assert found["irrelevant"]["value"] == 0.5
    assert found["mean_cosine"]["value"] == pytest.approx(0.6375)


def test_random_pairs_never_pair_a_text_with_itself() -> None:
    cosines_N = random_cosines(np.eye(5, dtype=np.float32), seed=0)  # every other vector is at right angles
    assert cosines_N.tolist() == [0.0] * 5


def test_lengths_repetition_and_diversity_of_a_sample() -> None:
    measures = text_measures([[1, 2, 3, 4], [7] * 8], [words(range(50)), words([1, 2] * 25)], ["a", "b"], seed=0)
    assert measures is not None
    assert measures["tokens"]["mean"] == 6
    assert measures["repetition"]["value"] == pytest.approx((0 + 4 / 5) / 2)  # five runs of 7 7 7 7, one is new
    assert measures["type_token"]["ratios"] == [1.0, 0.04]  # 50 and 2 of 50 words are distinct
    short = text_measures([[1]], ["too short"], ["a"], seed=0)
    assert short is not None and short["type_token"] is None
    assert text_measures([], [], [], seed=0) is None


def test_documents_of_one_group_are_drawn_together() -> None:
    """Twenty groups of five documents, half of them all repetition: the mean's standard error is 0.5 / sqrt(20)."""
    half = [[7] * 8] * 5 + [list(range(8))] * 5  # of 7 7 7 7 7 7 7 7, four of five runs stood there before
    groups = [str(i // 5) for i in range(100)]
    measures = text_measures(half * 10, [""] * 100, groups, seed=0)
    assert measures is not None
    found = measures["repetition"]
    assert (found["value"], found["unit"], found["units"]) == (pytest.approx(0.4), "groups", 20)
    assert found["high"] - found["value"] == pytest.approx(2.09 * 0.4 / 20**0.5, abs=0.03)  # over documents it is 0.08
    few = text_measures(half, [""] * 10, groups[:10], seed=0)
    assert few is not None and few["repetition"] == {"value": pytest.approx(0.4), "unit": "groups", "units": 2}


def test_distances_are_those_of_the_distributions() -> None:
    assert distance_of_distributions([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert distance_of_distributions([1, 2], [3, 4, 5]) == 1
    assert distance_of_distributions([1, 3], [2, 3]) == 0.5  # below 2, half of the first and none of the second
    assert distance_of_distributions([], [1]) is None


# Novel n-grams, and what is copied from the corpus


def runs_beside(sample: list[list[int]], *corpus: list[list[int]], own: int = 0) -> KnownRuns:
    """Each part of the corpus is counted by a worker of its own."""
    keys_C = hash_table([sample])
    counts = np.zeros(len(keys_C), np.uint8)
    for part in corpus:
        counter = DocumentCounter(keys_C)
        for document in part:
            counter.add(*flatten([document]))
        counts = add_counts(counts, counter.counts_C)
    return known_runs(sample, keys_C, counts, own=own)


def test_novel_runs_are_those_no_document_holds() -> None:
    shares = runs_beside([[1, 2, 3, 9]], [[1, 2, 3], [3, 4]]).novel_shares()
    assert shares["1"] == 0.25  # 9
    assert shares["2"] == pytest.approx(1 / 3)  # 3 9
    assert shares["4"] == 1
    assert shares["8"] is None  # the sample has no run so long


def test_a_training_document_does_not_count_as_its_own_source() -> None:
    sample = [[1, 2, 3, 4]]
    assert runs_beside(sample, sample, own=1).novel_shares()["2"] == 1
    for corpus in ([[[1, 2, 3, 4], [1, 2, 8]]], [sample, [[1, 2, 8]]]):  # in one worker or two
        assert runs_beside(sample, *corpus, own=1).novel_shares()["2"] == pytest.approx(2 / 3)  # 1 2 is elsewhere too


def test_runs_do_not_cross_from_one_document_into_the_next() -> None:
    assert runs_beside([[1, 2]], [[5, 1], [2, 5], []]).novel_shares()["2"] == 1
    assert runs_beside([[1], [2]], [[1, 2]]).novel_shares()["2"] is None


def test_a_run_that_stands_often_in_one_document_counts_once() -> None:
    assert runs_beside([[1, 1]], [[1, 1, 1, 1]], own=1).novel_shares()["2"] == 1


def test_every_run_of_a_large_sample_is_found_again() -> None:
    documents = np.random.default_rng(0).integers(0, 50_000, size=(200, 300)).tolist()
    assert runs_beside(documents, documents).novel_shares() == dict.fromkeys(("1", "2", "4", "8", "13"), 0.0)


def test_copying_counts_runs_of_thirteen_wherever_in_the_corpus_they_stand() -> None:
    copied = [*range(20), *range(100, 106)]  # 26 tokens, 14 runs; the first 20 tokens have 8, all in the corpus
    pasted = [*range(200, 213), 7, *range(300, 313)]  # a run of each of two documents: 2 of 15 runs
    corpus = [list(range(20)), list(range(200, 213)), list(range(299, 314))]
    found = copying_of_corpus(runs_beside([copied, pasted, [1, 2]], corpus), list("abc"), seed=0)
    assert found is not None
    assert found["documents"] == 2  # the third has no run of 13
    assert found["copied_share"]["value"] == pytest.approx((8 / 14 + 2 / 15) / 2)
    assert found["copies"]["value"] == 0.5
    assert found["any_copied"]["value"] == 1
    assert found["longest"] == {"median": 16.5, "p90": pytest.approx(19.3), "max": 20}
    assert copying_of_corpus(runs_beside([[1, 2]], corpus), ["a"], seed=0) is None


# Nearest documents


def embedded(artifact: Artifact, name: str, rows: dict[bytes, list[float]]) -> Artifact:
    table = {"doc_id": list(rows), "vector": vector_array(np.array(list(rows.values()), np.float32))}
    artifact.write_table(name, pa.table(table))
    return artifact


def test_the_nearest_document_is_found_across_shards_and_is_never_the_document_itself(new_artifact) -> None:
    embeddings = embedded(new_artifact("embeddings"), "train/part-00000.parquet", {b"x": [1, 0], b"y": [0.6, 0.8]})
    embedded(embeddings, "train/part-00001.parquet", {b"z": [0, 1]})
    vector_ND = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    found = Nearest.none(3)
    for name in embeddings.files("train"):
        found = found.or_nearer(nearest_in_shard(name, embeddings, vector_ND, [b"x", b"", b""]))
    assert found.id_N.tolist() == [b"y", b"z", b"x"]  # the first is x itself
    assert found.cosine_N == pytest.approx([0.6, 1, 1], abs=1e-3)


# Samples, flow


def test_a_sample_is_random_repeatable_and_without_replacement(tmp_path) -> None:
    artifact = Artifact("corpus", str(tmp_path))
    for shard in range(3):
        ids = pa.array([bytes([shard, i] * 8) for i in range(10)], DOC_ID)
        artifact.write_table(f"train/part-{shard}.parquet", pa.table({"doc_id": ids, "n": list(range(10))}))

    def sample(limit: int, seed: int) -> list[bytes]:
        rows = sample_rows(artifact, "train", key=["doc_id"], columns=["doc_id"], limit=limit, seed=seed)
        return [row["doc_id"] for row in rows]

    assert sample(5, 0) == sample(5, 0) != sample(5, 1)
    assert len(set(sample(100, 0))) == 30
    assert sample(100, 0)[:10] == sample(10, 0)


def test_drops_are_those_the_stage_added_up_or_else_its_splits(new_artifact) -> None:
    pairs, corpus = new_artifact("pairs"), new_artifact("corpus")
    split = {"pairs": 3, "drops": {"near": 1}}
    pairs.write_json("manifest.json", {"stats": {"drops": {"near": 2}, "train": split, "validation": split}})
    corpus.write_json("manifest.json", {"stats": {"drops": {}, "train": split, "validation": split}})
    there = {made.name: made.url for made in (pairs, corpus, new_artifact("lm"))}
    tree = yaml.safe_load((Path(__file__).parent / "small.yaml").read_text())
    nodes = nodes_of(Config.model_validate(tree | {"artifacts": there}))
    of_pairs, of_corpus, of_lm = (artifact_row(nodes[noun]) for noun in there)
    assert of_pairs["drops"] == {"near": 2} == of_corpus["drops"]
    assert of_pairs["counts"] == {"pairs": 3}
    assert not of_lm["is_done"]


def test_a_step_that_was_done_twice_is_one_point_of_the_curve(new_artifact) -> None:
    trained = new_artifact("lm")
    lines = ['{"step": 1, "tokens": 8, "loss_nats": 3.0}', '{"step": 2, "tokens": 16, "loss_nats": 2.0}'] * 2
    trained.write_bytes("metrics.jsonl", "\n".join(lines).encode())
    assert [point["step"] for point in loss_curve(trained)] == [1, 2]
    assert loss_curve(new_artifact("nothing")) == []
