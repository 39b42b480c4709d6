from __future__ import annotations

import contextvars
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from worked_on import WorkedOn

from sbp_ray import metrics
from sbp_ray.artifacts import Artifact
from sbp_ray.config import NeighborsConfig, Resources
from sbp_ray.errors import SbpError
from sbp_ray.neighbors import quantize, recall, search_limits, search_plan
from sbp_ray.neighbors.histogram import cosine_histogram, sorted_histogram, threshold_for
from sbp_ray.schema import DOC_ID, NEIGHBORS, SIGNATURE_BYTES, embedding_schema, shard_of
from sbp_ray.shards import shard_name
from sbp_ray.stages import neighbors
from sbp_ray.stages.neighbors import find_neighbors

pytestmark = pytest.mark.usefixtures("in_process")


class Disk(NamedTuple):
    total: int
    used: int
    free: int


def unit_vectors(num: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered_vectors(num: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, num // 100), dim))
    vectors = centres[rng.integers(len(centres), size=num)] + 0.5 * rng.standard_normal((num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


Vectors = dict[tuple[str, bytes], np.ndarray]
Lists = dict[bytes, list[tuple[bytes, float]]]


def doc_id(number: int, shard: int, num_shards: int) -> bytes:
    """An id that belongs into the shard."""
    return bytes.fromhex(f"{number * num_shards + shard:08x}{number * 7919 % 2**32:024x}")


def write_embeddings(artifact: Artifact, shards: dict[str, list[np.ndarray]], **columns: Any) -> Vectors:
    """Write vectors, split by split and shard by shard, as many shards of each; returns them by id, as stored."""
    vectors = {}
    num_shards = max(map(len, shards.values()))
    for split, some in shards.items():
        parts = [*some, *[some[0][:0]] * (num_shards - len(some))]
        for shard, part in enumerate(parts):
            ids = [doc_id(row, shard, len(parts)) for row in range(len(part))]
            assert all(shard_of(name, len(parts)) == shard for name in ids)
            stored = part.astype(np.float16)
            signatures = columns.get("signature", lambda name: bytes(SIGNATURE_BYTES))
            content = columns.get("content_signature", lambda name: bytes(SIGNATURE_BYTES))
            groups = columns.get("group_hash", lambda name: 0)
            table = {
                "doc_id": pa.array(ids, DOC_ID),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), part.shape[1]),
                "signature": pa.array([signatures(name) for name in ids], pa.binary(SIGNATURE_BYTES)),
                "num_shingles": pa.array([100] * len(ids), pa.int32()),
                "content_signature": pa.array([content(name) for name in ids], pa.binary(SIGNATURE_BYTES)),
                "num_content_words": pa.array([20] * len(ids), pa.int32()),
                "group_hash": pa.array([groups(name) for name in ids], pa.uint64()),
            }
            artifact.write_table(shard_name(split, shard), pa.table(table, schema=embedding_schema(part.shape[1])))
            vectors |= {(split, name): row for name, row in zip(ids, stored.astype(np.float32), strict=True)}
    return vectors


def read_lists(out: Artifact, split: str) -> Lists:
    rows = [row for name in out.files(split) for row in out.read_table(name).to_pylist()]
    return {row["doc_id"]: list(zip(row["neighbor_ids"], row["cosines"], strict=True)) for row in rows}


def exact_lists(vectors: Vectors, split: str, k: int) -> Lists:
    """By brute force, in float64."""
    names = [name for where, name in vectors if where == split]
    unit = np.stack([vectors[split, name] for name in names]).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return {name: [(names[j], cosine[i, j]) for j in order[i] if j != i] for i, name in enumerate(names)}


def split_up(vectors: np.ndarray, num_shards: int) -> list[np.ndarray]:
    return np.array_split(vectors, num_shards)


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> NeighborsConfig:
    """Settings under which 3,000 documents are searched as millions are: many cells, several groups."""
    monkeypatch.setattr(search_plan, "EXACT_BELOW", 100)
    return NeighborsConfig(num_neighbors=10, cell_documents=50, worker_gib=0.002, recall_queries=300)


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


# Few documents: exact


def test_lists_are_those_of_brute_force_within_the_split(new_artifact) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    every = unit_vectors(40)
    shards = {"train": [every[:11], every[11:30], every[30:30]], "validation": [every[30:], every[:0], every[:0]]}
    vectors = write_embeddings(embeddings, shards)
    stats = find_neighbors(NeighborsConfig(num_neighbors=4), embeddings=embeddings, out=out)
    for split in ("train", "validation"):
        found, expected = read_lists(out, split), exact_lists(vectors, split, 4)
        assert list(found) == list(expected)
        for name, neighbors_of in expected.items():
            assert [other for other, _ in found[name]] == [other for other, _ in neighbors_of]
            assert [cos for _, cos in found[name]] == pytest.approx([cos for _, cos in neighbors_of], abs=1e-4)
    assert out.read_table("train/part-00000.parquet").schema.remove_metadata() == NEIGHBORS
    nearest = [found[0][1] for found in read_lists(out, "train").values()]
    assert stats["train"]["mean_nearest_cosine"] == pytest.approx(np.mean(nearest), abs=1e-4)
    assert stats["train"]["histogram_nearest"] == cosine_histogram(np.array(nearest, np.float32))
    assert sum(stats["train"]["histogram_all"].values()) == stats["train"]["neighbors"] == 30 * 4
    assert stats["documents"] == 40
    assert (stats["train"]["recall"]["recall"], stats["train"]["recall"]["low"]) == (1, 1)
    assert not out.exists("scratch")


def test_lists_tell_what_signatures_and_groups_say_of_the_neighbour(new_artifact) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    shards = {"train": [unit_vectors(2), unit_vectors(1, seed=1)], "validation": [unit_vectors(1)] * 2}
    half = bytes(128) + bytes([1] * 128)  # agrees with the zeros in half of its bytes
    quarter = bytes(64) + bytes([1] * 192)
    alike = doc_id(0, 0, 2)
    write_embeddings(
        embeddings,
        shards,
        signature=lambda name: half if name == alike else bytes(256),
        content_signature=lambda name: quarter if name == alike else bytes(256),
        group_hash=lambda name: 7 if int.from_bytes(name[:4], "big") in (0, 2) else 8,
    )
    find_neighbors(NeighborsConfig(num_neighbors=2), embeddings=embeddings, out=out)
    [row] = [row for row in out.read_table("train/part-00000.parquet").to_pylist() if row["doc_id"] == alike]
    jaccard = (0.5 - 1 / 256) / (1 - 1 / 256)
    assert row["jaccards"] == pytest.approx([jaccard] * 2, abs=1e-6)
    assert row["containments"] == pytest.approx([jaccard / (1 + jaccard) * 200 / 100] * 2, abs=1e-6)
    words = (0.25 - 1 / 256) / (1 - 1 / 256)
    assert row["content_overlaps"] == pytest.approx([words / (1 + words) * 40 / 20] * 2, abs=1e-6)
    same_group = dict(zip(row["neighbor_ids"], row["same_group"], strict=True))
    assert same_group == {doc_id(1, 0, 2): True, doc_id(0, 1, 2): False}


def test_lists_are_shorter_in_a_small_corpus_and_empty_for_a_lonely_document(new_artifact) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    write_embeddings(embeddings, {"train": [unit_vectors(2), unit_vectors(1, seed=1)], "validation": [unit_vectors(1)]})
    stats = find_neighbors(NeighborsConfig(num_neighbors=200), embeddings=embeddings, out=out)
    assert [len(found) for found in read_lists(out, "train").values()] == [2, 2, 2]
    assert list(read_lists(out, "validation").values()) == [[]]
    assert stats["validation"]["mean_nearest_cosine"] is None


@pytest.mark.parametrize("num", [3, 2000])
def test_identical_documents_are_each_others_neighbours(new_artifact, num: int) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    same = np.tile(unit_vectors(1), (num, 1))
    write_embeddings(embeddings, {"train": [same[: num // 2], same[num // 2 :]], "validation": [same[:1], same[:0]]})
    find_neighbors(NeighborsConfig(num_neighbors=2), embeddings=embeddings, out=out)
    for name, found in read_lists(out, "train").items():
        assert len({other for other, _ in found} - {name}) == 2
        assert [cosine for _, cosine in found] == pytest.approx([1.0] * 2, abs=1e-4)
        assert all(cosine <= 1 for _, cosine in found)


@pytest.mark.parametrize("small", [60, 59])
def test_few_documents_are_searched_without_a_task(new_artifact, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """There is a Ray, as far as this process knows; no step is given to it unless there are too many documents."""
    embeddings, given = new_artifact("embeddings"), []

    def note(*args: Any, **kwargs: Any) -> None:
        given.append(args)
        raise InterruptedError

    write_embeddings(embeddings, {"train": [unit_vectors(40)], "validation": [unit_vectors(20)]})
    monkeypatch.setattr(neighbors, "SMALL", small)
    monkeypatch.setattr(metrics, "ray_is_running", lambda: True)
    monkeypatch.setattr(ray.data, "from_items", note)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)

    def find() -> None:
        find_neighbors(NeighborsConfig(num_neighbors=5), embeddings=embeddings, out=new_artifact("neighbors"))

    if small < 60:
        with pytest.raises(InterruptedError):
            contextvars.Context().run(find)  # without the fixture's own say
    else:
        contextvars.Context().run(find)
    assert bool(given) == (small < 60)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(num_threads)


# Many documents: cells


def test_cells_find_what_the_certificate_says(new_artifact, small_cells: NeighborsConfig) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    shards = {"train": split_up(clustered_vectors(3000), 4), "validation": split_up(clustered_vectors(60), 4)}
    vectors = write_embeddings(embeddings, shards)
    stats = find_neighbors(small_cells, embeddings=embeddings, out=out)
    recall = stats["train"]["recall"]
    assert recall["groups"] > 3 and recall["queries"] == 300
    assert 1 < recall["copies"] < 0.8 * recall["groups"]  # much of the corpus was not looked at
    found, expected = read_lists(out, "train"), exact_lists(vectors, "train", 10)
    assert list(found) == list(expected)
    hits = [len({other for other, _ in found[name]} & {other for other, _ in expected[name]}) for name in expected]
    assert recall["low"] - 0.01 <= np.mean(hits) / 10 <= recall["high"] + 0.01
    assert np.mean(hits) / 10 >= 0.95
    for name, neighbors_of in found.items():
        others = [other for other, _ in neighbors_of]
        assert len(set(others) - {name}) == len(others) <= 10
        cosines = dict(zip(others, [cosine for _, cosine in neighbors_of], strict=True))
        for other, cosine in expected[name]:
            assert other not in cosines or cosines[other] == pytest.approx(cosine, abs=1e-4)


def test_the_graph_is_the_same_to_the_bit_in_either_arithmetic(
    new_artifact, small_cells: NeighborsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups, margins, cells, lists and the certificate: all come from products that are exact integers."""
    embeddings = new_artifact("embeddings")
    shards = {"train": split_up(clustered_vectors(3000), 2), "validation": split_up(clustered_vectors(60), 2)}
    write_embeddings(embeddings, shards)
    made = []
    for dtype in (torch.int8, torch.float32):
        monkeypatch.setattr(quantize, "choose_dtype", lambda use, wanted, dtype=dtype: dtype)
        out = new_artifact(f"neighbors in {dtype}")
        stats = find_neighbors(small_cells, embeddings=embeddings, out=out)
        assert stats["train"]["recall"]["groups"] > 3
        made.append((stats, [out.read_table(name) for name in out.files("train", ".parquet")]))
    assert made[0] == made[1]


def test_more_cells_are_searched_until_the_recall_is_reached(
    new_artifact, small_cells: NeighborsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    shards = {"train": split_up(clustered_vectors(3000), 2), "validation": split_up(clustered_vectors(60), 2)}
    vectors = write_embeddings(embeddings, shards)
    monkeypatch.setattr(search_plan, "BORDER_SHARE", 2)  # the first attempt may lose 10 % of the neighbours at borders
    recall = find_neighbors(small_cells, embeddings=embeddings, out=out)["train"]["recall"]
    assert recall["attempt"] > 0 and recall["low"] >= 0.95
    found, expected = read_lists(out, "train"), exact_lists(vectors, "train", 10)
    hits = [len({other for other, _ in found[name]} & {other for other, _ in expected[name]}) for name in expected]
    assert np.mean(hits) / 10 >= 0.95


def test_a_recall_that_cannot_be_reached_is_an_error_that_says_what_to_change(
    new_artifact, small_cells: NeighborsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    write_embeddings(embeddings, {"train": split_up(unit_vectors(3000), 2), "validation": [unit_vectors(5)] * 2})
    blind = small_cells.model_copy(update={"probes": 1})
    monkeypatch.setattr(search_plan, "BORDER_SHARE", 8)
    with pytest.raises(SbpError, match=r"train: recall@10 is 0\.\d+ .* neighbors\.min_recall is 0\.95: .*probes \(1\)"):
        find_neighbors(blind, embeddings=embeddings, out=out)


def test_a_recall_that_only_rounding_lifts_is_not_enough(
    new_artifact, small_cells: NeighborsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    write_embeddings(embeddings, {"train": split_up(unit_vectors(300), 2), "validation": [unit_vectors(5)] * 2})
    monkeypatch.setattr(recall, "interval", lambda shares, num: (0.96, 0.94996, 0.97))
    with pytest.raises(SbpError, match=r"recall@10 is 0.96 \[0.9499, 0.97\]"):
        find_neighbors(small_cells, embeddings=embeddings, out=out)


@pytest.mark.parametrize("commits_before", [1, 4, 8, 10, 12, 15, 17])
def test_a_killed_search_goes_on_and_ends_alike(
    new_artifact,
    small_cells: NeighborsConfig,
    commits_before: int,
    in_process: WorkedOn,
) -> None:
    embeddings = new_artifact("embeddings")
    shards = {"train": split_up(clustered_vectors(2500), 3), "validation": split_up(clustered_vectors(60), 3)}
    write_embeddings(embeddings, shards)
    undisturbed, out = new_artifact("undisturbed"), new_artifact("neighbors")
    expected = find_neighbors(small_cells, embeddings=embeddings, out=undisturbed)
    in_process.interrupt_after(commits_before)
    with pytest.raises(KeyboardInterrupt):
        find_neighbors(small_cells, embeddings=embeddings, out=out)
    num_all = len(in_process) - commits_before
    in_process.clear()
    assert find_neighbors(small_cells, embeddings=embeddings, out=out) == expected
    assert len(in_process) == num_all - commits_before  # what was committed was not done again
    for split in ("train", "validation"):
        for name in undisturbed.files(split):
            assert out.read_table(name).equals(undisturbed.read_table(name))


# Bad input


def test_shards_of_different_dimension_are_refused(new_artifact) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    parts = {"train": [unit_vectors(2), unit_vectors(2, dim=8)], "validation": [unit_vectors(1), unit_vectors(1)]}
    write_embeddings(embeddings, parts)
    with pytest.raises(SbpError, match=r"00000.parquet holds 16-d vectors and others 8-d ones: .*--redo embed"):
        find_neighbors(NeighborsConfig(), embeddings=embeddings, out=out)


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_a_vector_without_direction_is_refused(new_artifact, value: float) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    bad = unit_vectors(3)
    bad[1] = value
    write_embeddings(embeddings, {"train": [bad], "validation": [unit_vectors(1)]})
    with pytest.raises(SbpError, match=rf"document {doc_id(1, 0, 1).hex()} is zero or not finite: .*--redo embed"):
        find_neighbors(NeighborsConfig(), embeddings=embeddings, out=out)


def test_a_missing_shard_is_refused(new_artifact) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    write_embeddings(embeddings, {"train": [unit_vectors(3)] * 3, "validation": [unit_vectors(1)] * 3})
    Path(embeddings.path("train/part-00001.parquet")).unlink()
    with pytest.raises(SbpError, match=r"train/part-00001.parquet is missing \(1 of 3 shards .*--redo embed"):
        find_neighbors(NeighborsConfig(), embeddings=embeddings, out=out)


def test_a_missing_last_shard_is_noticed_by_the_manifest(new_artifact) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    write_embeddings(embeddings, {"train": [unit_vectors(3)] * 3, "validation": [unit_vectors(1)] * 3})
    embeddings.write_json("manifest.json", {"stats": {"shards": 3}})
    Path(embeddings.path("train/part-00002.parquet")).unlink()
    with pytest.raises(SbpError, match=r"train/part-00002.parquet is missing"):
        find_neighbors(NeighborsConfig(), embeddings=embeddings, out=out)


def test_what_cannot_fit_is_refused_before_it_starts(new_artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    write_embeddings(embeddings, {"train": [unit_vectors(3)], "validation": [unit_vectors(1)]})
    cfg = NeighborsConfig(resources=Resources(num_workers=10_000))
    monkeypatch.setattr(search_limits, "_memory_gib", lambda: 0.5)
    with pytest.raises(SbpError, match=r"wants 3 workers of 0\.8 GiB for groups, there are 0\.5 GiB: lower"):
        find_neighbors(cfg, embeddings=embeddings, out=out)  # three splits: the other workers have nothing to do
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(100, 100, 0))
    with pytest.raises(SbpError, match=r"wants 0\.\d GiB of disk under .* 0\.0 GiB are free: free some"):
        find_neighbors(cfg, embeddings=embeddings, out=out)
    assert not out.exists("scratch")


def test_what_the_search_has_written_itself_counts_when_it_goes_on(
    new_artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six tenths of the plan are on the disk, and it has room for five more."""
    out = new_artifact("neighbors")
    made = search_plan.plan_search(NeighborsConfig(num_neighbors=10), [100_000], 384)
    written = int(0.6 * made.disk_gib * 2**30)
    scratch = Path(out.path("scratch/train-0/routed-00000.arrow"))
    scratch.parent.mkdir(parents=True)
    with scratch.open("wb") as file:
        file.truncate(written)
    free = int(0.5 * made.disk_gib * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(written + free, written, free))
    search_limits.refuse_what_cannot_fit([made], out)
    scratch.unlink()
    with pytest.raises(
        SbpError, match=r"wants 0\.\d GiB of disk under .*, 0\.0 GiB are written and 0\.\d GiB are free"
    ):
        search_limits.refuse_what_cannot_fit([made], out)


def test_both_splits_share_the_disk(new_artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    made = search_plan.plan_search(NeighborsConfig(num_neighbors=10), [100_000], 384)
    free = int(1.5 * made.disk_gib * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(free, 0, free))
    search_limits.refuse_what_cannot_fit([made], new_artifact("neighbors"))
    with pytest.raises(SbpError, match="GiB of disk"):
        search_limits.refuse_what_cannot_fit([made, made], new_artifact("neighbors"))


def test_a_group_whose_result_has_no_room_before_its_upload_says_so() -> None:
    with pytest.raises(SbpError, match=r"takes 1000000\.0 GiB of /.* until it is uploaded, and [\d.]+ GiB are free"):
        search_limits.refuse_small_machine(0.1, 0, 1e6)
    remote = search_limits.needs_of_group(NeighborsConfig(num_neighbors=10), 2**30, 16, is_remote=True)
    assert remote["scratch_gib"] == 8 + 33 * 10


def test_a_hot_spot_is_refused_before_its_group_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = NeighborsConfig(num_neighbors=10, worker_gib=1, resources=Resources(num_workers=3))
    small, large = (search_plan.group_gib(cfg, num, 384) for num in (100_000, 2_000_000))
    monkeypatch.setattr(search_limits, "_memory_gib", lambda: large + 2 * small + 0.1)
    search_limits.refuse_hot_spot(cfg, "train", [100_000, 2_000_000, 100_000, 100_000], 384)
    monkeypatch.setattr(search_limits, "_memory_gib", lambda: large + small + 0.1)
    fact = (
        r"group 1 of train holds 2,000,000 documents and takes \d+\.\d GiB, and neighbors.worker_gib is 1.0; 3 workers"
    )
    with pytest.raises(SbpError, match=fact + r" want .*--redo neighbors with neighbors.resources.num_workers=2$"):
        search_limits.refuse_hot_spot(cfg, "train", [100_000, 2_000_000, 100_000, 100_000], 384)
    monkeypatch.setattr(search_limits, "_memory_gib", lambda: large - 0.1)
    with pytest.raises(SbpError, match=r"give the node \d+ GiB, take copies out of the corpus"):
        search_limits.refuse_hot_spot(cfg, "train", [100_000, 2_000_000, 100_000, 100_000], 384)


def test_equal_documents_that_memory_does_not_hold_are_refused_after_routing(
    new_artifact, small_cells: NeighborsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    vectors = clustered_vectors(3000)
    vectors[np.random.default_rng(1).permutation(3000)[:2500]] = vectors[0]  # shards are random parts of a corpus
    write_embeddings(embeddings, {"train": split_up(vectors, 2), "validation": [unit_vectors(5)] * 2})
    monkeypatch.setattr(neighbors, "refuse_what_cannot_fit", lambda plans, out: None)  # the plan fits
    monkeypatch.setattr(search_limits, "_memory_gib", lambda: 0.5)
    with pytest.raises(SbpError, match=r"group \d+ of train holds 2,[5-9]\d\d documents and takes"):
        find_neighbors(small_cells, embeddings=embeddings, out=out)
    assert not [name for name in out.files("scratch/train-0") if "found" in name]


def test_groups_too_small_are_refused() -> None:
    with pytest.raises(SbpError, match=r"worker_gib=0.001 holds \d+ documents of 384 dimensions, less than two cells"):
        search_plan.plan_search(NeighborsConfig(worker_gib=0.001), [10**6], 384)


def test_the_number_of_groups_follows_from_the_workers_memory() -> None:
    """582 million documents of 1,024 dimensions, 32 GiB a worker: 13 KB a document, 7.5 copies of each."""
    made = search_plan.plan_search(NeighborsConfig(worker_gib=32), [582_000] * 1000, 1024)
    assert 1024 < made.groups < 2048
    search = next(step for step in made.steps if step.name == "search")
    assert 31 < search.worker_gib < 33


def test_a_machine_too_small_for_its_group_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SbpError, match=r"a group of the search wants 1000000.0 GiB, and the node has [\d.]+ GiB"):
        search_limits.refuse_small_machine(1e6, 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2 * 2**30))
    with pytest.raises(SbpError, match=r"wants 3\.0 GiB of GPU memory, and there are 2\.0 GiB"):
        search_limits.refuse_small_machine(0.1, 3)


def test_merging_takes_as_many_shards_at_once_as_fit() -> None:
    cfg = NeighborsConfig(num_neighbors=200, worker_gib=4, resources=Resources(num_threads=16, num_cpus=16))
    lists = 47_000 * (1 + 0.6 * 4) * (8 + 33 * 200)  # bytes of a shard's lists of 16 groups
    assert search_plan.shards_merged_at_once(cfg, 47_000, 16) == int((4 - 0.55) / (0.25 + 2.5 * lists / 2**30)) == 1
    assert search_plan.shards_merged_at_once(cfg, 1000, 16) == 11
    assert search_plan.shards_merged_at_once(cfg, 10**7, 16) == 1


@pytest.mark.parametrize("num_equal", [1, 2500])
def test_equal_documents_are_searched_in_one_group(new_artifact, small_cells: NeighborsConfig, num_equal: int) -> None:
    """All, or all but those of which each stands for itself."""
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    vectors = clustered_vectors(3000)
    vectors[np.random.default_rng(1).permutation(3000)[:num_equal]] = vectors[0]
    write_embeddings(embeddings, {"train": split_up(vectors, 2), "validation": [unit_vectors(5)] * 2})
    stats = find_neighbors(small_cells, embeddings=embeddings, out=out)
    assert stats["train"]["recall"]["groups"] > 1
    assert stats["train"]["recall"]["copies"] < 2
    assert stats["train"]["recall"]["low"] >= 0.95


def test_nothing_but_equal_documents_is_one_group(new_artifact, small_cells: NeighborsConfig) -> None:
    embeddings, out = new_artifact("embeddings"), new_artifact("neighbors")
    vectors = np.repeat(unit_vectors(1), 3000, axis=0)
    write_embeddings(embeddings, {"train": split_up(vectors, 2), "validation": [unit_vectors(5)] * 2})
    stats = find_neighbors(small_cells, embeddings=embeddings, out=out)
    assert stats["train"]["recall"]["groups"] == 1
    assert stats["train"]["neighbors"] == 3000 * small_cells.num_neighbors
