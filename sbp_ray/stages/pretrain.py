"""corpus (and synthetic) -> base_lm or lm: pack the documents, then train from fresh weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from sbp_ray.artifacts import Artifact
from sbp_ray.config import MixtureConfig, ModelConfig, PretrainConfig
from sbp_ray.errors import SbpError
from sbp_ray.mixing import Mixture
from sbp_ray.model import num_parameters, padded_vocab_size, read_base_shape
from sbp_ray.rounds import round_of
from sbp_ray.shards import Stats, Step, run_steps, shard_name
from sbp_ray.text.pair_format import DOCUMENT_MARKS, document_example
from sbp_ray.text.tokenizer import SpecialIds, load_tokenizer, special_ids
from sbp_ray.training.launch import run_plan
from sbp_ray.training.packed import Packed, TokenLists, packing_resources, read_packed, write_shard
from sbp_ray.training.preflight import (
    refuse_missing_choice,
    refuse_missing_float8,
    refuse_other_tokenizer,
    refuse_short_context,
)
from sbp_ray.training.token_noise import find_noise
from sbp_ray.training.training_plan import TrainingPlan, rows_folder


def pretrain(
    cfg: PretrainConfig,
    *,
    model: ModelConfig,
    mixture: MixtureConfig,
    corpus: Artifact,
    synthetic: Artifact | None,
    out: Artifact,
) -> Stats:
    """Train a language model on real text, and on synthetic text where it is given; from scratch, or from `cfg.base`.

    Raises:
        SbpError: the tokenizer does not fit the model, there is less text than the mixture wants, the training
            diverged, or the export was refused.
    """
    stage = f"pretrain-{cfg.arm}"
    refuse_missing_float8("pretrain", cfg)
    tokenizer = load_tokenizer(corpus.local_copy("tokenizer"))
    special = special_ids(tokenizer)
    model, vocab_size = _find_shape(cfg, model, tokenizer)
    inputs = {"real": (corpus, "train"), "validation": (corpus, "validation"), "development": (corpus, "development")}
    if synthetic is not None:
        inputs["synthetic"] = (synthetic, "")
    packed = pack_documents(stage, cfg, inputs, special, vocab_size, out)
    refuse_missing_choice("pretrain", cfg, packed["development"].source)
    plan = TrainingPlan(
        stage=stage,
        config=cfg,
        mixture=plan_mixture(cfg, mixture, packed),
        num_steps=cfg.num_steps(),
        out=out,
        validation=packed["validation"].source,
        development=packed["development"].source,
        tokenizer=corpus,
        vocab_size=vocab_size,
        special=special,
        model=model,
        base=cfg.base,
        noise=find_noise(cfg, len(tokenizer), special),
    )
    return {
        "round": 0 if synthetic is None else round_of(synthetic),
        "parameters": num_parameters(model, vocab_size),
        "vocab_size": vocab_size,
        **run_plan(plan, packed),
        "drops": {},
    }


def _find_shape(cfg: PretrainConfig, model: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[ModelConfig, int]:
    """Shape of the fresh model, or of `cfg.base`, and the rows of its embedding."""
    if cfg.base is None:
        return model, padded_vocab_size(model, len(tokenizer))
    shape, base_rows = read_base_shape(cfg.base)
    refuse_other_tokenizer(tokenizer, cfg.base, base_rows)
    refuse_short_context("pretrain", cfg, shape.max_positions)
    return shape, max(base_rows, padded_vocab_size(shape, len(tokenizer)))


class _PackDocuments:
    """Packs one shard of documents."""

    def __init__(
        self,
        cfg: PretrainConfig,
        special: SpecialIds,
        vocab_size: int,
        inputs: dict[str, tuple[Artifact, str]],
        out: Artifact,
    ) -> None:
        self._cfg, self._special, self._vocab_size = cfg, special, vocab_size
        self._inputs, self._out = inputs, out

    def __call__(self, item: dict[str, Any]) -> Stats:
        artifact, _ = self._inputs[item["source"]]
        documents = TokenLists(artifact.read_table(item["file"], columns=["input_ids"])["input_ids"])
        length_D = documents.length_D + DOCUMENT_MARKS
        write_shard(
            self._out,
            shard_name(rows_folder(item["source"]), item["shard"]),
            length_D=length_D,
            first_supervised_D=np.ones_like(length_D),
            tokens_of=lambda number: document_example(documents.of(number), self._special).input_ids,
            seq_len=self._cfg.seq_len,
            vocab_size=self._vocab_size,
            is_repeated=self._cfg.repack and item["source"] == "real",
        )
        return {"documents": len(length_D)}


def pack_documents(
    stage: str,
    cfg: PretrainConfig,
    inputs: dict[str, tuple[Artifact, str]],
    special: SpecialIds,
    vocab_size: int,
    out: Artifact,
) -> dict[str, Packed]:
    """Rows of every source under `rows/`."""
    items: list[dict[str, Any]] = [
        {"source": source, "file": file, "shard": shard}
        for source, (artifact, folder) in inputs.items()
        for shard, file in enumerate(artifact.files(folder, ".parquet"))
    ]
    pack = Step(
        f"{stage} packing",
        _PackDocuments,
        (cfg, special, vocab_size, inputs, out),
        items,
        lambda item: shard_name(rows_folder(item["source"]), item["shard"]),
        reads=list(inputs.values()),
    )
    run_steps(out, [pack], packing_resources(cfg.resources))
    return {source: read_packed(out, source) for source in inputs}


def plan_mixture(cfg: PretrainConfig, mixture: MixtureConfig, packed: dict[str, Packed]) -> Mixture:
    """Which rows the run reads.

    Raises:
        SbpError: there is no text, or less synthetic text than the mixture wants.
    """
    real = packed["real"].source
    if not real.num_rows:
        raise SbpError("the corpus has no train documents: check ingest.input and ingest.validation_share")
    total_rows = cfg.num_steps() * cfg.batch_rows
    if "synthetic" not in packed:
        return Mixture(real, None, total_rows, 0, cfg.seed)
    synthetic = packed["synthetic"].source
    wanted = round(mixture.share() * total_rows)
    if wanted > synthetic.num_rows:
        less = _suggest_less_synthetic(mixture, synthetic.num_rows / total_rows)
        raise SbpError(
            f"the mixture wants {wanted:,} synthetic rows ({mixture.share():.4f} of the run) and there are "
            f"{synthetic.num_rows:,}, which are read once: {less}, or raise synthesize.num_documents or "
            "synthesize.samples_per_document"
        )
    tail_rows = math.floor(mixture.real_tail * (total_rows - wanted))
    return Mixture(real, synthetic, total_rows, wanted, cfg.seed, tail_rows)


def _suggest_less_synthetic(mixture: MixtureConfig, most: float) -> str:
    """What to change when no more than this share can be synthetic, in the terms of the settings."""
    if mixture.real_tokens is None or mixture.synthetic_tokens is None:
        return f"lower mixture.synthetic_share to {math.floor(1e4 * most) / 1e4}"
    total = mixture.real_tokens + mixture.synthetic_tokens
    tokens = math.floor(total * most)
    return f"set mixture.synthetic_tokens={tokens} and mixture.real_tokens={total - tokens}"
