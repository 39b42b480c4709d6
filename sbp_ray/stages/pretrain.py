"""corpus (and synthetic) -> base_lm or lm: pack the documents, then train from fresh weights."""

from __future__ import annotations

import logging
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import MixtureConfig, ModelConfig, PretrainConfig
from sbp_ray.errors import SbpError
from sbp_ray.mixing import Mixture
from sbp_ray.model import num_parameters, padded_vocab_size
from sbp_ray.shards import Stats, map_shards, shard_name
from sbp_ray.text.packing import pack_examples
from sbp_ray.text.pair_format import document_example
from sbp_ray.text.tokenizer import SpecialIds, load_tokenizer, special_ids
from sbp_ray.training.journal import last_row
from sbp_ray.training.packed import packed_source, packing_stats, realised
from sbp_ray.training.plan import TrainingPlan, rows_folder
from sbp_ray.training.worker import fit

logger = logging.getLogger(__name__)


def pretrain(
    cfg: PretrainConfig,
    *,
    model: ModelConfig,
    mixture: MixtureConfig,
    corpus: Artifact,
    synthetic: Artifact | None,
    out: Artifact,
) -> Stats:
    """Train a language model from scratch on real text, and on synthetic text where it is given.

    Raises:
        SbpError: the tokenizer does not fit the model, or there is no text to train on.
    """
    stage = f"pretrain-{cfg.arm}"
    tokenizer = load_tokenizer(corpus.local_copy("tokenizer"))
    special = special_ids(tokenizer)
    vocab_size = padded_vocab_size(model, len(tokenizer))
    inputs = {"real": (corpus, "train"), "validation": (corpus, "validation")}
    if synthetic is not None:
        inputs["synthetic"] = (synthetic, "")
    packed = _pack(stage, cfg, inputs, special, out)
    plan = TrainingPlan(
        stage=stage,
        config=cfg,
        mixture=_mixture(cfg, mixture, packed, out),
        num_steps=cfg.num_steps(),
        out=out,
        validation=packed_source(out, "validation"),
        tokenizer=corpus,
        vocab_size=vocab_size,
        special=special,
        model=model,
    )
    sources = ", ".join(
        f"{name}: {counts['rows']:,} rows, {counts['passes']:.2f} passes"
        for name, counts in realised(plan.mixture, packed).items()
    )
    logger.info(
        f"{stage} | {num_parameters(model, vocab_size):,} parameters | {plan.num_steps} steps x {cfg.batch_rows} rows "
        f"x {cfg.seq_len} tokens | {sources}"
    )
    fit(plan)
    return {
        "parameters": num_parameters(model, vocab_size),
        "vocab_size": vocab_size,
        "steps": plan.num_steps,
        "positions": plan.num_steps * cfg.batch_rows * cfg.seq_len,
        "mixture": realised(plan.mixture, packed),
        "packing": packed,
        "final": last_row(out),
        "drops": {},
    }


class _PackDocuments:
    """Packs one shard of documents."""

    def __init__(
        self, seq_len: int, special: SpecialIds, inputs: dict[str, tuple[Artifact, str]], out: Artifact
    ) -> None:
        self._seq_len, self._special, self._inputs, self._out = seq_len, special, inputs, out

    def __call__(self, item: dict[str, Any]) -> Stats:
        artifact, _ = self._inputs[item["source"]]
        table = artifact.read_table(item["file"], columns=["input_ids"])
        examples = (document_example(ids, self._special) for ids in table["input_ids"].to_pylist())
        rows, stats = pack_examples(examples, self._seq_len)
        self._out.write_table(shard_name(rows_folder(item["source"]), item["shard"]), rows, stats)
        return {"documents": stats["examples"]}


def _pack(
    stage: str, cfg: PretrainConfig, inputs: dict[str, tuple[Artifact, str]], special: SpecialIds, out: Artifact
) -> dict[str, Stats]:
    """Rows of every source under `rows/`; returns the packing counts of each."""
    items: list[dict[str, Any]] = [
        {"source": source, "file": file, "shard": shard}
        for source, (artifact, folder) in inputs.items()
        for shard, file in enumerate(artifact.files(folder, ".parquet"))
    ]
    todo = [item for item in items if not out.exists(shard_name(rows_folder(item["source"]), item["shard"]))]
    arguments = (cfg.seq_len, special, inputs, out)
    map_shards(
        f"{stage} packing", _PackDocuments, arguments, todo, num_done=len(items) - len(todo), resources=cfg.resources
    )
    return {source: packing_stats(out, source) for source in inputs}


def _mixture(cfg: PretrainConfig, mixture: MixtureConfig, packed: dict[str, Stats], out: Artifact) -> Mixture:
    if not packed["real"].get("rows"):
        raise SbpError("the corpus has no train documents: check ingest.input and ingest.validation_share")
    is_joint = "synthetic" in packed
    order = Mixture(
        repeated=packed_source(out, "real"),
        once=packed_source(out, "synthetic") if is_joint else None,
        total_rows=cfg.num_steps() * cfg.batch_rows,
        once_share=mixture.synthetic_share if is_joint else 0.0,
        seed=cfg.seed,
    )
    wanted = round(order.once_share * order.total_rows)
    if order.once_rows < wanted:
        logger.warning(
            f"mixture.synthetic_share={mixture.synthetic_share} asks for {wanted:,} synthetic rows and there are "
            f"{order.once_rows:,}: the share is {order.once_rows / order.total_rows:.3f}"
        )
    return order
