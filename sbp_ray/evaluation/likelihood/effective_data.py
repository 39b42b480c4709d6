"""How much more real text repetition would have needed for an arm's loss: its *effective data*.

The data scaling law of a recipe, L(D) = E + A / D^alpha with D the unique tokens of its corpus and all else equal
(arXiv 2305.16264 with the model and the training tokens fixed; arXiv 2509.14786 compares recipes so), is fitted to the
held-out losses of arms that repeat corpora of three sizes or more. An arm with the loss L is worth the D at which the
law gives L; that D beside the corpus that the arm read is the gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sbp_ray.evaluation.intervals import mean_interval
from sbp_ray.evaluation.study import BASELINE, Study, Training

MIN_SIZES = 3
_ALPHAS = (0.01, 5.0)
"""Exponents that are tried; of text they are some 0.1 to 0.5."""


class DataLaw(NamedTuple):
    """L(D) = floor + scale / D^alpha, in nats a token and tokens."""

    floor: float
    scale: float
    alpha: float

    def tokens_for(self, loss: float) -> float:
        """Unique tokens at which the law gives the loss; infinite at its floor and below."""
        return math.inf if loss <= self.floor else (self.scale / (loss - self.floor)) ** (1 / self.alpha)


def fit_data_law(losses: Mapping[float, float]) -> DataLaw | None:
    """By least squares, with a floor of no less than zero; None where the loss does not fall with the corpus.

    Args:
        losses: by unique tokens, of three sizes at least.
    """
    from scipy.optimize import minimize_scalar

    tokens_N, loss_N = np.array(sorted(losses)), np.array([losses[tokens] for tokens in sorted(losses)])

    def error(log_alpha: float) -> float:
        law = _with_exponent(tokens_N, loss_N, math.exp(log_alpha))
        return float(np.square(law.floor + law.scale / tokens_N**law.alpha - loss_N).sum())

    grid = np.log(np.geomspace(*_ALPHAS, 200))
    nearest = int(np.argmin([error(log_alpha) for log_alpha in grid]))
    bounds = grid[max(0, nearest - 1)], grid[min(len(grid) - 1, nearest + 1)]
    found = minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    law = _with_exponent(tokens_N, loss_N, math.exp(found.x))
    return law if law.scale > 0 else None


def _with_exponent(tokens_N: np.ndarray, loss_N: np.ndarray, alpha: float) -> DataLaw:
    """Least squares in the two others."""
    x_N = tokens_N**-alpha
    scale = float(np.cov(x_N, loss_N)[0, 1] / np.var(x_N, ddof=1))
    floor = float(loss_N.mean() - scale * x_N.mean())
    if floor >= 0:
        return DataLaw(floor, scale, alpha)
    return DataLaw(0.0, float((x_N @ loss_N) / (x_N @ x_N)), alpha)


def effective_data(study: Study, losses: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """What each arm is worth beside the arms of one recipe that repeat corpora of several sizes.

    Args:
        losses: held-out nats a token by name of the arm and seed.

    Returns:
        `recipes`: `name` of the arm that repeats the baseline's corpus; the `law` and the `sizes` that it was fitted
        to, or why there is none (`refused`). `arms`: `name`, and under `times` by recipe the multiple of real text,
        with its interval over seeds where there is one.
    """
    fits = {}
    for name, arms in _recipes(study).items():
        sizes = {_unique_tokens(one): other for other, one in arms.items()}
        fits[name] = _fitted(name, sizes, losses), _laws_by_seed(sizes, losses)
    rows = []
    for name, seeds in study.by_arm().items():
        one = next(iter(seeds.values()))
        if one.share is not None:
            times = {of: _times(*fit, losses[name], _unique_tokens(one)) for of, fit in fits.items()}
            rows.append({"name": name, "times": times})
    return {"recipes": [recipe for recipe, _ in fits.values()], "arms": rows}


def _recipes(study: Study) -> dict[str, dict[str, Training]]:
    """Arms that repeat real text with the same settings, by name, under the one that reads the baseline's corpus."""
    arms = {name: next(iter(seeds.values())) for name, seeds in study.by_arm().items()}
    arms = {
        name: one
        for name, one in arms.items()
        if one.share is None and not one.members and one.tuning is None and _unique_tokens(one)
    }
    found: dict[str, dict[str, Training]] = {}
    if BASELINE not in arms:
        return found  # nobody counted its tokens
    for name, one in arms.items():
        if _unique_tokens(one) == _unique_tokens(arms[BASELINE]) and one.tokens == arms[BASELINE].tokens:
            alike = {other: made for other, made in arms.items() if _settings(made) == _settings(one)}
            if name == BASELINE or len(alike) > 1:
                found[name] = alike
    return found


def _settings(one: Training) -> dict[str, Any]:
    pretrain = one.model.config.pretrain.model_dump(exclude={"seed", "resources"})
    return {"pretrain": pretrain, "model": one.model.config.model.model_dump()}


def _unique_tokens(one: Training) -> float:
    return float(one.model.inputs["corpus"].stats.get("train", {}).get("tokens", 0))


def _fitted(name: str, sizes: Mapping[float, str], losses: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    means = {tokens: float(np.mean([*losses[sizes[tokens]].values()])) for tokens in sorted(sizes)}
    found: dict[str, Any] = {"name": name, "law": None, "refused": None}
    found["sizes"] = [{"tokens": tokens, "arm": sizes[tokens], "loss": loss} for tokens, loss in means.items()]
    if len(sizes) < MIN_SIZES:
        found["refused"] = (
            f"a fit takes {MIN_SIZES} corpus sizes, and {name} has {len(sizes)}: add arms with corpus_times"
        )
    elif law := fit_data_law(means):
        found["law"] = law._asdict()
    else:
        found["refused"] = f"the loss of {name} does not fall with the size of its corpus"
    return found


def _laws_by_seed(sizes: Mapping[float, str], losses: Mapping[str, Mapping[int, float]]) -> dict[int, DataLaw | None]:
    if len(sizes) < MIN_SIZES:
        return {}
    seeds = set.intersection(*(set(losses[name]) for name in sizes.values()))
    return {seed: fit_data_law({tokens: losses[sizes[tokens]][seed] for tokens in sizes}) for seed in sorted(seeds)}


def _times(
    recipe: Mapping[str, Any], laws: Mapping[int, DataLaw | None], loss_S: Mapping[int, float], corpus: float
) -> dict[str, Any] | None:
    """The multiple of the corpus that the arm read. None stands for infinity, which JSON lacks."""
    if recipe["law"] is None:
        return None
    tokens = DataLaw(**recipe["law"]).tokens_for(float(np.mean([*loss_S.values()])))
    first, *_, last = (size["tokens"] for size in recipe["sizes"])
    found = {
        "value": tokens / corpus if math.isfinite(tokens) else None,
        "is_extrapolated": not first <= tokens <= last,
    }
    logs = _log_times(laws, loss_S, corpus)
    interval = mean_interval(logs) if all(map(math.isfinite, logs)) else None
    if interval is None or found["value"] is None:
        return found
    return found | {"low": math.exp(interval.low), "high": math.exp(interval.high), "unit": "seeds", "units": len(logs)}


def _log_times(laws: Mapping[int, DataLaw | None], loss_S: Mapping[int, float], corpus: float) -> list[float]:
    pairs = [(laws[seed], loss_S[seed]) for seed in sorted(laws.keys() & loss_S.keys())]
    return [math.inf if law is None else math.log(law.tokens_for(loss) / corpus) for law, loss in pairs]
