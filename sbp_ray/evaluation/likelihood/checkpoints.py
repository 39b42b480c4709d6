"""Score one checkpoint on texts: what the arms are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sbp_ray.artifacts import Artifact
from sbp_ray.config import ForwardResources
from sbp_ray.logs import Progress
from sbp_ray.text.pair_format import Example, document_example, join_tokens
from sbp_ray.text.tokenizer import SpecialIds

# N = units of a set, E = examples of all sets

Units = list[list[Example]]
"""Of a set of texts its documents or questions, each in one or more examples."""


class Scores(NamedTuple):
    """One checkpoint's NLL of every unit."""

    nll: dict[str, np.ndarray]
    """For each set float64 [N], nats over the supervised tokens of each unit."""
    num_parameters: int


def document_windows(input_ids: Sequence[int], special: SpecialIds, max_tokens: int) -> list[Example]:
    """A document as the model was trained on it; one that is longer than the context in consecutive windows.

    Each window starts with <bos>, each token is supervised once, and only the last window ends in <eos>.
    """
    body = max_tokens - 2  # <bos> and <eos>
    parts = [input_ids[start : start + body] for start in range(0, max(1, len(input_ids)), body)]
    windows = [Example(join_tokens([special.bos], part), 1) for part in parts[:-1]]
    return [*windows, document_example(parts[-1], special)]


def score_checkpoint(
    named: tuple[str, Artifact], text_sets: Mapping[str, Units], resources: ForwardResources
) -> Scores:
    """Load `model/` of a training artifact and score every text in float32. Runs in a process of its own."""
    from sbp_ray.scoring import load_model, sum_nll

    name, trained = named
    model = load_model(trained.local_copy("model"), resources)
    examples = [example for units in text_sets.values() for unit in units for example in unit]
    progress = Progress(f"eval {name}", len(examples), "texts")
    nll_E = sum_nll(model, examples, batch_tokens=resources.batch_tokens, on_batch=progress.advance)
    return Scores(_by_unit(nll_E, text_sets), sum(parameter.numel() for parameter in model.parameters()))


def _by_unit(nll_E: np.ndarray, text_sets: Mapping[str, Units]) -> dict[str, np.ndarray]:
    """Add up the examples of each unit."""
    remaining = iter(nll_E)
    return {
        name: np.array([sum(next(remaining) for _ in unit) for unit in units], np.float64)
        for name, units in text_sets.items()
    }
