from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PairConfig
from sbp_ray.errors import SbpError
from sbp_ray.neighbors.histogram import cosine_histogram
from sbp_ray.schema import DOCUMENT, NEIGHBORS, PAIR, shard_of
from sbp_ray.stages import pair
from sbp_ray.stages.pair import near_duplicate, pair_documents
from sbp_ray.text.shingles import shingle_hashes

pytestmark = pytest.mark.usefixtures("in_process")

NUM_SHARDS = 3
Lists = Mapping[int, Mapping[int, float]]


def doc(number: int) -> str:
    """An id whose shard is `number` modulo 3."""
    return f"{number:08x}" + "0" * 24


def write_split(
    corpus: Artifact, neighbors: Artifact, split: str, lists: Lists, tokens: Mapping[int, list[int]], groups: Any
) -> None:
    for shard in range(NUM_SHARDS):
        numbers = sorted(number for number in lists if shard_of(doc(number), NUM_SHARDS) == shard)
        documents = [
            {
                "doc_id": doc(n),
                "group": groups(n),
                "text": "",
                "input_ids": tokens.get(n, list(range(1000 * n, 1000 * n + 50))),
            }
            for n in numbers
        ]
        rows, cosines = [], []
        for n in numbers:
            found = sorted(lists[n].items(), key=lambda item: -item[1])
            cosines += [cosine for _, cosine in found]
            rows.append(
                {"doc_id": doc(n), "neighbor_ids": [doc(o) for o, _ in found], "cosines": [c for _, c in found]}
            )
        name = f"{split}/part-{shard:05d}.parquet"
        corpus.write_table(name, pa.Table.from_pylist(documents, DOCUMENT))
        histogram = cosine_histogram(pa.array(cosines, pa.float32()).to_numpy())
        neighbors.write_table(name, pa.Table.from_pylist(rows, NEIGHBORS), stats={"histogram_all": histogram})


@pytest.fixture
def run_pair(new_artifact):
    """Pair documents given as `{number: {neighbour: cosine}}`; returns `{(d1, d2): cosine}` and the stats."""

    def run(lists: Lists, *, tokens: Mapping[int, list[int]] = {}, groups: Any = str, **settings: Any) -> Any:
        corpus, neighbors, out = (new_artifact(name) for name in ("corpus", "neighbors", "pairs"))
        write_split(corpus, neighbors, "train", lists, tokens, groups)
        write_split(corpus, neighbors, "validation", {0: {}, 1: {}}, {}, groups)
        stats = pair_documents(PairConfig(**settings), corpus=corpus, neighbors=neighbors, out=out)
        return read_pairs(out), stats["train"]

    return run


def read_pairs(out: Artifact) -> dict[tuple[int, int], float]:
    rows = [row for name in out.files("train") for row in out.read_table(name).to_pylist()]
    return {(int(r["d1_id"][:8], 16), int(r["d2_id"][:8], 16)): round(r["cosine"], 4) for r in rows}


def test_only_the_band_is_kept_edges_included(run_pair) -> None:
    pairs, stats = run_pair(
        {0: {1: 0.59, 2: 0.6, 3: 0.8, 4: 0.81}, 1: {}, 2: {}, 3: {}, 4: {}}, min_cosine=0.6, max_cosine=0.8
    )
    assert pairs == {(0, 2): 0.6, (0, 3): 0.8, (2, 0): 0.6, (3, 0): 0.8}
    assert stats["drops"] == {"below_min_cosine": 1, "above_max_cosine": 1}


def test_both_directions_are_there_once_whoever_lists_whom(run_pair) -> None:
    pairs, stats = run_pair({0: {1: 0.9, 2: 0.8}, 1: {0: 0.9, 3: 0.85}, 2: {}, 3: {1: 0.85001}}, min_cosine=0.5)
    assert pairs == {
        (0, 1): 0.9,
        (1, 0): 0.9,
        (0, 2): 0.8,
        (2, 0): 0.8,
        (1, 3): 0.85,
        (3, 1): 0.85,
    }
    assert (stats["pairs"], stats["documents_with_pair"], stats["documents"]) == (6, 4, 4)
    assert stats["histogram"] == {"0.80": 2, "0.85": 2, "0.90": 2}


def test_a_pair_lies_in_the_shard_of_its_d1_most_similar_first(run_pair, new_artifact) -> None:
    run_pair({0: {1: 0.7, 2: 0.9, 3: 0.7}, 1: {}, 2: {}, 3: {}}, min_cosine=0.5)
    out = new_artifact("pairs")
    for shard, name in enumerate(out.files("train")):
        table = out.read_table(name)
        assert table.schema.remove_metadata() == PAIR
        assert all(shard_of(d1_id, NUM_SHARDS) == shard for d1_id in table.column("d1_id").to_pylist())
    first = out.read_table("train/part-00000.parquet").to_pylist()
    assert [row["d2_id"] for row in first] == [doc(2), doc(1), doc(3), doc(0)]  # of 0: ties by id; of 3
    assert not out.exists("scratch")


def test_near_duplicates_go_in_both_directions(run_pair) -> None:
    tokens = {
        0: list(range(100)),  # 88 shingles of 13 tokens
        1: list(range(80)),  # 68 of them: Jaccard 68/88 = 0.77
        2: list(range(30)),  # 18 of them: Jaccard 18/88 = 0.20, but wholly contained
        3: [*range(50), *range(500, 600)],  # 38 in common of 138: Jaccard 38/188 = 0.20, containment 38/88 = 0.43
    }
    pairs, stats = run_pair({0: {1: 0.9, 2: 0.9, 3: 0.9}, 1: {}, 2: {}, 3: {}}, tokens=tokens, min_cosine=0.5)
    assert pairs == {(0, 3): 0.9, (3, 0): 0.9}
    assert stats["drops"] == {"near_duplicate_jaccard": 2, "near_duplicate_containment": 2}


@pytest.mark.parametrize(
    ("max_jaccard", "max_containment", "reason"),
    [
        (0.5, 1.0, "near_duplicate_jaccard"),
        (0.6, 1.0, None),  # 18 of 30 shingles: equal to the limit is not above it
        (0.6, 0.7, "near_duplicate_containment"),
        (0.6, 0.75, None),
    ],
)
def test_limits_are_inclusive(max_jaccard: float, max_containment: float, reason: str | None) -> None:
    a, b = shingle_hashes(range(36)), shingle_hashes(range(6, 42))  # 24 each, 18 in common, 30 in all
    cfg = PairConfig(max_jaccard=max_jaccard, max_containment=max_containment)
    assert near_duplicate(a, b, cfg) == reason
    assert near_duplicate(b, a, cfg) == reason


def test_the_jaccard_of_a_pair_is_recorded(run_pair, new_artifact) -> None:
    tokens = {0: list(range(36)), 1: list(range(12, 48))}  # 24 each, 12 in common, 36 in all
    run_pair({0: {1: 0.9}, 1: {}}, tokens=tokens, min_cosine=0.5)
    [row] = new_artifact("pairs").read_table("train/part-00000.parquet").to_pylist()
    assert row["jaccard"] == pytest.approx(12 / 36)


def test_a_hub_is_d2_of_its_most_similar_documents_only(run_pair) -> None:
    lists: dict[int, dict[int, float]] = {0: {}} | {n: {0: 0.9 - n / 100} for n in range(1, 6)}
    lists[5] = {0: 0.88}  # as similar as 2, which comes first by its id
    pairs, stats = run_pair(lists, min_cosine=0.5, max_appearances=2)
    assert {pair for pair in pairs if pair[1] == 0} == {(1, 0), (2, 0)}
    assert {pair for pair in pairs if pair[0] == 0} == {(0, n) for n in range(1, 6)}  # as d1 it is free
    assert stats["drops"] == {"hub_cap": 3}
    assert stats["pairs"] == 7


def test_the_share_of_pairs_within_a_group(run_pair) -> None:
    _, stats = run_pair(
        {0: {1: 0.9, 2: 0.8}, 1: {2: 0.7}, 2: {}}, min_cosine=0.5, groups=lambda n: "a" if n < 2 else "b"
    )
    assert stats["same_group_share"] == pytest.approx(1 / 3, abs=1e-4)


def test_no_pairs_says_what_there_is_and_which_threshold_gives_some(run_pair, new_artifact) -> None:
    lists = {n: {(n + 1) % 20: 0.42 if n < 3 else 0.31} for n in range(20)}
    with pytest.raises(SbpError) as error:
        run_pair(lists, min_cosine=0.6)
    message = str(error.value)
    assert "\n" not in message
    assert "no pairs with pair.min_cosine=0.6, pair.max_cosine=1.0 (20 below_min_cosine)" in message
    assert "cosines of neighbours 0.30:17 0.40:3" in message
    assert "--redo pair pair.min_cosine=0.40, which keeps about 3 for 20 documents" in message
    shutil.rmtree(new_artifact("pairs").path())  # as --redo does
    pairs, _ = run_pair(lists, min_cosine=0.40)
    assert len(pairs) == 6


def test_no_pairs_because_all_are_copies_says_so(run_pair) -> None:
    same = {n: list(range(50)) for n in range(3)}
    with pytest.raises(SbpError, match=r"2 near_duplicate_jaccard.*raise pair.max_jaccard and pair.max_containment"):
        run_pair({0: {1: 0.97}, 1: {0: 0.97}, 2: {}}, tokens=same, min_cosine=0.5)


def test_no_pairs_because_there_is_one_document_says_so(run_pair) -> None:
    with pytest.raises(SbpError, match=r"no neighbours.*at least two documents"):
        run_pair({0: {}})


@pytest.mark.parametrize("survivors", [0, 1, 5, 6, 9, 12, 17])
def test_an_interrupted_run_goes_on_and_ends_alike(
    new_artifact, monkeypatch: pytest.MonkeyPatch, in_process: list, survivors: int
) -> None:
    corpus, neighbors = new_artifact("corpus"), new_artifact("neighbors")
    lists = {n: {(n + 1) % 12: 0.9, (n + 5) % 12: 0.7} for n in range(12)}
    for split in ("train", "validation"):
        write_split(corpus, neighbors, split, lists, {}, str)
    inputs: dict[str, Any] = {"corpus": corpus, "neighbors": neighbors}
    cfg = PairConfig(min_cosine=0.5, max_appearances=3)
    whole = pair_documents(cfg, out=new_artifact("whole"), **inputs)
    steps = sorted(map(str, in_process))
    assert len(steps) == 18
    in_process.clear()
    run_here, calls = pair.map_shards, 0

    def dying(stage: str, worker: type, arguments: tuple, todo: list, **settings: Any) -> None:
        nonlocal calls
        for item in todo:
            if calls == survivors:
                raise KeyboardInterrupt
            calls += 1
            run_here(stage, worker, arguments, [item], **settings)

    out = new_artifact("pairs")
    monkeypatch.setattr(pair, "map_shards", dying)
    with pytest.raises(KeyboardInterrupt):
        pair_documents(cfg, out=out, **inputs)
    monkeypatch.setattr(pair, "map_shards", run_here)
    assert pair_documents(cfg, out=out, **inputs) == whole
    assert sorted(map(str, in_process)) == steps  # nothing twice
    assert read_pairs(out) == read_pairs(new_artifact("whole"))
    in_process.clear()
    assert pair_documents(cfg, out=out, **inputs) == whole
    assert in_process == []


def test_a_run_killed_while_it_cleaned_up_is_complete(new_artifact, in_process: list) -> None:
    corpus, neighbors, out = (new_artifact(name) for name in ("corpus", "neighbors", "pairs"))
    for split in ("train", "validation"):
        write_split(corpus, neighbors, split, {0: {1: 0.9}, 1: {}}, {}, str)
    whole = pair_documents(PairConfig(), corpus=corpus, neighbors=neighbors, out=out)
    out.write_bytes("scratch/listed-train/part-00001.parquet", b"what was left")
    os.makedirs(out.path("scratch/judged-train"))
    in_process.clear()
    assert pair_documents(PairConfig(), corpus=corpus, neighbors=neighbors, out=out) == whole
    assert in_process == []
    assert not out.exists("scratch")
