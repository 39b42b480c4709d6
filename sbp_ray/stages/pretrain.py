"""corpus (and synthetic) -> base_lm or lm: pack the documents, then train from fresh weights."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from sbp_ray.artifacts import Artifact
from sbp_ray.config import MixtureConfig, ModelConfig, PretrainConfig
from sbp_ray.errors import SbpError
from sbp_ray.mixing import Mixture
from sbp_ray.model import num_parameters, padded_vocab_size, read_base_shape
from sbp_ray.rounds import round_of
from sbp_ray.shards import Stats, list_shards, shard_name, splits_of
from sbp_ray.steps import Step, remove_scratch, run_steps
from sbp_ray.text.pair_format import DOCUMENT_MARKS, document_example
from sbp_ray.text.tokenizer import SpecialIds, load_tokenizer, special_ids
from sbp_ray.training.chains import Chains, read_megadocs
from sbp_ray.training.in_context_rows import path_steps, read_piece
from sbp_ray.training.launch import run_plan
from sbp_ray.training.packed import Packed, TokenLists, packing_resources, read_packed, write_shard
from sbp_ray.training.preflight import (
    refuse_missing_choice,
    refuse_missing_gpu,
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
    pairs: Artifact | None = None,
    out: Artifact,
) -> Stats:
    """Train a language model on real text, and on synthetic text where it is given; from scratch, or from `cfg.base`.

    Args:
        pairs: the graph of related documents, for `cfg.in_context`.

    Raises:
        SbpError: the tokenizer does not fit the model, there is less text than the mixture wants, the training
            diverged, or the export was refused.
    """
    if cfg.in_context and pairs is None:
        raise ValueError("in_context without the pairs, along which documents follow one another")
    refuse_missing_gpu("pretrain", cfg)
    tokenizer = load_tokenizer(corpus.local_copy("tokenizer"))
    model, vocab_size = _find_shape(cfg, model, tokenizer)
    teacher_parameters = sum(_count_teacher(path, tokenizer, vocab_size) for path in cfg.teachers)
    plan, packed = _plan(cfg, model, mixture, tokenizer, vocab_size, corpus, synthetic, pairs, out)
    return {
        "round": 0 if synthetic is None else round_of(synthetic),
        "parameters": num_parameters(model, vocab_size),
        "vocab_size": vocab_size,
        "teacher_parameters": teacher_parameters,
        **run_plan(plan, packed),
        "drops": {},
    }


def _plan(
    cfg: PretrainConfig,
    model: ModelConfig,
    mixture: MixtureConfig,
    tokenizer: PreTrainedTokenizerFast,
    vocab_size: int,
    corpus: Artifact,
    synthetic: Artifact | None,
    pairs: Artifact | None,
    out: Artifact,
) -> tuple[TrainingPlan, dict[str, Packed]]:
    """What is trained on, packed, and how."""
    special = special_ids(tokenizer)
    inputs = {"real": (corpus, "train"), "validation": (corpus, "validation"), "development": (corpus, "development")}
    if synthetic is not None:
        inputs["synthetic"] = (synthetic, "")
    stage = f"pretrain-{cfg.arm}"
    packing = Packing(cfg, mixture.megadocs, special, vocab_size, inputs, out)
    packed = pack_documents(stage, packing, pairs if cfg.in_context else None)
    refuse_missing_choice("pretrain", cfg, packed["development"].source)
    return TrainingPlan(
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
        teachers=cfg.teachers,
        teacher_share=0.5 if cfg.teacher_share is None else cfg.teacher_share,
    ), packed


def _find_shape(cfg: PretrainConfig, model: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> tuple[ModelConfig, int]:
    """Shape of the fresh model, or of `cfg.base`, and the rows of its embedding."""
    if cfg.base is None:
        return model, padded_vocab_size(model, len(tokenizer))
    shape, base_rows = read_base_shape(cfg.base)
    refuse_other_tokenizer(tokenizer, cfg.base, base_rows)
    refuse_short_context("pretrain", cfg, shape.max_positions)
    return shape, max(base_rows, padded_vocab_size(shape, len(tokenizer)))


def _count_teacher(path: str, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> int:
    """Its parameters.

    Raises:
        SbpError: it says nothing of the same tokens.
    """
    shape, rows = read_base_shape(path)
    refuse_other_tokenizer(tokenizer, path, rows)
    if rows != vocab_size:
        raise SbpError(
            f"pretrain.teachers: {path} has an embedding of {rows} rows and the model one of {vocab_size}: set "
            "model.vocab_size to that of the teachers"
        )
    return num_parameters(shape, rows)


class Packing(NamedTuple):
    """What packs documents."""

    cfg: PretrainConfig
    has_megadocs: bool
    special: SpecialIds
    vocab_size: int
    inputs: dict[str, tuple[Artifact, str]]
    """Artifact and folder of each source."""
    out: Artifact


def _pack_shard(packing: Packing, item: dict[str, Any]) -> Stats:
    """Pack one shard of documents, or of chains of them."""
    cfg, special = packing.cfg, packing.special
    is_stream = cfg.in_context and item["source"] == "real"
    documents = _read(packing, **item)
    length_D = documents.length_D + DOCUMENT_MARKS

    @lru_cache(maxsize=1)  # what is longer than a row is asked for again and again
    def tokens_of(number: int) -> NDArray[np.int32]:
        return document_example(documents.of(number), special).input_ids

    write_shard(
        packing.out,
        shard_name(rows_folder(item["source"]), item["shard"]),
        length_D=length_D,
        first_supervised_D=np.ones_like(length_D),
        tokens_of=tokens_of,
        seq_len=cfg.seq_len,
        vocab_size=packing.vocab_size,
        is_repeated=cfg.repack and item["source"] == "real" and not is_stream,  # which fills its rows
        is_stream=is_stream,
    )
    return {"documents": len(length_D)}


def _read(packing: Packing, source: str, file: str, shard: int) -> TokenLists | Chains:
    cfg, has_megadocs, special, _, inputs, out = packing
    artifact, _ = inputs[source]
    if source == "real" and cfg.in_context:
        return read_piece(shard, out, special)
    if source == "synthetic" and has_megadocs:
        return read_megadocs(artifact, file, inputs["real"][0], special)
    return TokenLists(artifact.read_table(file, columns=["input_ids"])["input_ids"])


def pack_documents(stage: str, packing: Packing, pairs: Artifact | None = None) -> dict[str, Packed]:
    """Rows of every source under `rows/`.

    Args:
        pairs: where the real text's rows follow a path along them.
    """
    _, _, _, _, inputs, out = packing
    items: list[dict[str, Any]] = [
        {"source": source, "file": file, "shard": shard}
        for source, (artifact, folder) in inputs.items()
        for shard, file in enumerate(_list_files(source, artifact, folder))
    ]

    def file_of(item: dict[str, Any]) -> str:
        return shard_name(rows_folder(item["source"]), item["shard"])

    steps = [Step(f"{stage} packing", partial, (_pack_shard, packing), items, file_of, reads=list(inputs.values()))]
    are_all_there = all(out.exists(file_of(item)) for item in items)
    if pairs is not None and not are_all_there:
        steps = [*path_steps(stage, inputs["real"][0], pairs, out), *steps]
    run_steps(out, steps, packing_resources(packing.cfg.resources))
    remove_scratch(out)
    return {source: read_packed(out, source) for source in inputs}


def _list_files(source: str, artifact: Artifact, folder: str) -> list[str]:
    """Of synthetic text what is there: a run may begin on the shards that are finished. Of real text all shards."""
    if source == "synthetic":
        return artifact.files(folder, ".parquet")
    return [name for split in splits_of(artifact) if split == folder for name in list_shards(artifact, split)]


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
    tail_rows = math.floor((mixture.real_tail or 0) * (total_rows - wanted))
    return Mixture(real, synthetic, total_rows, wanted, cfg.seed, tail_rows)


def _suggest_less_synthetic(mixture: MixtureConfig, most: float) -> str:
    """What to change when no more than this share can be synthetic, in the terms of the settings."""
    if mixture.real_tokens is None or mixture.synthetic_tokens is None:
        return f"lower mixture.synthetic_share to {math.floor(1e4 * most) / 1e4}"
    total = mixture.real_tokens + mixture.synthetic_tokens
    tokens = math.floor(total * most)
    return f"set mixture.synthetic_tokens={tokens} and mixture.real_tokens={total - tokens}"
