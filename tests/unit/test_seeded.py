"""Seeded sampling: its numbers, its distribution, and that a sample keeps to its own row and stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from sbp_ray.engine.seeded import SeededSampler, sample_here, sample_tokens, uniform_numbers

VOCABULARY = 50


def handed_over(seed: int = 1, temperature: float = 1.0, top_p: float = 1.0, **others: float) -> SamplingParams:
    params = SamplingParams(seed=seed, temperature=temperature, top_p=top_p, **others)
    sample_here(params)
    return params


def processor(*added: tuple[int, SamplingParams, list[int]]) -> SeededSampler:
    sampler = SeededSampler(None, torch.device("cpu"), False)
    rows = [(row, params, None, output) for row, params, output in added]
    sampler.update_state(BatchUpdate(batch_size=len(rows), removed=[], added=rows, moved=[]))
    return sampler


def tokens(sampler: SeededSampler, logits: torch.Tensor) -> list[int]:
    """What vLLM's greedy sampler picks."""
    return sampler.apply(logits.clone()).argmax(dim=-1).tolist()


def test_the_numbers_of_seed_0_are_splitmix64s() -> None:
    """Its first three outputs, as published with the generator; 0 mixed is 0."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    numbers = uniform_numbers(np.zeros(3, np.uint64), np.arange(3, dtype=np.uint64))
    assert numbers.tolist() == [(bits >> 16) / 2**48 for bits in published]


def test_numbers_of_near_seeds_and_places_are_uniform_and_unrelated() -> None:
    seeds, places = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300, dtype=np.uint64))
    grid = uniform_numbers(seeds.ravel(), places.ravel()).reshape(300, 300)
    assert abs(grid.mean() - 0.5) < 4 * np.sqrt(1 / 12 / grid.size)
    for shifted in (grid[1:], grid[:, 1:]):
        near = np.corrcoef(grid[: shifted.shape[0], : shifted.shape[1]].ravel(), shifted.ravel())[0, 1]
        assert abs(near) < 4 / np.sqrt(shifted.size)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (1.7, 0.3)])
def test_tokens_come_as_often_as_the_model_says(temperature: float, top_p: float) -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    share = np.exp(logits.double().numpy() / temperature)
    share /= share.sum()
    likeliest = np.argsort(-share)
    kept = likeliest[: 1 + int((np.cumsum(share[likeliest]) < top_p).sum())]  # the fewest that reach top_p
    expected = np.zeros(VOCABULARY)
    expected[kept] = share[kept] / share[kept].sum()

    rows = 40_000
    at = torch.from_numpy(uniform_numbers(np.arange(rows, dtype=np.uint64), np.zeros(rows, np.uint64)))
    drawn = sample_tokens(logits.expand(rows, -1), torch.full((rows,), temperature), torch.full((rows,), top_p), at)
    counts = np.bincount(drawn.numpy(), minlength=VOCABULARY)
    assert counts[expected == 0].sum() == 0
    chi_square = ((counts - rows * expected)[kept] ** 2 / (rows * expected[kept])).sum()
    freedom = len(kept) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * max(freedom, 1))


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.full((1, 4), -torch.inf)
    logits[0, 2] = 0.0
    for at in (0.0, 0.5, 1 - 2.0**-48):
        assert sample_tokens(
            logits, torch.ones(1), torch.ones(1), torch.tensor([at], dtype=torch.float64)
        ).tolist() == [2]


def test_rows_that_are_cut_and_rows_that_are_not_draw_what_each_does_alone() -> None:
    logits = torch.randn(8, VOCABULARY, generator=torch.Generator().manual_seed(1))
    top_p = torch.tensor([0.4, 1.0] * 4)
    at = torch.from_numpy(uniform_numbers(np.arange(8, dtype=np.uint64), np.zeros(8, np.uint64)))
    alone = [sample_tokens(logits[[row]], torch.ones(1), top_p[[row]], at[[row]]).item() for row in range(8)]
    assert sample_tokens(logits, torch.ones(8), top_p, at).tolist() == alone


def test_a_sample_draws_the_same_in_any_row_and_company() -> None:
    """Through additions, a departure, a move and a swap of rows, as vLLM tells them."""
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(2))
    params, output = handed_over(seed=2**63 - 1), [7, 7]
    expected = tokens(processor((0, params, output)), logits[:1])[0]
    sampler = processor((0, handed_over(seed=3), []), (1, handed_over(seed=4), [1]), (2, params, output))
    assert tokens(sampler, logits[[1, 2, 0]])[2] == expected
    sampler.update_state(
        BatchUpdate(batch_size=2, removed=[0], added=[], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)])
    )
    assert tokens(sampler, logits[[0, 1]])[0] == expected
    sampler.update_state(BatchUpdate(batch_size=2, removed=[], added=[], moved=[(0, 1, MoveDirectionality.SWAP)]))
    assert tokens(sampler, logits[[1, 0]])[1] == expected
    output.append(5)  # its next token is another draw
    assert len({tokens(sampler, logits[[1, 0]])[1], expected}) == 2


def test_what_is_not_handed_over_stays_vllms() -> None:
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(3))
    greedy = SamplingParams(temperature=0.0, seed=1)
    unseeded = SamplingParams(temperature=1.0)
    penalised = SamplingParams(temperature=1.0, seed=1, frequency_penalty=0.5)
    for params in (greedy, unseeded, penalised):
        before = (params.seed, params.temperature, params.extra_args)
        sample_here(params)
        assert (params.seed, params.temperature, params.extra_args) == before
    sampler = processor((0, greedy, []), (1, unseeded, []), (2, penalised, []), (3, handed_over(), []))
    after = sampler.apply(logits.clone())
    assert torch.equal(after[:3], logits[:3])
    assert torch.isinf(after[3]).sum() == 1
    ours = handed_over(temperature=0.7, top_p=0.9)
    assert (ours.seed, ours.temperature, ours.top_p) == (None, 0.0, 1.0)
