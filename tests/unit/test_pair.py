from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from worked_on import WorkedOn

from sbp_ray.artifacts import Artifact
from sbp_ray.config import PairConfig
from sbp_ray.errors import SbpError
from sbp_ray.pairing.candidates import TEXT_REASONS, judge_texts
from sbp_ray.schema import NEIGHBORS, PAIR, shard_of
from sbp_ray.stages import pair
from sbp_ray.stages.pair import pair_documents

pytestmark = pytest.mark.usefixtures("in_process")

NUM_SHARDS = 3
Lists = Mapping[int, Mapping[int, float]]
Alike = Mapping[tuple[int, int], tuple[float, float]]
"""Jaccard and containment of two documents, the lower number first; what is not there shares nothing."""
NOTHING: Alike = MappingProxyType({})
Content = Mapping[tuple[int, int], float]
"""Overlap of the content words of two documents."""
NO_CONTENT: Content = MappingProxyType({})


def doc(number: int) -> bytes:
    """An id whose shard is `number` modulo 3."""
    return number.to_bytes(4, "big") + bytes(12)


def write_split(
    neighbors: Artifact,
    split: str,
    lists: Lists,
    alike: Alike = NOTHING,
    group: Callable[[int], Any] = str,
    content: Content = NO_CONTENT,
) -> None:
    def look_up(n: int, o: int) -> tuple[float, float]:
        return alike.get((min(n, o), max(n, o)), (0.0, 0.0))

    for shard in range(NUM_SHARDS):
        rows = []
        for n in sorted(number for number in lists if shard_of(doc(number), NUM_SHARDS) == shard):
            found = sorted(lists[n], key=lambda o: -lists[n][o])
            rows.append(
                {
                    "doc_id": doc(n),
                    "neighbor_ids": [doc(o) for o in found],
                    "cosines": [lists[n][o] for o in found],
                    "jaccards": [look_up(n, o)[0] for o in found],
                    "containments": [look_up(n, o)[1] for o in found],
                    "content_overlaps": [content.get((min(n, o), max(n, o)), 0.0) for o in found],
                    "same_group": [group(n) == group(o) for o in found],
                }
            )
        neighbors.write_table(f"{split}/part-{shard:05d}.parquet", pa.Table.from_pylist(rows, NEIGHBORS))


@pytest.fixture
def run_pair(new_artifact):
    """Pair documents given as `{number: {neighbour: cosine}}`; returns `{(d1, d2): cosine}` and the stats."""

    def run(
        lists: Lists,
        *,
        alike: Alike = NOTHING,
        group: Callable[[int], Any] = str,
        content: Content = NO_CONTENT,
        **settings: Any,
    ) -> Any:
        neighbors, out = new_artifact("neighbors"), new_artifact("pairs")
        write_split(neighbors, "train", lists, alike, group, content)
        write_split(neighbors, "validation", {0: {}, 1: {}})
        stats = pair_documents(PairConfig(**settings), neighbors=neighbors, out=out)
        return read_pairs(out), stats["train"]

    return run


def read_guide(out: Artifact) -> dict[str, Any]:
    return json.loads(out.read_bytes("guide.json"))["train"]


def number_of(doc_id: bytes) -> int:
    """The inverse of `doc`."""
    return int.from_bytes(doc_id[:4], "big")


def read_pairs(out: Artifact) -> dict[tuple[int, int], float]:
    rows = [row for name in out.files("train") for row in out.read_table(name).to_pylist()]
    return {(number_of(r["d1_id"]), number_of(r["d2_id"])): round(r["cosine"] or 0.0, 4) for r in rows}


def test_random_pairs_keep_each_d1_as_often_and_get_any_other_d2(run_pair, new_artifact) -> None:
    lists: Lists = {
        n: {o: 0.9 - 0.01 * abs(n - o) for o in range(n // 4 * 4, n // 4 * 4 + 4) if o != n} for n in range(40)
    }
    mined, mined_stats = run_pair(lists, min_cosine=0.5)
    shutil.rmtree(new_artifact("pairs").path())
    random, stats = run_pair(lists, min_cosine=0.5, source="random")
    assert sorted(d1 for d1, _ in random) == sorted(d1 for d1, _ in mined)  # of which no pair is there twice
    assert all(d1 != d2 and 0 <= d2 < 40 for d1, d2 in random)
    assert len({d2 for _, d2 in random}) > 30  # 120 draws of 40 documents leave out two on average
    assert sum(d1 // 4 == d2 // 4 for d1, d2 in random) < 30  # by chance 3 of 39: nine or so
    assert (stats["pairs"], stats["documents_with_pair"]) == (mined_stats["pairs"], mined_stats["documents_with_pair"])
    assert stats["same_group_share"] is None
    out = new_artifact("pairs")
    for shard, name in enumerate(out.files("train")):
        assert all(shard_of(d1_id, NUM_SHARDS) == shard for d1_id in out.read_table(name)["d1_id"].to_pylist())
    assert not out.exists("scratch")
    shutil.rmtree(out.path())
    assert set(run_pair(lists, min_cosine=0.5, source="random", seed=1)[0]) != set(random)


def test_random_pairs_go_on_shard_by_shard(run_pair, new_artifact, in_process) -> None:
    lists: Lists = {n: {o: 0.9 for o in range(12) if o != n} for n in range(12)}
    random, _ = run_pair(lists, min_cosine=0.5, source="random")
    assert len(random) == 12 * 11  # every other document, each once
    out = new_artifact("pairs")
    shutil.rmtree(out.path())

    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair.RandomPairer, "_shuffle", fail)
        with pytest.raises(OSError, match="full"):
            run_pair(lists, min_cosine=0.5, source="random")
    in_process.clear()
    assert run_pair(lists, min_cosine=0.5, source="random")[0] == random
    assert {stage for stage, _ in in_process} == {"pair-shuffle"}


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


def test_near_duplicates_go_in_both_directions_by_reason(run_pair) -> None:
    alike = {(0, 1): (0.77, 0.9), (0, 2): (0.2, 1.0), (0, 3): (0.2, 0.43)}
    lists: Lists = {0: {1: 0.9, 2: 0.9, 3: 0.9}, 1: {0: 0.9}, 2: {}, 3: {}}
    pairs, stats = run_pair(lists, alike=alike, min_cosine=0.5)
    assert pairs == {(0, 3): 0.9, (3, 0): 0.9}
    assert stats["drops"] == {"near_duplicate_jaccard": 2, "near_duplicate_containment": 1}  # as often as listed


@pytest.mark.parametrize(
    ("max_jaccard", "max_containment", "reason"),
    [
        (0.5, 1.0, "near_duplicate_jaccard"),
        (0.6, 1.0, None),  # equal to the limit is not above it
        (0.6, 0.7, "near_duplicate_containment"),
        (0.6, 0.75, None),
    ],
)
def test_limits_are_inclusive(run_pair, max_jaccard: float, max_containment: float, reason: str | None) -> None:
    lists: Lists = {0: {1: 0.9, 2: 0.9}, 1: {}, 2: {}}
    limits = {"max_jaccard": max_jaccard, "max_containment": max_containment}
    pairs, stats = run_pair(lists, alike={(0, 1): (0.6, 0.75)}, min_cosine=0.5, **limits)
    assert ((0, 1) in pairs, (1, 0) in pairs) == (reason is None, reason is None)
    assert stats["drops"] == ({reason: 1} if reason else {})


def test_an_update_shares_content_words_and_some_runs(run_pair) -> None:
    lists: Lists = {0: {1: 0.9, 2: 0.9, 3: 0.9, 4: 0.9}} | {n: {} for n in range(1, 5)}
    alike = {(0, 1): (0.03, 0.06), (0, 2): (0.02, 0.04), (0, 3): (0.1, 0.2)}
    content = {(0, 1): 0.85, (0, 2): 0.85, (0, 3): 0.75, (0, 4): 0.9}  # 2 and 4 are about the same, in other words
    pairs, stats = run_pair(lists, alike=alike, content=content, min_cosine=0.5)
    assert {d2 for d1, d2 in pairs if d1 == 0} == {2, 3, 4}
    assert stats["drops"] == {"near_duplicate_update": 1}
    assert (
        judge_texts(*(np.array([value], np.float32) for value in (0.1, 0.2, 1.0)), PairConfig(max_content_overlap=1))
        == 0
    )


def test_pairs_that_share_their_form_alone_go_where_it_is_asked_for(run_pair, new_artifact) -> None:
    lists: Lists = {0: {1: 0.9, 2: 0.9, 3: 0.9}, 1: {}, 2: {}, 3: {}}
    content = {(0, 1): 0.0, (0, 2): 0.019, (0, 3): 0.021}
    assert len(run_pair(lists, content=content, min_cosine=0.5)[0]) == 6
    shutil.rmtree(new_artifact("pairs").path())
    pairs, stats = run_pair(lists, content=content, min_cosine=0.5, min_content_overlap=0.02)
    assert pairs == {(0, 3): 0.9, (3, 0): 0.9}
    assert stats["drops"] == {"form_only": 2}


def test_the_guide_recommends_the_lowest_of_the_bands_in_which_three_quarters_share_content(
    run_pair, new_artifact
) -> None:
    shares = {0.82: 11, 0.72: 9, 0.62: 8, 0.52: 12}  # of twelve pairs each: 0.52 lies below a band that does not
    lists: dict[int, dict[int, float]] = {n: {} for n in range(200)}
    content = {}
    for band, (cosine, number) in enumerate(shares.items()):
        for place in range(12):
            first = 24 * band + 2 * place
            lists[first] = {first + 1: cosine}
            content[first, first + 1] = 0.1 if place < number else 0.0
    run_pair(lists, content=content, min_cosine=0.6)
    recommended = read_guide(new_artifact("pairs"))["recommended"]
    assert recommended["min_cosine"] == 0.7
    assert "75% in the lowest of these bands, 67% in the one below it" in recommended["reason"]
    shutil.rmtree(new_artifact("pairs").path())
    run_pair(lists, content={}, min_cosine=0.6)
    assert read_guide(new_artifact("pairs"))["recommended"]["min_cosine"] is None


def test_the_jaccard_of_a_pair_is_recorded(run_pair, new_artifact) -> None:
    run_pair({0: {1: 0.9}, 1: {}}, alike={(0, 1): (0.25, 0.4)}, min_cosine=0.5)
    for shard in (0, 1):
        [row] = new_artifact("pairs").read_table(f"train/part-{shard:05d}.parquet").to_pylist()
        assert row["jaccard"] == 0.25


def test_a_hub_is_d2_of_its_most_similar_documents_only(run_pair) -> None:
    lists: dict[int, dict[int, float]] = {0: {}} | {n: {0: 0.9 - n / 100} for n in range(1, 6)}
    lists[5] = {0: 0.88}  # as similar as 2, which comes first by its id
    pairs, stats = run_pair(lists, min_cosine=0.5, max_as_d2=2)
    assert {pair for pair in pairs if pair[1] == 0} == {(1, 0), (2, 0)}
    assert {pair for pair in pairs if pair[0] == 0} == {(0, n) for n in range(1, 6)}  # as d1 it is free
    assert stats["drops"] == {"d2_cap": 3}
    assert stats["pairs"] == 7


def test_a_document_is_d1_of_its_most_similar_documents_only(run_pair) -> None:
    lists: dict[int, dict[int, float]] = {0: {n: 0.9 - n / 100 for n in range(1, 6)}}
    pairs, stats = run_pair(lists | {n: {} for n in range(1, 6)}, min_cosine=0.5, max_as_d1=2)
    assert {pair for pair in pairs if pair[0] == 0} == {(0, 1), (0, 2)}
    assert {pair for pair in pairs if pair[1] == 0} == {(n, 0) for n in range(1, 6)}  # as d2 it is free
    assert stats["drops"] == {"d1_cap": 3}


def test_a_place_that_a_hub_leaves_goes_to_the_next_d2(run_pair) -> None:
    lists: Lists = {0: {1: 0.95, 2: 0.9}, 1: {}, 2: {}, 3: {1: 0.96}}  # 1 is d2 of 3 only, its nearest
    pairs, stats = run_pair(lists, min_cosine=0.5, max_as_d1=1, max_as_d2=1)
    assert pairs == {(0, 2): 0.9, (1, 3): 0.96, (3, 1): 0.96}
    assert stats["drops"] == {"d2_cap": 2, "d1_cap": 1}  # (0, 1) and (2, 0); then (1, 0), for whose d1 3 is nearer


def random_lists(rng: np.random.Generator, num_documents: int, num_neighbors: int) -> dict[int, dict[int, float]]:
    """Each lists some others; two that list each other may disagree in the last bit."""
    cosines = np.round(rng.uniform(0.3, 1.0, (num_documents, num_documents)), 2)  # ties too
    cosines = (np.triu(cosines) + np.triu(cosines, 1).T).astype(np.float32)
    lists = {}
    for n in range(num_documents):
        others = rng.permutation(np.delete(np.arange(num_documents), n))[:num_neighbors]
        hubs = [0] if n else []  # 0 is in every list
        listed = {int(o): float(cosines[n, o]) for o in [*others, *hubs]}
        lists[n] = {o: float(np.nextafter(np.float32(c), np.float32(rng.integers(0, 2)))) for o, c in listed.items()}
    return lists


def brute_force(lists: Lists, alike: Alike, cfg: PairConfig) -> dict[tuple[int, int], float]:
    """The same by loops over pairs."""
    found: dict[tuple[int, int], float] = {}
    for n, listed in lists.items():
        for o, cosine in listed.items():
            jaccard, containment = alike.get((min(n, o), max(n, o)), (0.0, 0.0))
            in_band = np.float32(cfg.min_cosine) <= np.float32(cosine) <= np.float32(cfg.max_cosine)
            if in_band and jaccard <= cfg.max_jaccard and containment <= cfg.max_containment:
                for key in ((n, o), (o, n)):
                    found[key] = max(cosine, found.get(key, 0))
    for end, limit in ((1, cfg.max_as_d2), (0, cfg.max_as_d1)):
        kept = {}
        for document in {key[end] for key in found}:
            rows = sorted((key for key in found if key[end] == document), key=lambda k: (-found[k], k[1 - end]))
            kept |= {key: found[key] for key in rows[:limit]}
        found = kept
    return {key: round(cosine, 4) for key, cosine in found.items()}


@pytest.mark.parametrize("settings", [{}, {"max_as_d1": 4}, {"max_as_d2": 3}, {"max_as_d1": 3, "max_as_d2": 5}])
def test_many_pairs_are_those_of_loops_over_all_pairs(run_pair, settings: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    lists = random_lists(rng, num_documents=40, num_neighbors=12)
    alike = {(n, o): (round(rng.uniform(0.3, 0.7), 2), 0.0) for n in range(40) for o in range(n + 1, 40) if n % 3 == 0}
    cfg = PairConfig(min_cosine=0.5, max_cosine=0.95, **settings)
    pairs, _ = run_pair(lists, alike=alike, **cfg.model_dump(exclude={"resources"}))
    assert pairs == brute_force(lists, alike, cfg)
    assert len(pairs) > 100


def test_the_guide_counts_each_band(run_pair, new_artifact) -> None:
    lists: Lists = {0: {1: 0.92, 2: 0.71, 3: 0.42}, 1: {0: 0.92}, 2: {}, 3: {}}
    run_pair(lists, alike={(0, 1): (0.9, 0.9)}, content={(0, 1): 0.9, (0, 2): 0.01, (0, 3): 0.3}, min_cosine=0.7)
    none = dict.fromkeys((*TEXT_REASONS, "related"), 0)
    assert read_guide(new_artifact("pairs"))["bands"] == [
        {"band": "0.40", "listed": 1, **none, "related": 1, "pairs": 0},
        {"band": "0.70", "listed": 1, **none, "pairs": 2},
        {"band": "0.90", "listed": 2, **none, "near_duplicate_jaccard": 2, "pairs": 0},
    ]


def test_the_guide_says_what_every_threshold_gives_also_below_the_chosen_one(run_pair, new_artifact) -> None:
    lists: Lists = {0: {1: 0.92, 2: 0.71, 3: 0.42}, 1: {0: 0.92}, 2: {}, 3: {}}
    run_pair(lists, alike={(0, 1): (0.9, 0.9)}, min_cosine=0.7)
    columns = ("min_cosine", "listed", "duplicate_share", "documents_share", "pairs", "full_share")
    assert [tuple(row[key] for key in columns) for row in read_guide(new_artifact("pairs"))["thresholds"]] == [
        (0.4, 4, 0.5, 0.75, 4, 0.5),
        (0.7, 3, 0.6667, 0.5, 2, 0.25),
        (0.9, 2, 1.0, 0.0, 0, 0.25),
    ]


def test_the_guide_is_right_about_runs_with_its_thresholds(run_pair, new_artifact) -> None:
    lists = random_lists(np.random.default_rng(1), num_documents=40, num_neighbors=12)
    run_pair(lists, min_cosine=0.9, max_as_d2=6)
    rows = read_guide(new_artifact("pairs"))["thresholds"]
    assert [row["min_cosine"] for row in rows] == pytest.approx([0.3 + 0.05 * n for n in range(14)])
    for row in rows[::3]:
        shutil.rmtree(new_artifact("pairs").path())
        pairs, stats = run_pair(lists, min_cosine=row["min_cosine"] - 1e-6, max_as_d2=6)
        assert row["pairs"] == len(pairs) == stats["pairs"]
        assert row["documents_share"] == pytest.approx(len({d2 for _, d2 in pairs}) / 40)


def test_degrees_are_counted_before_and_after_the_caps(run_pair, new_artifact) -> None:
    lists: dict[int, dict[int, float]] = {0: {}} | {n: {0: 0.9 - n / 100} for n in range(1, 7)}
    run_pair(lists, min_cosine=0.5, max_as_d2=4, max_as_d1=2)
    degrees = read_guide(new_artifact("pairs"))["degrees"]
    assert degrees["listed_by"] == {"mean": 0.86, "p50": 0, "p90": 6, "p99": 6, "max": 6, "histogram": {"0": 6, "4": 1}}
    assert degrees["as_d2"] == {"mean": 1.43, "p50": 1, "p90": 4, "p99": 4, "max": 4, "histogram": {"1": 6, "4": 1}}
    assert degrees["as_d1"] == {
        "mean": 0.86, "p50": 1, "p90": 2, "p99": 2, "max": 2, "histogram": {"0": 2, "1": 4, "2": 1},
    }  # fmt: skip


def test_sample_pairs_come_from_every_band_and_are_the_same_in_every_run(run_pair, new_artifact) -> None:
    lists = random_lists(np.random.default_rng(2), num_documents=40, num_neighbors=12)
    alike = {(n, o): (0.9, 0.9) for n in range(10) for o in range(n + 1, 40)}
    run_pair(lists, alike=alike, min_cosine=0.6)
    samples = read_guide(new_artifact("pairs"))["samples"]
    per_band: dict[tuple[str, Any], int] = {}
    for one in samples:
        n, o = (int(one[key][:8], 16) for key in ("d1_id", "d2_id"))
        assert one["dropped"] == ("near_duplicate_jaccard" if (n, o) in alike else None)
        assert one["cosine"] == pytest.approx(lists[n].get(o, lists[o].get(n)), abs=1e-4)
        assert float(one["band"]) <= one["cosine"] + 1e-4 < float(one["band"]) + 0.05 + 2e-4
        key = (one["band"], one["dropped"])
        per_band[key] = per_band.get(key, 0) + 1
    assert all(number == 3 for (_, reason), number in per_band.items() if reason)
    assert all(8 < number <= 20 for (_, reason), number in per_band.items() if not reason)
    assert len(per_band) == 2 * 14  # 0.30, …, 0.95; below the threshold too
    shutil.rmtree(new_artifact("pairs").path())
    run_pair(dict(reversed(lists.items())), alike=alike, min_cosine=0.8)
    assert read_guide(new_artifact("pairs"))["samples"] == samples


def test_the_share_of_pairs_within_a_group(run_pair) -> None:
    _, stats = run_pair(
        {0: {1: 0.9, 2: 0.8}, 1: {2: 0.7}, 2: {}}, min_cosine=0.5, group=lambda n: "a" if n < 2 else "b"
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


def test_all_documents_identical_says_so(run_pair) -> None:
    identical = {(n, o): (1.0, 1.0) for n in range(4) for o in range(n + 1, 4)}
    with pytest.raises(SbpError) as error:
        run_pair({n: {o: 1.0 for o in range(4) if o != n} for n in range(4)}, alike=identical)
    message = str(error.value)
    assert "\n" not in message
    assert "(12 near_duplicate_jaccard); cosines of neighbours 0.95:12" in message
    assert "give documents that are not copies of each other, or raise pair.max_jaccard" in message


def test_no_pairs_because_the_band_is_too_low_says_so(run_pair) -> None:
    with pytest.raises(SbpError, match=r"1 above_max_cosine.*raise pair.max_cosine"):
        run_pair({0: {1: 0.94}, 1: {}}, min_cosine=0.5, max_cosine=0.92)


def test_a_corpus_of_one_document_says_so(run_pair) -> None:
    with pytest.raises(SbpError, match=r"no neighbours.*at least two documents"):
        run_pair({0: {}})


def test_empty_lists_of_neighbours_say_so(run_pair) -> None:
    with pytest.raises(SbpError, match=r"no neighbours.*at least two documents"):
        run_pair({n: {} for n in range(7)})


def test_a_split_without_documents_has_no_pairs(new_artifact) -> None:
    neighbors, out = new_artifact("neighbors"), new_artifact("pairs")
    write_split(neighbors, "train", {0: {1: 0.8}, 1: {0: 0.8}})
    write_split(neighbors, "validation", {})
    stats = pair_documents(PairConfig(), neighbors=neighbors, out=out)
    assert len(read_pairs(out)) == stats["train"]["pairs"] == 2
    assert stats["validation"]["documents"] == stats["validation"]["pairs"] == 0
    guide = json.loads(out.read_bytes("guide.json"))["validation"]
    assert (guide["what_if_documents"], guide["bands"], guide["thresholds"], guide["samples"]) == (0, [], [], [])


def test_a_development_split_without_pairs_is_told_before_anything_is_trained(
    new_artifact, caplog: pytest.LogCaptureFixture
) -> None:
    for name, cosine, is_told in (("enough", 0.9, False), ("few", 0.1, True)):
        neighbors = new_artifact(f"neighbors-{name}")
        write_split(neighbors, "train", {0: {1: 0.8}, 1: {0: 0.8}})
        write_split(neighbors, "validation", {})
        write_split(neighbors, "development", {2: {3: cosine}, 3: {2: cosine}})
        pair_documents(PairConfig(), neighbors=neighbors, out=new_artifact(f"pairs-{name}"))
        assert ("the development split has no pairs" in caplog.text) is is_told


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_shard_of_neighbours_is_named_and_nothing_is_lost(new_artifact, missing: int) -> None:
    neighbors, out = new_artifact("neighbors"), new_artifact("pairs")
    lists: Lists = {n: {(n + 1) % 12: 0.9} for n in range(12)}
    for split in ("train", "validation"):
        write_split(neighbors, split, lists)
    name = f"train/part-{missing:05d}.parquet"
    kept = neighbors.read_bytes(name)
    Path(neighbors.path(name)).unlink()
    with pytest.raises(SbpError, match=rf"{name} is missing .* or use --redo neighbors"):
        pair_documents(PairConfig(), neighbors=neighbors, out=out)
    neighbors.write_bytes(name, kept)
    assert pair_documents(PairConfig(), neighbors=neighbors, out=out)["train"]["pairs"] == 24


@pytest.mark.parametrize("survivors", [0, 1, 5, 6, 9, 12, 17])
def test_an_interrupted_run_goes_on_and_ends_alike(new_artifact, in_process: WorkedOn, survivors: int) -> None:
    neighbors = new_artifact("neighbors")
    lists = {n: {(n + 1) % 12: 0.9, (n + 5) % 12: 0.7} for n in range(12)}
    for split in ("train", "validation"):
        write_split(neighbors, split, lists)
    cfg = PairConfig(min_cosine=0.5, max_as_d1=3)
    whole = pair_documents(cfg, neighbors=neighbors, out=new_artifact("whole"))
    steps = sorted(map(str, in_process))
    assert len(steps) == 18
    in_process.clear()
    out = new_artifact("pairs")
    in_process.interrupt_after(survivors)
    with pytest.raises(KeyboardInterrupt):
        pair_documents(cfg, neighbors=neighbors, out=out)
    assert pair_documents(cfg, neighbors=neighbors, out=out) == whole
    assert sorted(map(str, in_process)) == steps  # nothing twice
    assert read_pairs(out) == read_pairs(new_artifact("whole"))
    assert read_guide(out) == read_guide(new_artifact("whole"))
    in_process.clear()
    assert pair_documents(cfg, neighbors=neighbors, out=out) == whole
    assert in_process == []


def test_a_run_killed_while_it_cleaned_up_is_complete(new_artifact, in_process: list) -> None:
    neighbors, out = new_artifact("neighbors"), new_artifact("pairs")
    for split in ("train", "validation"):
        write_split(neighbors, split, {0: {1: 0.9}, 1: {}})
    whole = pair_documents(PairConfig(), neighbors=neighbors, out=out)
    out.write_bytes("scratch/listed-train/part-00001.parquet", b"what was left")
    os.makedirs(out.path("scratch/capped-train"))
    in_process.clear()
    assert pair_documents(PairConfig(), neighbors=neighbors, out=out) == whole
    assert in_process == []
    assert not out.exists("scratch")
