"""corpus (and synthetic) -> base_lm or lm: pack the documents, then train from fresh weights."""

from __future__ import annotations

import logging
import math
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import MixtureConfig, ModelConfig, PretrainConfig
from sbp_ray.errors import SbpError
from sbp_ray.mixing import Mixture
from sbp_ray.model import num_parameters, padded_vocab_size, read_base_shape
from sbp_ray.rounds import round_of
from sbp_ray.shards import Stats, run_tasks, shard_name
from sbp_ray.text.packing import pack_examples
from sbp_ray.text.pair_format import document_example
from sbp_ray.text.tokenizer import SpecialIds, load_tokenizer, special_ids
from sbp_ray.training.gate import check_export
from sbp_ray.training.journal import last_row, survived
from sbp_ray.training.launch import fit
from sbp_ray.training.packed import packed_source, packing_stats, realised
from sbp_ray.training.plan import TrainingPlan, rows_folder
from sbp_ray.training.refusals import refuse_other_tokenizer, refuse_short_context

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
    """Train a language model on real text, and on synthetic text where it is given; from scratch, or from `cfg.base`.

    Raises:
        SbpError: the tokenizer does not fit the model, there is less text than the mixture wants, the training
            diverged, or the export was refused.
    """
    stage = f"pretrain-{cfg.arm}"
    tokenizer = load_tokenizer(corpus.local_copy("tokenizer"))
    special = special_ids(tokenizer)
    vocab_size = padded_vocab_size(model, len(tokenizer))
    if cfg.base is not None:
        model, base_rows = read_base_shape(cfg.base)
        vocab_size = max(base_rows, padded_vocab_size(model, len(tokenizer)))
        refuse_other_tokenizer(tokenizer, cfg.base, base_rows)
        refuse_short_context("pretrain", cfg, model.max_positions)
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
        base=cfg.base,
    )
    mixed = realised(plan.mixture, packed, cfg.seq_len)
    sources = ", ".join(
        f"{name}: {counts['rows']:,} rows, {counts['passes']:.2f} passes" for name, counts in mixed.items()
    )
    logger.info(f"{stage} | {sources}")
    fit(plan)
    return {
        "round": 0 if synthetic is None else round_of(synthetic),
        "parameters": num_parameters(model, vocab_size),
        "vocab_size": vocab_size,
        "steps": plan.num_steps,
        "positions": plan.num_steps * cfg.batch_rows * cfg.seq_len,
        "mixture": mixed,
        "packing": packed,
        "final": last_row(out),
        **survived(out),
        "export": check_export(stage, cfg, out),
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
    run_tasks(
        f"{stage} packing", _PackDocuments, arguments, todo, num_done=len(items) - len(todo), resources=cfg.resources
    )
    return {source: packing_stats(out, source) for source in inputs}


def _mixture(cfg: PretrainConfig, mixture: MixtureConfig, packed: dict[str, Stats], out: Artifact) -> Mixture:
    if not packed["real"].get("rows"):
        raise SbpError("the corpus has no train documents: check ingest.input and ingest.validation_share")
    total_rows = cfg.num_steps() * cfg.batch_rows
    if "synthetic" not in packed:
        return Mixture(packed_source(out, "real"), None, total_rows, 0, cfg.seed)
    synthetic = packed_source(out, "synthetic")
    wanted = round(mixture.share() * total_rows)
    if wanted > synthetic.num_rows:
        most = math.floor(1e4 * synthetic.num_rows / total_rows) / 1e4
        raise SbpError(
            f"the mixture wants {wanted:,} synthetic rows ({mixture.share():.4f} of the run) and there are "
            f"{synthetic.num_rows:,}, which are read once: lower mixture.synthetic_share to {most}, or raise "
            "synthesize.num_documents or synthesize.samples_per_document"
        )
    return Mixture(packed_source(out, "real"), synthetic, total_rows, wanted, cfg.seed)
