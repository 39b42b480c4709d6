"""The synthesize stage with an outside model in the engines' place, under Ray: a server of ours is that model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_endpoint import ChatEndpoint, completion
from merged_shards import write_signed

from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, EngineConfig, RephraseConfig, SynthesizeConfig, SynthesizeResources
from sbp_ray.errors import SbpError
from sbp_ray.stages.synthesize import synthesize_documents
from sbp_ray.text.tokenizer import train_tokenizer

pytestmark = pytest.mark.slow

TEXTS = [f"the river number {number} of the north" for number in range(12)]


@pytest.fixture
def made_from(tmp_path: Path) -> dict[str, Artifact]:
    """Twelve documents in two shards."""
    corpus, embeddings = (Artifact(name, str(tmp_path / name)) for name in ("corpus", "embeddings"))
    tokenizer = train_tokenizer(TEXTS, 320)
    tokenizer.save_pretrained(corpus.path("tokenizer"))
    write_signed(corpus, embeddings, TEXTS, 2, tokenizer)
    return {"corpus": corpus, "embeddings": embeddings}


def test_a_run_whose_endpoint_failed_goes_on_and_a_rerun_asks_for_nothing(
    local_ray: None, made_from: dict[str, Artifact], new_artifact: Any
) -> None:
    """24 samples; the endpoint refuses the key after the trial and nine answers, until it is mended."""
    endpoint, out = ChatEndpoint(), new_artifact("synthetic")
    where = {"base_url": endpoint.base_url, "at_once": 3}
    cfg = SynthesizeConfig(
        samples_per_document=2, max_tokens=60, min_tokens=2, max_repetition=1, max_copy=1, max_jaccard=1,
        rephrase=RephraseConfig.model_validate({"model": "teller", "resources": where}),
        resources=SynthesizeResources(commit_every_s=0.05),
    )  # fmt: skip
    inputs: dict[str, Any] = {
        **{"engine": EngineConfig(), "decontaminate": DecontaminateConfig(), "shingle_tokens": 13},
        **{"synthesizer": None, "out": out, **made_from},
    }

    def tell(prompt: str) -> Any:
        return completion(f"retold, time {len(endpoint.prompts)}")

    try:
        endpoint.says = lambda prompt: tell(prompt) if len(endpoint.prompts) <= 10 else 401
        with pytest.raises(SbpError, match="refuses teller with 401"):
            synthesize_documents(cfg, **inputs)
        endpoint.says = tell
        stats = synthesize_documents(cfg, **inputs)
        rows = [row for file in out.files(suffix=".parquet") for row in out.read_table(file).to_pylist()]
        assert stats["samples"] == stats["documents"] == len({(row["d1_id"], row["sample"]) for row in rows}) == 24
        assert stats["outside"] == {"input_tokens": 2400, "output_tokens": 240}
        num_asked = len(endpoint.prompts)
        again = synthesize_documents(cfg, **inputs)
        assert {**stats, "last_run": None} == {**again, "last_run": None}
        assert len(endpoint.prompts) == num_asked
    finally:
        endpoint.stop()
