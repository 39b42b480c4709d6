"""The pipeline's own numbers on Ray's metrics endpoint, declared in one place.

Names there: `ray_sbp_documents_total{stage="embed"}` and so on. Usable in any process that Ray knows; elsewhere
(a training loop under torchrun) calls do nothing.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Literal

_COUNTERS = {
    "sbp_documents": ("Documents that a stage finished.", ("stage",)),
    "sbp_tokens": ("Tokens that a stage read, trained on or generated.", ("stage",)),
    "sbp_prompt_tokens": ("Tokens of the prompts that a stage sent to its engines.", ("stage",)),
    "sbp_prompt_tokens_cached": ("Those of them that the engines had in their prefix caches.", ("stage",)),
    "sbp_padding_tokens": ("Padding that a stage computed beside its tokens.", ("stage",)),
    "sbp_pairs": ("Pairs kept.", ("stage",)),
    "sbp_drops": ("Rows that a stage dropped, by reason.", ("stage", "reason")),
}
_GAUGES = {
    "sbp_progress": ("Share of a stage that is done, 0 to 1.", ("stage",)),
    "sbp_eta_s": ("Seconds until a stage is done, at its rate so far.", ("stage",)),
    "sbp_dollars_per_billion_tokens": ("Price of the nodes for what was generated since the start.", ("stage",)),
    "sbp_loss_nats": ("Training loss of the last step, nats a supervised token.", ("stage",)),
    "sbp_grad_norm": ("Norm of the last step's gradient before clipping.", ("stage",)),
    "sbp_learning_rate": ("Learning rate of the last step.", ("stage",)),
    "sbp_mfu": ("Share of the device's peak FLOP/s that training used in the last step, 0 to 1.", ("stage",)),
    "sbp_mem_gib": ("The most memory that rank 0 has held, in GiB.", ("stage",)),
    "sbp_data_wait_s": ("Seconds that the last step waited for its rows.", ("stage",)),
    "sbp_tokens_per_s": ("Tokens a second over the last interval.", ("stage",)),
    "sbp_documents_per_s": ("Documents a second since the stage started.", ("stage",)),
}


def count(name: str, value: float, *, stage: str, **tags: str) -> None:
    """Add to a counter of `_COUNTERS`."""
    if value > 0 and ray_is_running():
        _metric("counter", name).inc(value, tags={"stage": stage, **tags})


def gauge(name: str, value: float, *, stage: str) -> None:
    """Set a gauge of `_GAUGES`."""
    if ray_is_running():
        _metric("gauge", name).set(value, tags={"stage": stage})


def count_drops(drops: dict[str, int], *, stage: str) -> None:
    """Add a stage's drops, by reason."""
    for reason, number in drops.items():
        count("sbp_drops", number, stage=stage, reason=reason)


def ray_is_running() -> bool:
    """Whether this process has joined a Ray."""
    ray = sys.modules.get("ray")  # whoever has not imported it has not joined one
    return ray is not None and bool(ray.is_initialized())


@cache
def _metric(kind: Literal["counter", "gauge"], name: str):  # type: ignore[no-untyped-def]  # Ray's classes are untyped
    from ray.util.metrics import Counter, Gauge

    description, tag_keys = (_COUNTERS if kind == "counter" else _GAUGES)[name]
    return (Counter if kind == "counter" else Gauge)(name, description=description, tag_keys=tag_keys)
