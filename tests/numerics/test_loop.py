"""The loop itself, on real gloo ranks and without Ray."""

import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from tiny import tiny_plan
from transformers import AutoModelForCausalLM, AutoTokenizer

from sbp_ray.config import TrainingConfig
from sbp_ray.errors import SbpError
from sbp_ray.training import loop
from sbp_ray.training.optim import lr_at
from sbp_ray.training.plan import TrainingPlan


def _train(plan: TrainingPlan, stop_after: int | None = None, *, sgd: bool = False) -> None:
    if sgd:  # Adam would hide a gradient that is wrong by a factor
        loop.build_optimizer = lambda model, cfg: torch.optim.SGD(model.parameters(), lr=cfg.peak_lr)  # type: ignore
    loop.train(plan, stop_after=stop_after)


def _weights(plan: TrainingPlan) -> dict[str, torch.Tensor]:
    return load_file(plan.out.path("model/model.safetensors"))


def _losses(plan: TrainingPlan) -> list[float]:
    return [row["loss_nats"] for row in _rows(plan)]


def _rows(plan: TrainingPlan) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(plan.out.path("metrics.jsonl")).read_text().splitlines()]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_sharded_training_is_single_training(tmp_path: Path, num_ranks: int) -> None:
    settings = {"num_steps": 3, "peak_lr": 0.5, "max_grad_norm": 1e9}
    single = tiny_plan(tmp_path / "single", **settings)
    sharded = tiny_plan(tmp_path / "sharded", num_workers=num_ranks, **settings)
    run_ranks(1, tmp_path, lambda: _train(single, sgd=True))
    run_ranks(num_ranks, tmp_path, lambda: _train(sharded, sgd=True))
    assert _losses(sharded) == pytest.approx(_losses(single), rel=1e-5)
    torch.testing.assert_close(_weights(sharded), _weights(single), rtol=1e-5, atol=1e-6)


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path) -> None:
    settings = {"num_steps": 3, "peak_lr": 0.5}  # clipped, too
    small = tiny_plan(tmp_path / "small", micro_batch_rows=1, **settings)
    large = tiny_plan(tmp_path / "large", micro_batch_rows=4, **settings)
    for plan in (small, large):
        run_ranks(1, tmp_path, lambda plan=plan: _train(plan, sgd=True))
    torch.testing.assert_close(_weights(small), _weights(large), rtol=1e-5, atol=1e-6)


def test_six_steps_are_three_and_a_resumed_three_bit_for_bit(tmp_path: Path) -> None:
    whole = tiny_plan(tmp_path / "whole", num_workers=2)
    halves = tiny_plan(tmp_path / "halves", num_workers=2, checkpoint_every=3)
    run_ranks(2, tmp_path, lambda: _train(whole))
    run_ranks(2, tmp_path, lambda: _train(halves, stop_after=4))  # the fourth is lost: its checkpoint is step 3
    run_ranks(2, tmp_path, lambda: _train(halves))
    assert _losses(halves) == _losses(whole)
    assert [row["step"] for row in _rows(halves)] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(tensor, _weights(halves)[name]) for name, tensor in _weights(whole).items())


def test_a_checkpoint_of_two_ranks_resumes_on_one(tmp_path: Path) -> None:
    whole = tiny_plan(tmp_path / "whole", num_steps=4)
    halves = tiny_plan(tmp_path / "halves", num_steps=4, num_workers=2, checkpoint_every=2)
    run_ranks(1, tmp_path, lambda: _train(whole))
    run_ranks(2, tmp_path, lambda: _train(halves, stop_after=2))
    run_ranks(1, tmp_path, lambda: _train(halves))
    assert _losses(halves) == pytest.approx(_losses(whole), rel=1e-4)


def test_a_checkpoint_that_was_cut_off_is_never_chosen(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", checkpoint_every=2)
    run_ranks(1, tmp_path, lambda: _train(plan, stop_after=4))
    folder = Path(plan.out.path("checkpoints"))
    [shard] = (folder / "step-000004").glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:-1])  # damaged, though its marker is there
    unmarked = folder / "step-000005"
    unmarked.mkdir()
    (unmarked / shard.name).write_bytes(b"")  # cut off before its marker
    run_ranks(1, tmp_path, lambda: _train(plan, stop_after=3))
    assert [row["step"] for row in _rows(plan)] == [1, 2, 3]  # resumed from step 2


def test_only_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", num_steps=4, checkpoint_every=1)
    run_ranks(1, tmp_path, lambda: _train(plan))
    assert sorted(path.name for path in Path(plan.out.path("checkpoints")).iterdir()) == ["step-000003", "step-000004"]


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", peak_lr=1e30, warmup_share=0.0, checkpoint_every=1)

    def diverge() -> str:
        with pytest.raises(SbpError) as error:
            _train(plan, sgd=True)
        return str(error.value)

    [message] = run_ranks(1, tmp_path, diverge)
    assert message.startswith("tiny step 2: loss ")
    assert "lower peak_lr (1e+30)" in message
    assert not plan.out.exists("model")
    assert [path.name for path in Path(plan.out.path("checkpoints")).iterdir()] == ["step-000001"]


def test_the_export_is_the_trained_model_with_its_tokenizer(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", num_steps=2)
    run_ranks(1, tmp_path, lambda: _train(plan))
    model = AutoModelForCausalLM.from_pretrained(plan.out.path("model"))
    tokenizer = AutoTokenizer.from_pretrained(plan.out.path("model"))
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == plan.special[:2]
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied


def test_the_loss_falls_and_the_held_out_loss_is_on_record(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", num_steps=20)
    run_ranks(1, tmp_path, lambda: _train(plan))
    rows = _rows(plan)
    assert rows[-1]["loss_nats"] < rows[0]["loss_nats"]
    assert [row["step"] for row in rows if "validation_nats" in row] == list(range(2, 21, 2))
    assert rows[-1]["tokens"] == 20 * 4 * 32


def test_bfloat16_compute_keeps_float32_weights(tmp_path: Path) -> None:
    exact = tiny_plan(tmp_path / "float32", num_steps=2)
    rounded = tiny_plan(tmp_path / "bfloat16", num_steps=2, dtype="bfloat16")
    for plan in (exact, rounded):
        run_ranks(1, tmp_path, lambda plan=plan: _train(plan))
    assert _losses(rounded) == pytest.approx(_losses(exact), rel=5e-3)
    assert all(tensor.dtype == torch.float32 for tensor in _weights(rounded).values())


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    cfg = TrainingConfig(batch_rows=1, peak_lr=1.0, final_lr=0.2, warmup_share=0.2)
    rates = [lr_at(step, 12, cfg) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]  # two steps of warm-up, then the top of the cosine
    assert rates[2 + 9 // 3] == pytest.approx(0.2 + 0.8 * 0.75)  # a third of the way: cos 60 degrees is 0.5
    assert rates[-1] == pytest.approx(0.2)
