"""Dropout and the average of the weights: what they are, and that ranks, micro-batches and stops do not change them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from tiny import losses_of, rows_of, tiny_plan, weights_of

from sbp_ray.mixing import Address
from sbp_ray.training import loop
from sbp_ray.training.average import WeightAverage
from sbp_ray.training.dropout import keep_mask, row_keys
from sbp_ray.training.training_plan import TrainingPlan

ROWS = (Address("real", 0, 1, 2), Address("real", 1, 1, 2), None, Address("real", 0, 1, 3))


def _train(plan: TrainingPlan, num_ranks: int, folder: Path, stop_after: int | None = None) -> None:
    run_ranks(num_ranks, folder, lambda: loop.train(plan, stop_after=stop_after))


def test_masks_leave_out_the_share_and_do_not_agree_with_one_another() -> None:
    keys_B = row_keys(ROWS, seed=0)
    masks = [keep_mask(keys_B, place, 64, 128, share=0.2) for place in (0, 1)]
    bits = torch.stack(masks).flatten(0, 1).flatten(1).double()  # [8, 8192]
    assert bits.mean(dim=1).tolist() == pytest.approx([0.8] * 8, abs=4 * (0.16 / 8192) ** 0.5)
    agreement = torch.corrcoef(bits) - torch.eye(8)
    assert agreement.abs().max() < 4.5 / 8192**0.5
    along = [torch.corrcoef(torch.stack([bits[0, :-lag], bits[0, lag:]]))[0, 1].abs() for lag in (1, 2, 64, 128)]
    assert max(along) < 4 / 8192**0.5


def test_a_rows_mask_follows_from_its_address_its_seed_and_nothing_else() -> None:
    together, alone = row_keys(ROWS, seed=0), row_keys(ROWS[3:], seed=0)
    assert torch.equal(keep_mask(together, 5, 8, 16, 0.5)[3:], keep_mask(alone, 5, 8, 16, 0.5))
    assert len({*together.tolist(), *row_keys(ROWS, seed=1).tolist()}) == 7  # padding has one number


def test_any_ranks_micro_batches_and_stops_come_to_the_same(tmp_path: Path) -> None:
    settings = {"dropout": 0.3, "ema_decay": 0.7}
    # Without momentum: Adam makes a difference of rounding as large as a gradient.
    loop.build_optimizer, before = (
        lambda model, cfg: torch.optim.SGD(model.parameters(), lr=cfg.peak_lr),  # type: ignore[assignment,return-value]
        loop.build_optimizer,
    )
    try:
        single = tiny_plan(tmp_path / "single", num_steps=4, peak_lr=0.5, **settings)
        _train(single, 1, tmp_path)
        other = tiny_plan(
            tmp_path / "other", num_steps=4, peak_lr=0.5, num_workers=2, micro_batch_rows=2, checkpoint_every=2,
            activation_checkpointing="full", **settings,
        )  # fmt: skip
        _train(other, 2, tmp_path, stop_after=2)
        _train(other, 1, tmp_path)
    finally:
        loop.build_optimizer = before
    assert losses_of(other) == pytest.approx(losses_of(single), rel=1e-5)
    torch.testing.assert_close(weights_of(other), weights_of(single), rtol=1e-5, atol=1e-6)
    plain = tiny_plan(tmp_path / "plain", num_steps=4, peak_lr=0.5)
    _train(plain, 1, tmp_path)
    assert any(not torch.equal(weight, weights_of(plain)[name]) for name, weight in weights_of(single).items())


def test_six_steps_are_three_and_another_three_bit_for_bit(tmp_path: Path) -> None:
    whole, halves = (
        tiny_plan(tmp_path / name, dropout=0.2, ema_decay=0.9, checkpoint_every=3) for name in ("whole", "halves")
    )
    _train(whole, 1, tmp_path)
    _train(halves, 1, tmp_path, stop_after=3)
    _train(halves, 1, tmp_path)
    assert losses_of(halves) == losses_of(whole)
    assert all(torch.equal(weight, weights_of(halves)[name]) for name, weight in weights_of(whole).items())


def test_the_average_counts_each_step_so_many_times_as_much_as_the_one_before() -> None:
    """With a decay of 1/2, of the weights 1, 2 and 4: (4 + 2/2 + 1/4) / (1 + 1/2 + 1/4) = 3."""
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.5)
    for step, value in enumerate((1.0, 2.0, 4.0), start=1):
        torch.nn.init.constant_(model.weight, value)
        average.update(step)
    assert average.weights["weight"].item() == pytest.approx(3.0)
    with average.in_place():
        assert model.weight.item() == pytest.approx(3.0)
    assert model.weight.item() == 4.0


def test_the_export_and_the_held_out_losses_are_the_averages_and_training_goes_on_from_the_weights(
    tmp_path: Path,
) -> None:
    """With a decay of almost 0 the average is the last weights: all is as without; with 0.9 only what is trained is."""
    plain, near, far = (
        tiny_plan(tmp_path / str(decay), num_steps=4, num_workers=2, dtype="bfloat16", ema_decay=decay)
        for decay in (None, 1e-9, 0.9)
    )
    for plan in (plain, near, far):
        _train(plan, 2, tmp_path)
    assert losses_of(near) == losses_of(plain) == losses_of(far)
    assert _held_out(near) == pytest.approx(_held_out(plain), rel=1e-3)
    assert _held_out(far)[-1] != pytest.approx(_held_out(plain)[-1], rel=1e-3)
    torch.testing.assert_close(weights_of(near), weights_of(plain), rtol=1e-4, atol=1e-5)
    assert any(
        not torch.allclose(weight, weights_of(plain)[name], rtol=1e-3) for name, weight in weights_of(far).items()
    )


def _held_out(plan: TrainingPlan) -> list[float]:
    return [row["validation_nats"] for row in rows_of(plan)]
