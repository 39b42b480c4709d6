"""Seeded sampling on a CPU at the price of unseeded sampling, as a logits processor of vLLM.

vLLM's own CPU sampler draws noise for the whole vocabulary, for each sample from a generator of its own, after having
drawn it once for all samples together: two fifths of the time of a small model. Here a sample's next token
takes one random number, a function of its seed and of how many tokens it has: there is no state, and what a sample
becomes does not depend on the others in its batch. On a GPU vLLM's sampler works alike, and keeps its place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

_OURS = "sbp_ray_sampling"  # the entry in SamplingParams.extra_args: seed, temperature, top_p
_SHAPES = ("frequency_penalty", "presence_penalty", "repetition_penalty", "top_k", "min_p", "min_tokens", "logit_bias")
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample_here(params: SamplingParams) -> None:
    """Have a seeded request sampled here, by making it a greedy request of vLLM's.

    Left as they are: greedy requests, and those that change the distribution otherwise than by `temperature` and
    `top_p`, since vLLM applies penalties after its logits processors.
    """
    unchanged = SamplingParams(seed=params.seed, temperature=params.temperature, top_p=params.top_p)
    is_plain = all(getattr(params, name) == getattr(unchanged, name) for name in _SHAPES)
    if params.seed is None or not params.temperature or not is_plain:
        return
    params.extra_args = {_OURS: (params.seed, params.temperature, params.top_p)}
    params.seed, params.temperature, params.top_p = None, 0.0, 1.0


def uniform_numbers(seeds: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Random numbers in [0, 1), one for each seed and place in its stream; both uint64 [rows].

    SplitMix64 (Steele, Lea and Flood, 2014), started at the mixed seed, so that near seeds have unrelated streams. 48
    bits each: their product with a total is then less than the total, in float64 too.
    """
    bits = _mixed(_mixed(seeds) + (places + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(16)).astype(np.float64) * 2.0**-48


def _mixed(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def sample_tokens(
    logits: torch.Tensor, temperatures: torch.Tensor, top_p: torch.Tensor, at: torch.Tensor
) -> torch.Tensor:
    """The tokens where the cumulative distribution passes `at`; int64 [rows].

    Args:
        logits: float [rows, vocabulary].
        temperatures: float, above 0 [rows].
        top_p: float [rows]; the likeliest tokens that reach this share of the probability are kept, and the others are
            never sampled.
        at: in [0, 1), float64 [rows].
    """
    share = torch.softmax(logits / temperatures[:, None], dim=-1)
    tokens = _where_passed(share.cumsum(dim=-1, dtype=torch.float64), at)
    is_cut = top_p < 1
    if is_cut.any():
        sorted_share, order = share[is_cut].sort(dim=-1, descending=True, stable=True)
        cumulative = sorted_share.cumsum(dim=-1, dtype=torch.float64)
        last = torch.searchsorted(cumulative, top_p[is_cut, None].double()).clamp_(max=share.shape[1] - 1)
        place = _where_passed(cumulative, at[is_cut], total=cumulative.gather(1, last))
        tokens[is_cut] = order.gather(1, place[:, None])[:, 0]
    return tokens


def _where_passed(cumulative: torch.Tensor, at: torch.Tensor, total: torch.Tensor | None = None) -> torch.Tensor:
    total = cumulative[:, -1:] if total is None else total
    return torch.searchsorted(cumulative, at[:, None] * total, right=True)[:, 0]


class _Sample(NamedTuple):
    seed: int
    temperature: float
    top_p: float
    output: list[int]
    """Its tokens so far; vLLM adds to the list."""


class SeededSampler(LogitsProcessor):  # type: ignore[misc]  # vLLM is untyped
    """Makes the sampled token of each request that `sample_here` took over the likeliest token."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._samples: dict[int, _Sample] = {}
        self._arrange()

    def is_argmax_invariant(self) -> bool:
        """No: this is why vLLM asks it for greedy requests too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests to their rows of the next batch."""
        if process_dict_updates(self._samples, batch_update, _sample):
            self._arrange()

    def _arrange(self) -> None:
        samples = self._samples.values()
        self._rows = torch.tensor(list(self._samples), dtype=torch.int64)
        self._seeds = np.array([sample.seed for sample in samples], np.uint64)
        self._temperatures = torch.tensor([sample.temperature for sample in samples])
        self._top_p = torch.tensor([sample.top_p for sample in samples])

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """See the class; [rows of the batch, vocabulary], changed in place."""
        if not self._samples:
            return logits
        lengths = np.array([len(sample.output) for sample in self._samples.values()], np.uint64)
        at = torch.from_numpy(uniform_numbers(self._seeds, lengths))
        logits[self._rows, sample_tokens(logits[self._rows], self._temperatures, self._top_p, at)] = torch.inf
        return logits


def _sample(params: SamplingParams, prompt_ids: list[int] | None, output: list[int]) -> _Sample | None:
    ours = (params.extra_args or {}).get(_OURS)
    if ours is None:
        return None
    seed, temperature, top_p = ours
    return _Sample(seed, temperature, top_p, output)
