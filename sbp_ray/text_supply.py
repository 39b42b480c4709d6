"""How much synthetic text a joint training wants, and how much there can be: each document is read once."""

from __future__ import annotations

import math

from sbp_ray.errors import SbpError
from sbp_ray.nodes import Node

_MARKS = 2  # <bos> and <eos> of each document


def most_texts(node: Node, samples: int) -> int | None:
    """Of so many samples of each d1 by a synthesis; None where every document of a corpus of unknown size is a d1."""
    documents = node.inputs["corpus"].stats.get("train", {}).get("documents")
    limits = (node.config.synthesize.num_documents, node.config.ingest.max_train_documents, documents)
    known = [limit for limit in limits if limit is not None]
    return min(known) * samples if known else None


def wanted_tokens(joint: Node) -> int:
    """Synthetic positions that a joint LM reads."""
    return round(joint.config.mixture.share() * joint.config.pretrain.num_positions())


def refuse_too_little_text(joint: Node, where: str = "") -> None:
    """Refuse a share that no outcome of the synthesis can fill: synthetic documents are never repeated.

    Args:
        joint: an LM that reads synthetic text.
        where: names it, before what is said.

    Raises:
        SbpError: says the most that there could be, and how many samples would do if all texts were that long.
    """
    synthetic, wanted = joint.inputs["synthetic"], wanted_tokens(joint)
    own = synthetic.config.synthesize
    each = own.keep_best or own.samples_per_document
    number = most_texts(synthetic, each)
    if number is None or joint.config.mixture.megadocs:  # which count d1 in
        return
    most = number * (own.max_tokens + _MARKS)
    if wanted > most:
        raise SbpError(
            f"{where}a share of {joint.config.mixture.share():g} wants {wanted:,} synthetic tokens, and the synthesis "
            f"can write {most:,} at most, which are read once: raise synthesize.samples_per_document to "
            f"{math.ceil(each * wanted / max(1, most)):,} or more, lower the share, or use a larger corpus"
        )
