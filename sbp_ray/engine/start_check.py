"""What an engine is asked before it takes requests: does it give held-out tokens what the trained model gave them?

Transformers has said so of the files (`training/export_check.py`). This is of the engine, with its kernels, its types
and its parallelism, on the machine where it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sbp_ray.agreement import (
    CHECKED,
    EXPORT_CHECK,
    TOLERANCE,
    ScoredDocument,
    describe_excess,
    find_differences,
    is_within,
    summarize,
)
from sbp_ray.artifacts import Artifact
from sbp_ray.errors import SbpError

logger = logging.getLogger(__name__)

_MAX_TOKENS = 2048
"""Of all documents that are asked for, unless the shortest has more: a second on two cores. Log-probabilities of a
prompt take memory that vLLM has not set aside, for each token as many numbers as there are token ids."""


async def check_engine(
    synthesizer: Artifact,
    identity: dict[str, Any],
    window: int,
    score: Callable[[list[int]], Awaitable[list[float]]],
) -> None:
    """Compare an engine with the model that was trained. A model that others have made has nothing to compare with.

    Args:
        identity: how the engine computes: see `deploy.identity_of`.
        window: the longest sequence that it takes, in tokens.
        score: gives the NLL of each token of a document; 0 for the first, which has no context.

    Raises:
        SbpError: they are further apart than `TOLERANCE`. Where arguments of vLLM's own make another distribution, as
            quantised weights do, a warning says so instead.
    """
    if not synthesizer.exists(CHECKED):
        return
    documents = choose_documents(synthesizer.read_json(EXPORT_CHECK), window)
    if not documents:
        logger.warning("the engine's start is not checked: max_model_len is shorter than every held-out document")
        return
    differences = find_differences(documents, [await score(document["input_ids"]) for document in documents])
    found = summarize(differences)
    # Of engine and training, whose record has its tolerance, the type that rounds more counts.
    trained = synthesizer.read_json(CHECKED)["tolerance_nats"]
    types = [dtype for dtype in TOLERANCE if dtype == identity["dtype"] or TOLERANCE[dtype].high == trained]
    dtype = max(types, key=lambda dtype: TOLERANCE[dtype].high)
    tolerance = TOLERANCE[dtype]
    if is_within(found, tolerance):
        logger.info(
            f"the engine gives {len(differences):,} held-out tokens what the trained model gave them, to within "
            f"{max(differences):.1e} nats"
        )
    elif "vllm" in identity:
        logger.warning(f"with {identity['vllm']} the engine {describe_excess(found, tolerance, dtype)}")
    else:
        raise SbpError(
            f"the engine {describe_excess(found, tolerance, dtype)}: it is not the model that was trained, or computes "
            "wrongly here (resources.checks_model=false starts it all the same)"
        )


def choose_documents(documents: list[ScoredDocument], window: int) -> list[ScoredDocument]:
    """The shortest ones, up to `_MAX_TOKENS` together, that leave room in the window for the token that vLLM writes."""
    chosen: list[ScoredDocument] = []
    num_tokens = 0
    for document in sorted(documents, key=lambda document: len(document["input_ids"])):
        num_tokens += len(document["input_ids"])
        if len(document["input_ids"]) >= window or (chosen and num_tokens > _MAX_TOKENS):
            break
        chosen.append(document)
    return chosen
