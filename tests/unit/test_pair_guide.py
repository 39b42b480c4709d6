from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hand_made import nodes_of

from sbp_ray.config import Config, PairConfig
from sbp_ray.evaluation.recorded import mining_facts
from sbp_ray.pairing.guide_page import write_guide_page
from sbp_ray.schema import DOCUMENT


def doc_id(name: str) -> bytes:
    return name.encode() * 16


def sample(d1: str, d2: str, cosine: float, dropped: str | None = None) -> dict[str, Any]:
    band = f"{int(cosine * 20 + 1e-9) / 20:.2f}"
    numbers = {"band": band, "cosine": cosine, "jaccard": 0.1, "containment": 0.2, "content_overlap": 0.3, "order": 0}
    return {"d1_id": doc_id(d1).hex(), "d2_id": doc_id(d2).hex(), "dropped": dropped, **numbers}


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


def test_pair_writes_a_page_with_the_texts_the_reasons_and_the_recommendation(new_artifact) -> None:
    corpus, out = new_artifact("corpus"), new_artifact("pairs")
    documents = [{"doc_id": doc_id(name), "group": "g", "text": f"# {name} " * 300, "input_ids": []} for name in "abcd"]
    corpus.write_table("train/part-00000.parquet", pa.Table.from_pylist(documents, DOCUMENT))
    samples = [sample("a", "b", 0.61), sample("a", "c", 0.71), sample("b", "c", 0.72, "near_duplicate_update")]
    row = {"min_cosine": 0.6, "documents_share": 0.5, "pairs": 1234, "duplicate_share": 0.25}
    reasons = {"near_duplicate_jaccard": 0, "near_duplicate_containment": 0, "near_duplicate_update": 2, "form_only": 4}
    made = guide([*samples, sample("a", "z", 0.73)])
    made |= {"thresholds": [row], "bands": [{"band": "0.60", "listed": 10, "related": 3, "pairs": 8, **reasons}]}
    made |= {"recommended": {"min_cosine": 0.65, "reason": "because"}}
    out.write_json("guide.json", {"train": made})
    write_guide_page(PairConfig(min_cosine=0.7), {"near_duplicate_update": 1_002, "d2_cap": 3}, corpus=corpus, out=out)
    page = out.read_bytes("guide.md").decode()
    assert "Recommended: **`pair.min_cosine=0.65`** (now 0.70): because." in page
    assert "| 0.60 | 50.0% | 1,234 | 25.0% | 75% |" in page  # 3 of the 4 that no reason keeps out
    dropped, by_cosine = page.split("## What was dropped")[1].split("## Pairs by cosine")
    assert "### 1,002 near_duplicate_update: one text and its update" in dropped
    assert dropped.index("cosine 0.720") < dropped.index("### 3 d2_cap")
    assert by_cosine.index("### From 0.70\n") < by_cosine.index("cosine 0.710, jaccard 0.10")
    assert "### From 0.60 (below `min_cosine`)" in by_cosine and "cosine 0.720" not in by_cosine
    assert "    # a # a" in page and "[…]" in page  # indented, so that a text's own marks are none of the page
    assert doc_id("z").hex() not in page  # its text is gone
