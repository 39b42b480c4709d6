"""The average of the weights along the training: an exponential moving average, without the first weights' weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.tensor import DTensor


class WeightAverage:
    """Each rank averages its own part of the weights. With a decay of 0 there is none, and nothing is done."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.weights: dict[str, torch.Tensor] = {}
        """By name of the parameter, sharded as it is: what checkpoints hold."""
        if decay:
            self.weights = {name: weight.detach().clone() for name, weight in _sharded(model).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after `step` updates in: they count 1, those of the step before `decay`, and so on."""
        if self.weights:
            now = _sharded(self._model)
            share = (1 - self._decay) / (1 - self._decay**step)
            torch._foreach_lerp_(_local(self.weights), _local({name: now[name] for name in self.weights}), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the weights, for as long as the context lasts."""
        if not self.weights:
            yield
            return
        own = {name: weight.detach().clone() for name, weight in _sharded(self._model).items()}
        self._put(self.weights)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, weights: dict[str, torch.Tensor]) -> None:
        now = _sharded(self._model)
        torch._foreach_copy_(_local({name: now[name] for name in weights}), _local(weights))


def _sharded(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters as the rank keeps them. A forward pass leaves whole copies of some, which asking for the state
    frees, so that the next pass gathers what is in the parts then."""
    state = model.state_dict()
    return {name: state[name] for name, _ in model.named_parameters()}


def _local(weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights.values()]
