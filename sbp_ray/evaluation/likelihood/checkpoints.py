"""Score one checkpoint on texts: what the arms are compared by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from sbp_ray.artifacts import Artifact
from sbp_ray.config import ForwardResources
from sbp_ray.logs import Progress
from sbp_ray.nodes import Node
from sbp_ray.steps import call_each
from sbp_ray.text.pair_format import Example, document_example, join_tokens
from sbp_ray.text.tokenizer import SpecialIds

# N = units of a set, E = examples of all sets

Key = TypeVar("Key")
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


def score_models(
    models: Mapping[Key, Sequence[Node]],
    names: Mapping[Key, str],
    store: Artifact,
    score: Callable[..., Any],
    *texts: Any,
    resources: ForwardResources,
    environment: Mapping[str, str] | None = None,
) -> dict[Key, Any]:
    """What `score((key, artifacts), *texts, resources)` says of each model, or ensemble, by key.

    Args:
        names: files of the store, by key: a model is scored if its file is not there.
        score: returns JSON's types.
        environment: as of `call_each`.
    """
    calls = [
        (key, tuple(node.artifact for node in nodes)) for key, nodes in models.items() if not store.exists(names[key])
    ]
    progress = Progress("eval", len(calls), "files of scores")
    found = call_each(score, calls, *texts, resources, resources=resources, environment=environment)
    for (key, _), scores in found:
        store.write_json(names[key], scores)
        progress.advance(note=names[key])
    return {key: store.read_json(name) for key, name in names.items()}


def score_checkpoint(
    named: tuple[str, Sequence[Artifact]], text_sets: Mapping[str, Units], resources: ForwardResources
) -> dict[str, Any]:
    """Load `model/` of a training artifact, or of an ensemble's, and score every text in float32. Runs in a process of
    its own."""
    from sbp_ray.scoring import Ensemble, load_models, sum_nll

    name, trained = named
    model = load_models(trained, resources)
    examples = [example for units in text_sets.values() for unit in units for example in unit]
    progress = Progress(f"eval {name}", len(examples), "texts")
    nll_E = sum_nll(model, examples, batch_tokens=resources.batch_tokens, on_batch=progress.advance)
    remaining = iter(nll_E.tolist())
    nll = {name: [sum(next(remaining) for _ in unit) for unit in units] for name, units in text_sets.items()}
    members = model.members if isinstance(model, Ensemble) else (model,)
    return {"nll": nll, "parameters": sum(parameter.numel() for one in members for parameter in one.parameters())}
