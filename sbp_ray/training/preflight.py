"""Preflight: what is refused before work starts."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from sbp_ray.config import TrainingConfig
from sbp_ray.errors import SbpError
from sbp_ray.mixing import Source
from sbp_ray.text.tokenizer import RELATED, load_tokenizer
from sbp_ray.training.build import load_torchao
from sbp_ray.training.devices import find_device


def refuse_short_context(section: str, cfg: TrainingConfig, context: int) -> None:
    """
    Raises:
        SbpError: a document may be longer than the base model's context.
    """
    setting, longest = cfg.longest_document()
    if longest > context:
        raise SbpError(
            f"{section}.{setting} ({longest}) is more than the base LM's context ({context}): lower it, or use a "
            "base LM with a longer one (model.max_positions)"
        )


def refuse_other_tokenizer(tokenizer: PreTrainedTokenizerFast, base: Path | str, num_rows: int) -> None:
    """
    Args:
        tokenizer: the corpus'.
        base: the base model's folder or hub name, with its tokenizer.
        num_rows: of the base model's embedding.

    Raises:
        SbpError: a token has another id in the base model's tokenizer, or the ids go beyond its embedding.
    """
    ours, theirs = tokenizer.get_vocab(), load_tokenizer(base).get_vocab()
    if ours != theirs:
        token = min(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        raise SbpError(
            f"the corpus' tokenizer is not the base model's: {token!r} is {ours.get(token, 'missing')} there and "
            f"{theirs.get(token, 'missing')} in {base}: ingest with ingest.tokenizer={base}"
        )
    known = len(ours) - (RELATED in ours)  # which training may add to the embedding
    if known > num_rows:
        raise SbpError(f"{base}: its tokenizer has {known} tokens, its embedding {num_rows} rows: use a whole model")


def refuse_missing_choice(section: str, cfg: TrainingConfig, development: Source) -> None:
    """
    Raises:
        SbpError: the best checkpoint is asked for, and there is nothing to choose it by.
    """
    if cfg.checkpoint == "best" and not development.num_rows:
        what = "pairs" if section == "tune" else "documents"
        raise SbpError(
            f"{section}.checkpoint=best chooses by the development split, which has no {what}: raise "
            f"ingest.development_share, or set {section}.checkpoint=last"
        )


def refuse_missing_gpu(section: str, cfg: TrainingConfig) -> None:
    """
    Raises:
        SbpError: a training in this process is to have a GPU, and torch finds none here (on a cluster the driver's node
            may well have none); or float8 is asked for without a GPU, or torchao is not installed.
    """
    if cfg.resources.in_process:
        find_device(cfg.resources)
    if cfg.float8 and not cfg.resources.num_gpus:
        raise SbpError(f"{section}.float8 needs GPUs: set {section}.resources.num_gpus, or {section}.float8=false")
    if cfg.float8:
        load_torchao()
