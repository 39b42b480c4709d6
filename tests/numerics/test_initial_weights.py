"""The first weights: those of a whole model, though no rank ever holds one."""

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from tiny import tiny_plan

from sbp_ray.model import build_model
from sbp_ray.training.build import build_sharded_model
from sbp_ray.training.training_plan import TrainingPlan


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_weights_are_those_of_a_whole_model_bit_for_bit_on_any_number_of_ranks(
    tmp_path: Path, tied: bool
) -> None:
    def draw(plan: TrainingPlan, whole: torch.nn.Module) -> None:
        torch.use_deterministic_algorithms(True)  # memory that nobody fills is NaN
        before = torch.random.get_rng_state()
        lm = build_sharded_model(plan, torch.device("cpu")).lm
        assert torch.equal(before, torch.random.get_rng_state())
        weights = {name: parameter.full_tensor() for name, parameter in lm.named_parameters()}
        torch.testing.assert_close(weights, dict(whole.named_parameters()), rtol=0, atol=0)
        torch.testing.assert_close(dict(lm.named_buffers()), dict(whole.named_buffers()), rtol=0, atol=0)

    for num_ranks, shard_ranks in ((1, None), (2, None), (3, None), (4, None), (4, 2)):  # three part nothing evenly
        plan = tiny_plan(tmp_path / f"{num_ranks}-{shard_ranks}", seed=7, shard_ranks=shard_ranks)
        plan = replace(plan, model=plan.model.model_copy(update={"tie_embeddings": tied}))
        whole = build_model(plan.model, plan.vocab_size, plan.special, plan.config.seed)
        run_ranks(num_ranks, tmp_path, draw, plan, whole)


def test_a_rank_holds_its_part_and_one_parameter(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run")
    plan = replace(plan, model=plan.model.model_copy(update={"num_layers": 12}))

    def count_bytes() -> tuple[int, int, int]:
        """The most that tensors took at once, and what the model's parameters take: together, and the largest."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            model = build_sharded_model(plan, torch.device("cpu"))
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        sizes = [4 * parameter.numel() for parameter in model.parameters()]
        return max(accumulate(changes)), sum(sizes), max(sizes)

    for most, whole, largest in run_ranks(4, tmp_path, count_bytes):
        assert whole / 4 <= most < whole / 4 + 1.5 * largest < whole / 2
