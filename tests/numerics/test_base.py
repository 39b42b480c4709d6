"""Going on from a Hugging Face model, and the estimate of a run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packed_rows import read_rows
from ranks import run_ranks
from tiny import tiny_plan
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sbp_ray.errors import SbpError
from sbp_ray.model import num_parameters, read_base_shape
from sbp_ray.scoring import sum_nll
from sbp_ray.text.pair_format import document_example
from sbp_ray.text.tokenizer import SpecialIds, load_tokenizer, train_tokenizer
from sbp_ray.training import loop
from sbp_ray.training.estimate import ASSUMED_MFU, estimate_run
from sbp_ray.training.preflight import refuse_missing_choice, refuse_other_tokenizer, refuse_short_context
from sbp_ray.training.training_plan import TrainingPlan

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def write_base(folder: Path, kind: str, vocab_size: int) -> str:
    torch.manual_seed(0)
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **SHAPE)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab_size, **SHAPE)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=1, n_head=2)),
    }[kind]()
    made.save_pretrained(folder)
    train_tokenizer(["a few words"], 300).save_pretrained(folder)
    return str(folder)


def plan_from(folder: Path, base: str) -> TrainingPlan:
    shape, _ = read_base_shape(base)
    return replace(tiny_plan(folder, num_steps=4), model=shape, base=base)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_training_goes_on_from_a_hugging_face_model(tmp_path: Path, kind: str) -> None:
    base = write_base(tmp_path / "base", kind, vocab_size=310)  # fewer rows than wanted: they are added
    plan = plan_from(tmp_path / "run", base)
    run_ranks(1, tmp_path, lambda: loop.train(plan))
    rows = [json.loads(line) for line in Path(plan.out.path("metrics.jsonl")).read_text().splitlines()]
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (base, plan.out.path("model")))
    assert type(after) is type(before)
    assert after.config.vocab_size == 320
    special = SpecialIds(*plan.special)
    held_out = read_rows(plan.out, "validation", plan.config.seq_len)
    examples = [document_example(row.input_ids_T[1:20], special) for row in held_out]
    assert sum_nll(after, examples, batch_tokens=256).sum() < sum_nll(before, examples, batch_tokens=256).sum()
    assert rows[0]["loss_nats"] > rows[-1]["loss_nats"]


def test_an_architecture_that_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    base = write_base(tmp_path, "gpt2", 310)
    with pytest.raises(SbpError, match="gpt2 models are not supported: use one of llama, qwen2, qwen3"):
        read_base_shape(base)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match="no Hugging Face model can be loaded from there"):
        read_base_shape(str(tmp_path / "nowhere"))


def test_another_tokenizer_than_the_corpus_has_is_refused_with_the_token(tmp_path: Path) -> None:
    base = write_base(tmp_path, "llama", 310)
    refuse_other_tokenizer(load_tokenizer(base), base, 310)
    other = train_tokenizer(["few other words, words"], 300)
    with pytest.raises(SbpError, match=r"the corpus' tokenizer is not the base model's: '.*' is .* ingest.tokenizer="):
        refuse_other_tokenizer(other, base, 310)
    with pytest.raises(SbpError, match=r"its tokenizer has .* tokens, its embedding 100 rows: use a whole model"):
        refuse_other_tokenizer(load_tokenizer(base), base, 100)


def test_the_best_checkpoint_is_refused_where_nothing_can_choose_it(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    refuse_missing_choice("pretrain", plan.config, plan.validation)
    refuse_missing_choice("tune", plan.config.model_copy(update={"checkpoint": "last"}), plan.development)
    with pytest.raises(
        SbpError, match=r"tune.checkpoint=best chooses by the development split, which has no pairs: ra"
    ):
        refuse_missing_choice("tune", plan.config, plan.development)


def test_a_window_longer_than_the_bases_context_is_refused(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path)
    with pytest.raises(SbpError, match=r"pretrain.seq_len \(32\) is more than the base LM's context \(31\)"):
        refuse_short_context("pretrain", plan.config, 31)


def test_the_estimate_by_hand(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, num_steps=10)
    parameters = num_parameters(plan.model, 320)
    estimate = estimate_run(plan, 320, num_ranks=2, peak=1e9)
    assert estimate.tokens == 10 * 4 * 32
    # 4 rows on 2 ranks are 2 micro-batches of one row, between which a rank holds all gradients
    assert estimate.state_gib == (12 / 2 + 4) * parameters / 2**30
    for settings in ({"reduce_every_micro_batch": True}, {"micro_batch_rows": 2}):
        spared = tiny_plan(tmp_path / "spared", **settings)
        assert estimate_run(spared, 320, 2, peak=None).state_gib == 16 * parameters / 2 / 2**30
    # of 4 ranks with a row each, two share a copy: each holds a half, of the gradients too
    copied = tiny_plan(tmp_path / "copied", shard_ranks=2)
    assert estimate_run(copied, 320, 4, peak=None).state_gib == 16 * parameters / 2 / 2**30
    # each token: 6 FLOPs for each of the products 2 x (32 x 8 x 12 + 3 x 32 x 48) + 320 x 32, and attention over a row
    flops_per_token = 6 * (2 * (32 * 8 * 12 + 3 * 32 * 48) + 320 * 32) + 6 * 2 * 4 * 8 * 32
    assert estimate.flops == 1280 * flops_per_token
    assert estimate.seconds == pytest.approx(1280 * flops_per_token / (2e9 * ASSUMED_MFU))
    line = estimate.line(plan, 2)
    assert line.startswith(f"tiny plan | {parameters:,} parameters | 10 steps x 4 rows x 32 = 1,280 tokens | ")
    assert "unknown" in estimate_run(plan, 320, 2, peak=None).line(plan, 2)
