from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hand_made import nodes_of

from sbp_ray.config import Config
from sbp_ray.report.pair_guide import mining_facts


def doc_id(name: str) -> bytes:
    return name.encode() * 16


def sample(d1: str, d2: str, cosine: float, near_duplicate: str | None = None) -> dict[str, Any]:
    band = f"{int(cosine * 20 + 1e-9) / 20:.2f}"
    numbers = {"band": band, "cosine": cosine, "jaccard": 0.1, "containment": 0.2, "order": 0}
    return {"d1_id": doc_id(d1).hex(), "d2_id": doc_id(d2).hex(), "near_duplicate": near_duplicate, **numbers}


def guide(samples: list[dict[str, Any]]) -> dict[str, Any]:
    rest: dict[str, Any] = {"documents": 4, "what_if_documents": 4, "bands": [], "thresholds": [], "degrees": {}}
    return {**rest, "samples": samples}


def facts_of(
    folder: Path, samples: list[dict[str, Any]], texts: Mapping[str, str], **limits: Any
) -> dict[str, Any] | None:
    tree = yaml.safe_load((Path(__file__).parent / "small.yaml").read_text())
    config = Config.model_validate(tree | {"run_dir": str(folder), "pair": limits})
    pairs = nodes_of(config)["pairs"]
    pairs.artifact.write_json("guide.json", {"train": guide(samples)})
    documents = {doc_id(name): {"text": text} for name, text in texts.items()}
    return mining_facts(pairs, lambda corpus, wanted: {one: documents[one] for one in wanted & documents.keys()})


def test_each_sample_says_what_became_of_it(tmp_path: Path) -> None:
    samples = [
        sample("a", "b", 0.61),
        sample("a", "c", 0.71),
        sample("b", "c", 0.72, "near_duplicate_containment"),
        sample("c", "d", 0.97),
    ]
    found = facts_of(tmp_path, samples, {name: name * 310 for name in "abcd"}, min_cosine=0.7, max_cosine=0.95)
    assert found is not None
    assert [(band["band"], [pair["verdict"] for pair in band["pairs"]]) for band in found["samples"]] == [
        ("0.95", ["above max_cosine"]),
        ("0.70", ["pair", "near-duplicate: containment"]),
        ("0.60", ["below min_cosine"]),
    ]
    assert found["samples"][2]["pairs"][0]["d1"] == "a" * 300 + " […]"
    assert found["recall"] is None
    assert found["limits"]["max_as_d2"] == 50


def test_a_sample_whose_documents_are_gone_is_left_out(tmp_path: Path) -> None:
    found = facts_of(tmp_path, [sample("a", "b", 0.8)], {"a": "x"})
    assert found is not None and found["samples"] == []


def test_random_pairs_and_pairs_without_a_guide_have_none(tmp_path: Path) -> None:
    assert facts_of(tmp_path, [], {}, source="random") is None
    assert facts_of(tmp_path, [], {}) is not None
    (tmp_path / "4_pairs" / "guide.json").unlink()
    config = Config.model_validate(
        yaml.safe_load((Path(__file__).parent / "small.yaml").read_text()) | {"run_dir": str(tmp_path)}
    )
    assert mining_facts(nodes_of(config)["pairs"], lambda corpus, wanted: {}) is None


@pytest.mark.parametrize("text", ["short", "x" * 300])
def test_short_texts_are_shown_whole(tmp_path: Path, text: str) -> None:
    found = facts_of(tmp_path, [sample("a", "b", 0.8)], dict.fromkeys("ab", text))
    assert found is not None and found["samples"][0]["pairs"][0]["d2"] == text
