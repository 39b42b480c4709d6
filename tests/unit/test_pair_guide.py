from __future__ import annotations

from typing import Any

import pytest

from sbp_ray.config import PairConfig
from sbp_ray.report.pair_guide import guide_facts, guide_ids, read_guide


def doc_id(name: str) -> bytes:
    return name.encode() * 16


def sample(d1: str, d2: str, cosine: float, near_duplicate: str | None = None) -> dict[str, Any]:
    band = f"{int(cosine * 20 + 1e-9) / 20:.2f}"
    numbers = {"band": band, "cosine": cosine, "jaccard": 0.1, "containment": 0.2, "order": 0}
    return {"d1_id": doc_id(d1).hex(), "d2_id": doc_id(d2).hex(), "near_duplicate": near_duplicate, **numbers}


def guide(samples: list[dict[str, Any]]) -> dict[str, Any]:
    rest: dict[str, Any] = {"documents": 4, "what_if_documents": 4, "bands": [], "thresholds": [], "degrees": {}}
    return {**rest, "samples": samples}


def test_each_sample_says_what_became_of_it(new_artifact) -> None:
    samples = [
        sample("a", "b", 0.61),
        sample("a", "c", 0.71),
        sample("b", "c", 0.72, "near_duplicate_containment"),
        sample("c", "d", 0.97),
    ]
    documents = {doc_id(name): {"text": name * 310} for name in "abcd"}
    cfg = PairConfig(min_cosine=0.7, max_cosine=0.95)
    assert guide_ids(guide(samples)) == {*map(doc_id, "abcd")}
    found = guide_facts(guide(samples), cfg, new_artifact("neighbors"), documents)
    assert [(band["band"], [pair["verdict"] for pair in band["pairs"]]) for band in found["samples"]] == [
        ("0.95", ["above max_cosine"]),
        ("0.70", ["pair", "near-duplicate: containment"]),
        ("0.60", ["below min_cosine"]),
    ]
    assert found["samples"][2]["pairs"][0]["d1"] == "a" * 300 + " […]"
    assert found["recall"] is None
    assert found["limits"]["max_as_d2"] == 50


def test_a_sample_whose_documents_are_gone_is_left_out(new_artifact) -> None:
    documents = {doc_id("a"): {"text": "x"}}
    found = guide_facts(guide([sample("a", "b", 0.8)]), PairConfig(), new_artifact("neighbors"), documents)
    assert found["samples"] == []


def test_pairs_without_a_guide_have_none(new_artifact) -> None:
    assert read_guide(new_artifact("pairs")) is None


@pytest.mark.parametrize("text", ["short", "x" * 300])
def test_short_texts_are_shown_whole(new_artifact, text: str) -> None:
    documents = {doc_id(name): {"text": text} for name in "ab"}
    found = guide_facts(guide([sample("a", "b", 0.8)]), PairConfig(), new_artifact("neighbors"), documents)
    assert found["samples"][0]["pairs"][0]["d2"] == text
