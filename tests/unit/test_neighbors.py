from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.config import NeighborsConfig
from sbp_ray.errors import SbpError
from sbp_ray.neighbors.histogram import cosine_histogram, sorted_histogram, threshold_for
from sbp_ray.neighbors.search import NO_ROW, TopK, empty_top_k, merge_top_k, search_block, without_row
from sbp_ray.schema import NEIGHBORS, embedding_schema
from sbp_ray.stages.neighbors import find_neighbors

pytestmark = pytest.mark.usefixtures("in_process")


def unit_vectors(num: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def top_k(*lists: list[tuple[float, int]]) -> TopK:
    cosine, row = zip(*[zip(*pairs, strict=True) for pairs in lists], strict=True)
    return TopK(np.array(cosine, np.float32), np.array(row, np.int64))


# Search and merge


@pytest.mark.parametrize("sizes", [(50,), (20, 30), (1, 48, 1), (0, 50)])
def test_blocks_merged_are_brute_force(sizes: tuple[int, ...]) -> None:
    query, database = unit_vectors(7), unit_vectors(50, seed=1)
    found, first = empty_top_k(7), 0
    for size in sizes:
        found = merge_top_k(found, search_block(query, database[first : first + size], 5, first), 5)
        first += size
    scores = query @ database.T
    expected = np.argsort(-scores, axis=1)[:, :5]
    assert (found.row_QK == expected).all()
    np.testing.assert_allclose(found.cosine_QK, np.take_along_axis(scores, expected, axis=1), atol=1e-6)


def test_merging_prefers_the_higher_and_among_equals_the_earlier_row() -> None:
    a, b = top_k([(0.9, 4), (0.5, 2)]), top_k([(0.9, 1), (0.7, 8)])
    assert merge_top_k(a, b, 3).row_QK.tolist() == [[1, 4, 8]]
    assert merge_top_k(b, a, 3).row_QK.tolist() == [[1, 4, 8]]


def test_a_query_is_not_its_own_neighbour_wherever_it_stands() -> None:
    found = top_k([(1.0, 3), (0.9, 5), (0.8, 7)], [(1.0, 1), (0.9, 9), (0.8, 2)])
    others = without_row(found, np.array([5, 4]), 2)
    assert others.row_QK.tolist() == [[3, 7], [1, 9]]  # the second one's own row was not among the best
    np.testing.assert_allclose(others.cosine_QK, [[1.0, 0.8], [1.0, 0.9]])


def test_a_list_that_is_too_short_ends_in_no_row() -> None:
    assert without_row(top_k([(1.0, 0)]), np.array([0]), 5).row_QK.tolist() == [[NO_ROW]]


def test_vectors_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="16 dimensions, the block has 8"):
        search_block(unit_vectors(2), unit_vectors(2, dim=8), 1, 0)


# Histogram


def test_bins_are_named_by_their_lower_edge() -> None:
    cosines = np.array([0.61, 0.6, 0.65, 0.649, 1.0, 0.999, -0.01, 0.0], np.float32)
    assert cosine_histogram(cosines) == {"-0.05": 1, "0.00": 1, "0.60": 3, "0.65": 1, "0.95": 2}
    assert cosine_histogram(np.empty(0, np.float32)) == {}


def test_histograms_sort_by_value() -> None:
    assert list(sorted_histogram({"0.50": 1, "-0.10": 2, "-0.05": 3})) == ["-0.10", "-0.05", "0.50"]


@pytest.mark.parametrize(("wanted", "answer"), [(1, (0.8, 2)), (2, (0.8, 2)), (3, (0.5, 6)), (99, (0.1, 16))])
def test_threshold_that_keeps_as_many_as_wanted(wanted: float, answer: tuple[float, int]) -> None:
    assert threshold_for({"0.10": 10, "0.80": 2, "0.50": 4}, wanted) == answer


# Stage


def write_embeddings(artifact: Artifact, shards: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Vectors by id; ids are `<split>-<shard>-<row>`."""
    vectors = {}
    for split, parts in shards.items():
        for shard, part in enumerate(parts):
            ids = [f"{split}-{shard}-{row}" for row in range(len(part))]
            values = pa.FixedSizeListArray.from_arrays(pa.array(part.astype(np.float16).ravel()), part.shape[1])
            table = pa.table([pa.array(ids, pa.string()), values], schema=embedding_schema(part.shape[1]))
            artifact.write_table(f"{split}/part-{shard:05d}.parquet", table)
            vectors |= dict(zip(ids, part.astype(np.float16).astype(np.float32), strict=True))
    return vectors


def read_lists(out: Artifact, split: str) -> dict[str, list[tuple[str, float]]]:
    rows = [row for name in out.files(split) for row in out.read_table(name).to_pylist()]
    return {row["doc_id"]: list(zip(row["neighbor_ids"], row["cosines"], strict=True)) for row in rows}


def test_lists_are_those_of_brute_force_within_the_split(new_artifact) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    every = unit_vectors(40)
    vectors = write_embeddings(
        embeddings,
        {"train": [every[:11], every[11:30], every[30:30]], "validation": [every[30:], every[:0], every[:0]]},
    )
    stats = find_neighbors(NeighborsConfig(num_neighbors=4), embeddings=embeddings, out=out)
    for split in ("train", "validation"):
        lists = read_lists(out, split)
        names = [name for name in vectors if name.startswith(split)]
        assert list(lists) == names
        for name in names:
            unit = {other: vectors[other] / np.linalg.norm(vectors[other]) for other in names}
            cosines = {other: float(unit[name] @ unit[other]) for other in names if other != name}
            expected = sorted(cosines, key=lambda other: -cosines[other])[:4]
            assert [other for other, _ in lists[name]] == expected
            assert [cosine for _, cosine in lists[name]] == pytest.approx([cosines[o] for o in expected], abs=1e-6)
    assert out.read_table("train/part-00000.parquet").schema.remove_metadata() == NEIGHBORS
    nearest = [found[0][1] for found in read_lists(out, "train").values()]
    assert stats["train"]["mean_nearest_cosine"] == pytest.approx(np.mean(nearest), abs=1e-4)
    assert stats["train"]["histogram_nearest"] == cosine_histogram(np.array(nearest, np.float32))
    assert sum(stats["train"]["histogram_all"].values()) == stats["train"]["neighbors"] == 30 * 4
    assert stats["documents"] == 40


def test_lists_are_shorter_in_a_small_corpus_and_empty_for_a_lonely_document(new_artifact) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    write_embeddings(embeddings, {"train": [unit_vectors(2), unit_vectors(1, seed=1)], "validation": [unit_vectors(1)]})
    stats = find_neighbors(NeighborsConfig(num_neighbors=200), embeddings=embeddings, out=out)
    assert {name: len(found) for name, found in read_lists(out, "train").items()} == {
        "train-0-0": 2,
        "train-0-1": 2,
        "train-1-0": 2,
    }
    assert read_lists(out, "validation") == {"validation-0-0": []}
    assert stats["validation"]["mean_nearest_cosine"] is None


def test_copies_are_found_and_only_the_document_itself_is_left_out(new_artifact) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    same = np.tile(unit_vectors(1), (3, 1))
    write_embeddings(embeddings, {"train": [same[:2], same[2:]], "validation": [same[:1], same[:0]]})
    find_neighbors(NeighborsConfig(num_neighbors=2), embeddings=embeddings, out=out)
    lists = {name: [other for other, _ in found] for name, found in read_lists(out, "train").items()}
    assert lists == {
        "train-0-0": ["train-0-1", "train-1-0"],
        "train-0-1": ["train-0-0", "train-1-0"],
        "train-1-0": ["train-0-0", "train-0-1"],
    }
    cosines = [cosine for found in read_lists(out, "train").values() for _, cosine in found]
    assert cosines == pytest.approx([1.0] * 6, abs=1e-6)
    assert max(cosines) <= 1


def test_shards_of_different_dimension_are_refused(new_artifact) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    parts = {"train": [unit_vectors(2), unit_vectors(2, dim=8)], "validation": [unit_vectors(1), unit_vectors(1)]}
    write_embeddings(embeddings, parts)
    with pytest.raises(SbpError, match=r"train/part-00000.parquet holds 16-d vectors and .*00001.parquet 8-d"):
        find_neighbors(NeighborsConfig(), embeddings=embeddings, out=out)


def test_finished_shards_are_left_alone(new_artifact, in_process: list) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    write_embeddings(embeddings, {"train": [unit_vectors(5), unit_vectors(4)], "validation": [unit_vectors(3)] * 2})
    first = find_neighbors(NeighborsConfig(), embeddings=embeddings, out=out)
    Path(out.path("validation/part-00000.parquet")).unlink()
    in_process.clear()
    assert find_neighbors(NeighborsConfig(), embeddings=embeddings, out=out) == first
    assert [item["name"] for _, item in in_process] == ["validation/part-00000.parquet"]
