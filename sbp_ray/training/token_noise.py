"""Noise in the tokens that a model is shown in training, as augmentation: what it must say stays as it is.

Which tokens are hit follows from the row's address alone, so any number of ranks and any resumed run show the same.

Legend: T tokens a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sbp_ray.config import PretrainConfig
from sbp_ray.mixing import Address, generator
from sbp_ray.text.tokenizer import SpecialIds

_NOISE = 2
"""Tells these random numbers from those of the order of the rows, and of new packings."""


@dataclass(frozen=True)
class TokenNoise:
    """Shows a share of the tokens otherwise than they are."""

    rate: float
    is_masked: bool
    """Whether a mask is shown in their place; else another token."""
    num_tokens: int
    """Of the tokenizer: rows of the embedding beyond it stand for nothing."""
    special: SpecialIds
    """Neither hit nor drawn."""
    seed: int

    def show(self, input_ids_T: NDArray[np.int64], address: Address) -> NDArray[np.int64]:
        """The row at an address as the model sees it this time."""
        source, epoch, shard, position = address
        rng = generator(self.seed, source, epoch, shard, _NOISE, position)
        is_hit_T = (rng.random(len(input_ids_T)) < self.rate) & ~np.isin(input_ids_T, self.special)
        return np.where(is_hit_T, self.special.related if self.is_masked else self._draw(rng, input_ids_T), input_ids_T)

    def _draw(self, rng: np.random.Generator, input_ids_T: NDArray[np.int64]) -> NDArray[np.int64]:
        """Another text token for each, all equally likely: the specials, and the token itself, are stepped over."""
        others = rng.integers(self.num_tokens - len(self.special) - 1, size=len(input_ids_T))
        without_T4 = np.stack([*np.broadcast_to(np.array(self.special)[:, None], (3, len(others))), input_ids_T])
        for without_T in np.sort(without_T4, axis=0):
            others += others >= without_T
        return others


def find_noise(cfg: PretrainConfig, num_tokens: int, special: SpecialIds) -> TokenNoise | None:
    """What the settings ask for."""
    if cfg.token_noise is None:
        return None
    return TokenNoise(cfg.token_noise, cfg.noise_masks, num_tokens, special, cfg.seed)
